"""The registry: the droplet's one record of who may come in. It holds nothing secret.

A client has token keys, each with the certificates that it may be used with, and SSH keys. Each
change raises the generation (`changing`). Pure, but for `load` and `save`; what is refused is
refused whole.
"""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from keys import strictjson
from keys.enrolment import CLIENT, ROLES, Role
from keys.files import guarded_file_fault, write_whole
from keys.keyring import KeyRing, from_jwk, thumbprint, to_jwk
from keys.sshkey import fingerprint, read_line

_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Client:
    """One who may come in, or might once."""

    name: str
    role: Role
    keys: tuple["Key", ...] = ()
    revoked: bool = False
    ssh_keys: tuple["SshKey", ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """A token key, and the thumbprints of the certificates that belong to it."""

    public: Ed25519PublicKey
    certificates: frozenset[str]
    revoked: bool = False

    @property
    def kid(self) -> str:
        """Its name."""
        return thumbprint(self.public)


@dataclass(frozen=True, slots=True)
class SshKey:
    """A key that sshd may let in."""

    line: str
    """"ssh-ed25519 AAAA..."."""
    revoked: bool = False

    @property
    def fingerprint(self) -> str:
        """Its name: "SHA256:...", as `ssh-keygen -l` prints it."""
        return fingerprint(self.line)


@dataclass(frozen=True, slots=True)
class KnownSsh:
    """An SSH key as it is looked up: with the client that it belongs to."""

    client: Client
    key: SshKey

    @property
    def accepted(self) -> bool:
        """Whether sshd may let it in."""
        return not self.key.revoked and not self.client.revoked


@dataclass(frozen=True, slots=True)
class Known:
    """A key as it is looked up: with the client that it belongs to."""

    client: Client
    certificates: frozenset[str]
    revoked: bool


@dataclass(frozen=True)
class Registry:
    """All clients, by name; token keys are found by kid, SSH keys by fingerprint.

    Raises (on construction):
        ValueError: two clients share a name or a key.
    """

    clients: tuple[Client, ...] = ()
    generation: int = 0
    """How often it was changed."""
    _keys: dict[str, Known] = field(init=False, repr=False, compare=False, default_factory=dict)
    _ssh: dict[str, KnownSsh] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if len({client.name for client in self.clients}) != len(self.clients):
            raise ValueError("two clients have the same name")
        for client in self.clients:
            for key in client.keys:
                if key.kid in self._keys:
                    raise ValueError(f"the key {key.kid} is there twice")
                self._keys[key.kid] = Known(client, key.certificates, key.revoked)
            for ssh in client.ssh_keys:
                if ssh.fingerprint in self._ssh:
                    raise ValueError(f"the ssh key {ssh.fingerprint} is there twice")
                self._ssh[ssh.fingerprint] = KnownSsh(client, ssh)

    def key(self, kid: str) -> Known | None:
        """Return what is known of a key, revoked or not."""
        return self._keys.get(kid)

    def ssh_key(self, name: str) -> KnownSsh | None:
        """Return what is known of an SSH key, by fingerprint, revoked or not."""
        return self._ssh.get(name)

    def ssh_accepted(self) -> frozenset[str]:
        """Return the fingerprints of all SSH keys that may come in."""
        return frozenset(name for name, known in self._ssh.items() if known.accepted)

    def client(self, name: str) -> Client | None:
        """Return the client of that name."""
        return next((client for client in self.clients if client.name == name), None)

    def ring(self) -> KeyRing:
        """Return every key on record; whether one is revoked is asked per request."""
        return KeyRing(key.public for client in self.clients for key in client.keys)

    def with_client(self, client: Client) -> "Registry":
        """Return the registry with `client` in it, in place of the one of that name.

        Raises:
            ValueError: one of its keys belongs to another client.
        """
        if self.client(client.name) is None:
            return replace(self, clients=(*self.clients, client))
        clients = (client if one.name == client.name else one for one in self.clients)
        return replace(self, clients=tuple(clients))

    def without(self, name: str) -> "Registry":
        """Return the registry with the client of that name revoked: kept, but never let in.

        Raises:
            LookupError: there is none.
        """
        client = self.client(name)
        if client is None:
            raise LookupError(name)
        return self.with_client(replace(client, revoked=True))


def parse(text: bytes) -> Registry:
    """Return the registry in `text`.

    Raises:
        ValueError: it is not one; says what is wrong.
    """
    content = strictjson.loads(text)
    if not isinstance(content, dict) or content.keys() != {"version", "generation", "clients"}:
        raise ValueError("must be an object with version, generation and clients")
    version, generation = content["version"], content["generation"]
    if type(version) is not int or version != 1 or not isinstance(content["clients"], list):
        raise ValueError("must be of version 1, with a list of clients")
    if type(generation) is not int or generation < 0:
        raise ValueError("generation must be a whole number, not below 0")
    return Registry(tuple(_client(item) for item in content["clients"]), generation)


def _client(item: object) -> Client:
    members = _members(item, {"name", "role", "revoked", "keys", "ssh_keys"}, "a client")
    name, role = members["name"], members["role"]
    if not isinstance(name, str) or not CLIENT.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a client")
    if role not in ROLES:
        raise ValueError(f"{name}: the role must be one of {', '.join(ROLES)}")
    if not isinstance(members["keys"], list) or not isinstance(members["ssh_keys"], list):
        raise ValueError(f"{name}: keys and ssh_keys must be lists")
    try:
        keys = tuple(_key(one) for one in members["keys"])
        ssh_keys = tuple(_ssh_key(one) for one in members["ssh_keys"])
    except ValueError as exc:
        raise ValueError(f"{name}: {exc}") from None
    return Client(name, cast(Role, role), keys, _flag(members), ssh_keys)


def _key(item: object) -> Key:
    members = _members(item, {"jwk", "certificates", "revoked"}, "a key")
    listed = members["certificates"]
    if not isinstance(listed, list) or not all(
        isinstance(one, str) and _THUMBPRINT.fullmatch(one) for one in listed
    ):
        raise ValueError("certificates must be a list of thumbprints (x5t#S256)")
    return Key(from_jwk(members["jwk"]), frozenset(listed), _flag(members))


def _ssh_key(item: object) -> SshKey:
    members = _members(item, {"key", "revoked"}, "an ssh key")
    read_line(members["key"])
    return SshKey(members["key"], _flag(members))


def _members(item: object, names: set[str], what: str) -> dict[str, Any]:
    if not isinstance(item, dict) or item.keys() != names:
        raise ValueError(f"{what} has these members, and no others: {', '.join(sorted(names))}")
    return item


def _flag(members: dict[str, Any]) -> bool:
    if not isinstance(members["revoked"], bool):
        raise ValueError("revoked must be true or false")
    return members["revoked"]


def to_text(registry: Registry) -> str:
    """Return what `parse` reads."""
    clients = [
        {
            "name": client.name,
            "role": client.role,
            "revoked": client.revoked,
            "keys": [
                {
                    "jwk": to_jwk(key.public),
                    "certificates": sorted(key.certificates),
                    "revoked": key.revoked,
                }
                for key in client.keys
            ],
            "ssh_keys": [{"key": ssh.line, "revoked": ssh.revoked} for ssh in client.ssh_keys],
        }
        for client in registry.clients
    ]
    content = {"version": 1, "generation": registry.generation, "clients": clients}
    return json.dumps(content, indent=2) + "\n"


def load(path: Path) -> Registry:
    """Return the registry in the file.

    Raises:
        OSError: it cannot be read.
        ValueError: see `parse`, or others may write to it; names the file.
    """
    return read(path)[0]


def read(path: Path) -> tuple[Registry, bytes]:
    """Return the registry in the file, and its text; raises what `load` does."""
    if fault := guarded_file_fault(path):
        raise ValueError(fault)
    text = path.read_bytes()
    try:
        return parse(text), text
    except ValueError as exc:
        raise ValueError(f"{path}: {exc}") from exc


def save(path: Path, registry: Registry) -> None:
    """Write the registry, whole or not at all.

    Raises:
        OSError: it cannot be written; the old one is left as it was.
    """
    write_whole(path, to_text(registry).encode(), replace=True, mode=0o644)
