"""What the other end says of this client's keys, and what it is asked to change (protocol.md).

Nothing here is believed of this side's own state: who is let in is asked, every time.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keys import statement, strictjson
from keys.jws import JTI
from keys.keyring import load_token_key
from keys.statement import Author

from ..problems import ProblemError
from ..settings import Settings
from ..tokens import Clock
from .keystore import Called
from .wayin import Answer, WayIn

TRIES = 5  # statements that may come late for the registry's generation


class RefusedError(Exception):
    """The other end will not, and asking again will not change that; says why, in words."""


@dataclass(frozen=True, slots=True)
class AcceptedKey:
    """A token key over there."""

    kid: str
    revoked: bool
    certificates: Mapping[str, float | None]
    """Thumbprint, and when it ends (seconds since the epoch), where that is known."""
    open: int
    """Requests that run with it now."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the other end lets in for this client."""

    client: str
    role: str
    generation: int
    keys: tuple[AcceptedKey, ...]
    ssh_keys: Mapping[str, bool]
    """Fingerprint, and whether it is revoked."""
    issuers: tuple[str, ...]
    """Thumbprints of the client CAs that are trusted."""
    current_issuer: str | None
    issuer_ends: float | None
    """When the CA that signs now ends, where that is known."""
    site_ends: float | None
    """When NGINX's own certificate ends, where that is known."""

    @property
    def kids(self) -> set[str]:
        """Return the token keys that are let in."""
        return {key.kid for key in self.keys if not key.revoked}

    @property
    def certificates(self) -> set[str]:
        """Return the certificates that are let in."""
        return {one for key in self.keys if not key.revoked for one in key.certificates}

    def lets_in(self, keys: Called) -> bool:
        """Return whether every one of `keys` is let in."""
        return (
            (keys.kid is None or keys.kid in self.kids)
            and (keys.certificate is None or keys.certificate in self.certificates)
            and (keys.fingerprint is None or keys.fingerprint in self.fingerprints)
        )

    @property
    def fingerprints(self) -> set[str]:
        """Return the SSH keys that are let in."""
        return {one for one, revoked in self.ssh_keys.items() if not revoked}


@dataclass(frozen=True, slots=True)
class NewKeys:
    """Private halves that are to be introduced; they only sign."""

    token: Path | None = None
    csr: str | None = None
    ssh: Path | None = None


class Registrar:
    """The registrar, as it is reached by one way in."""

    def __init__(self, way: WayIn, settings: Settings, clock: Clock) -> None:
        self._way = way
        self._https = settings.https
        self._clock = clock

    async def accepted(self) -> Accepted:
        """Return what is let in now.

        Raises:
            ProblemError: it cannot be asked.
            RefusedError: it does not know us, or it knows nothing of this.
        """
        answer = await self._way.ask("GET", statement.PATH.encode())
        content = _content(answer)
        try:
            return _accepted(content)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _nonsense() from None

    async def introduce(self, new: NewKeys) -> str | None:
        """Have new keys let in beside the old ones; return the certificate (PEM), if one was asked.

        Raises:
            ProblemError, RefusedError: see `accepted`.
            KeyFileError, OSError: a key cannot be read.
        """
        from keys.sshkey import load_key

        unlock = self._https.unlock if self._https is not None else None
        token = None if new.token is None else load_token_key(new.token, unlock)
        ssh = None if new.ssh is None else load_key(new.ssh, unlock)

        def say(author: Author, generation: int) -> str:
            jti = secrets.token_bytes(JTI)
            return author.introduce(
                generation, self._clock.now(), jti, token_key=token, csr=new.csr, ssh_key=ssh
            )

        certificate = (await self._post(say, "introduced")).get("certificate")
        if certificate is not None and not isinstance(certificate, str):
            raise _nonsense()
        return certificate

    async def retire(self, accepted: Accepted, keys: Called, *, compromised: bool) -> None:
        """Have those of `keys` that are let in never let in again.

        Raises:
            ProblemError, RefusedError: see `accepted`.
            KeyFileError, OSError: the key that signs cannot be read.
        """

        kids = {kid for kid in accepted.kids if kid == keys.kid}
        ssh_keys = {one for one in accepted.fingerprints if one == keys.fingerprint}
        certificates = {one for one in accepted.certificates if one == keys.certificate}
        if kids:  # which takes its certificates with it
            certificates = set()
        if not kids and not certificates and not ssh_keys:
            return

        def say(author: Author, generation: int) -> str:
            return author.retire(
                generation,
                self._clock.now(),
                secrets.token_bytes(JTI),
                kids=kids,
                certificates=certificates,
                ssh_keys=ssh_keys,
                compromised=compromised,
            )

        await self._post(say, "retired")

    async def revoke(self) -> None:
        """Give up every key of this client, for good.

        Raises:
            ProblemError, RefusedError: see `accepted`.
            KeyFileError, OSError: the key that signs cannot be read.
        """

        def say(author: Author, generation: int) -> str:
            return author.revoke(generation, self._clock.now(), secrets.token_bytes(JTI))

        await self._post(say, "revoked")

    async def _post(self, say: Any, done: str) -> dict[str, Any]:
        https = self._https
        if https is None:
            raise RefusedError("These settings have no [https], which says who we are there.")
        author = Author(load_token_key(https.token_key, https.unlock), https.client, https.audience)
        generation = (await self.accepted()).generation
        for _ in range(TRIES):
            text = say(author, generation).encode()
            target = statement.PATH.encode()
            answer = await self._way.ask("POST", target, text, statement.CONTENT_TYPE)
            if answer.status == 409:  # somebody else changed the registry meanwhile
                generation = (await self.accepted()).generation
                continue
            content = _content(answer)
            if content.get("catalyst") != done:
                raise _nonsense()
            return content
        text = "Others changed the registry each time."
        raise ProblemError("registrar_unavailable", text)


def _content(answer: Answer) -> dict[str, Any]:
    """Return the members of a good answer.

    Raises:
        ProblemError: it is none, but may be one later.
        RefusedError: it is a refusal.
    """
    problem = answer.verdict.problem
    try:
        content = strictjson.loads(answer.body)
        code = content["error"]["code"] if isinstance(content.get("error"), dict) else ""
    except (ValueError, KeyError, AttributeError, TypeError):
        content, code = None, ""
    if answer.status == 503 and code == "registrar_unavailable":
        raise ProblemError("registrar_unavailable", "The droplet's registrar does not answer.")
    if answer.status == 503 and code == "ca_unavailable":
        raise RefusedError(
            "The client CA's key is not on the droplet, or cannot be used: bring it back to "
            "ca/ca.key there, or rotate without the certificate."
        )
    if problem is not None:
        raise ProblemError(problem.code, problem.message)
    if answer.status == 200 and isinstance(content, dict) and content.get("version") == 1:
        return content
    if answer.status == 403:
        raise RefusedError("The other end refuses that change; its audit log has the reason.")
    if answer.status == 404:
        raise RefusedError("The gateway over there knows nothing of changing keys: update it.")
    raise RefusedError(f"The other end answers {answer.status} ({code or 'no reason'}).")


def _nonsense() -> ProblemError:
    return ProblemError("upstream_invalid", "The registrar's answer makes no sense.")


def _accepted(content: dict[str, Any]) -> Accepted:
    if content["catalyst"] != "keys":
        raise ValueError
    return Accepted(
        client=str(content["client"]),
        role=str(content["role"]),
        generation=int(content["generation"]),
        keys=tuple(
            AcceptedKey(
                str(key["kid"]),
                bool(key["revoked"]),
                {str(one["thumbprint"]): _time(one["not_after"]) for one in key["certificates"]},
                int(key["open"]),
            )
            for key in content["keys"]
        ),
        ssh_keys={str(key["fingerprint"]): bool(key["revoked"]) for key in content["ssh_keys"]},
        issuers=tuple(map(str, content["client_ca"]["issuers"])),
        current_issuer=content["client_ca"]["current"],
        issuer_ends=_time(content["client_ca"]["not_after"]),
        site_ends=_time(content["site"]["not_after"]),
    )


def _time(value: object) -> float | None:
    return None if value is None else float(str(value))
