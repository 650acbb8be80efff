"""The two papers of enrolment: the request of a laptop and the answer of the droplet.

Both are JSON without a secret in them (docs/protocol.md). Members that the format does not name are
refused.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from . import sshkey, strictjson
from .keyring import from_jwk, thumbprint, to_jwk

SIZE = 64 << 10  # bytes of a paper
CLIENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""What a client may be called: a name that needs no quoting anywhere."""

Role = Literal["operator", "observer"]
ROLES: tuple[Role, ...] = ("operator", "observer")


@dataclass(frozen=True, slots=True)
class EnrolmentRequest:
    """What a laptop asks with: public halves, and proofs that it holds the TLS and SSH keys."""

    token_key: Ed25519PublicKey
    csr: str
    ssh_key: str | None = None
    """"ssh-ed25519 AAAA...", where the droplet is to let it in."""
    ssh_proof: str | None = None
    """Made by `sshkey.prove` for audience "", client "" and the token key's thumbprint."""

    def to_text(self) -> str:
        """Return it as it is written to a file."""
        members: dict[str, Any] = {"token_key": to_jwk(self.token_key), "csr": self.csr}
        if self.ssh_key is not None:
            members |= {"ssh_key": self.ssh_key, "ssh_proof": self.ssh_proof}
        return _text("request", members)

    @classmethod
    def read(cls, text: bytes) -> "EnrolmentRequest":
        """Return the request in `text`.

        Raises:
            ValueError: it is not one; says what is wrong.
        """
        content = _content("request", text, {"token_key", "csr"}, {"ssh_key", "ssh_proof"})
        token_key, csr = from_jwk(content["token_key"]), _string(content, "csr")
        if "ssh_key" not in content:
            return cls(token_key, csr)
        line, proof = _string(content, "ssh_key"), _string(content, "ssh_proof")
        if not sshkey.proves(line, proof, "", "", thumbprint(token_key)):
            raise ValueError("the ssh_proof is not one by that ssh key for that token key")
        return cls(token_key, csr, line, proof)


@dataclass(frozen=True, slots=True)
class EnrolmentAnswer:
    """What the droplet answers with: who the client is there, and its certificate."""

    client: str
    role: Role
    url: str
    audience: str
    kid: str
    certificate: str
    ca: str | None
    ssh_target: str

    def to_text(self) -> str:
        """Return it as it is written to a file."""
        return _text("answer", {name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def read(cls, text: bytes) -> "EnrolmentAnswer":
        """Return the answer in `text`.

        Raises:
            ValueError: it is not one; says what is wrong.
        """
        names = set(cls.__slots__)
        content = _content("answer", text, names)
        values: dict[str, Any] = {name: _string(content, name) for name in names - {"ca"}}
        values["ca"] = None if content["ca"] is None else _string(content, "ca")
        if not CLIENT.fullmatch(values["client"]) or values["role"] not in ROLES:
            raise ValueError("the answer names no client or no role that is known here")
        return cls(**cast(Any, values))


def _text(kind: str, members: dict[str, Any]) -> str:
    return json.dumps({"catalyst": kind, "version": 1, **members}, indent=2) + "\n"


def _content(
    kind: str, text: bytes, names: set[str], together: set[str] | None = None
) -> dict[str, Any]:
    """Return the members of a paper: all of `names`, and all of `together` or none of them."""
    if len(text) > SIZE:
        raise ValueError(f"that is too large for an enrolment {kind}")
    try:
        content = strictjson.loads(text)
    except ValueError as exc:
        raise ValueError(f"that is not an enrolment {kind}: {exc}") from None
    if not isinstance(content, dict) or content.get("catalyst") != kind:
        raise ValueError(f"that is not an enrolment {kind}")
    version = content.get("version")
    if type(version) is not int or version != 1:  # true and 1.0 are equal to 1
        raise ValueError(f"that enrolment {kind} is of another version")
    if together and not together.isdisjoint(content):
        names = names | together
    if content.keys() != names | {"catalyst", "version"}:
        wanted = ", ".join(sorted(names))
        raise ValueError(f"an enrolment {kind} has these members, and no others: {wanted}")
    return content


def _string(content: dict[str, Any], name: str) -> str:
    value = content[name]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a string")
    return value
