"""The settings file: TOML in, one checked record out, every fault told at once.

Nothing here opens a socket. Paths in the file are relative to the file, so that a home can be
moved; keys that nobody knows are refused, since a misspelt one would silently keep a default.
"""

import os
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from keys.errors import KeyFileError
from keys.pointer import FAMILIES, Family, Names, read_pointer
from keys.table import Table

from .guard import is_loopback

if TYPE_CHECKING:
    from keys.locked import Unlock  # not at run time: it brings cryptography with it

PATHS = ("ssh", "https")
_TABLES = ("tunnel", "ssh", "https", "keys", "forward")


def home() -> Path:
    """Return the directory of settings, keys and state: $CATALYST_HOME or ~/.catalyst-tunnel."""
    given = os.environ.get("CATALYST_HOME")
    if not given:
        return Path.home() / ".catalyst-tunnel"
    try:
        return Path(given).expanduser()
    except RuntimeError:
        return Path(given)  # "~nobody": a directory of that name, then


class Address(NamedTuple):
    """A host and a port; IPv6 literals without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


TWINS = {"127.0.0.1": "::1", "::1": "127.0.0.1", "localhost": "::1"}
"""Loopback names, and what `localhost` means besides: clients may try either first."""

SERVICE = Address("127.0.0.1", 5000)


class Hop(NamedTuple):
    """A jump host; None leaves the choice to the defaults."""

    user: str | None
    host: str
    port: int | None


@dataclass(frozen=True)
class Ssh:
    """[ssh]: how the droplet is reached, and what lies behind it."""

    host: str
    known_hosts: Path
    port: int | None = 22
    user: str | None = None
    identity: Path | None = None
    follows: bool = False
    """Whether identity is what the pointer says (`keys.pointer`), and may change."""
    target: Address = SERVICE
    jumps: tuple[Hop, ...] = ()
    use_ssh_config: bool = False
    gateway: bool = False
    """Whether the target is the gateway, which wants a token of [https] client."""
    keepalive: float = 5.0
    unlock: "Unlock | None" = field(default=None, repr=False, compare=False)
    """How to get the passphrase of identity, where it may have one."""


@dataclass(frozen=True)
class Https:
    """[https]: the way in through NGINX and the gateway."""

    host: str
    port: int
    base: bytes
    """Path below which the service's own paths are, without the last slash."""
    client: str
    audience: str
    cert: Path
    key: Path
    token_key: Path
    follows: bool = False
    """Whether cert and key are what the pointer says, and may change."""
    token_follows: bool = False
    ca_file: Path | None = None
    use_proxy: bool = False
    unlock: "Unlock | None" = field(default=None, repr=False, compare=False)
    """How to get the passphrase of key and token_key, where they may have one."""

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 443 else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ForwardRule:
    """One [[forward]]: a raw TCP address here, and the one that it leads to over there."""

    name: str
    listen: Address
    target: Address


@dataclass(frozen=True, slots=True)
class KeyRules:
    """[keys]: how old keys may get, and whether they have a passphrase."""

    max_age: tuple[tuple[Family, float], ...] = ()
    """Days after which the keys of a family are rotated."""
    passphrase: bool = False
    """Whether new keys get the passphrase that the system's keyring keeps."""


@dataclass(frozen=True)
class Settings:
    """What the file says, checked."""

    file: Path
    ssh: Ssh
    https: Https | None = None
    listen: Address = SERVICE
    paths: tuple[str, ...] = ("ssh",)
    hold: float = 30.0
    silence: float = 300.0
    allowed_origins: frozenset[str] = frozenset()
    forwards: tuple[ForwardRule, ...] = ()
    keys: KeyRules = KeyRules()

    @property
    def service(self) -> str:
        """What the service is called in the log and in `status`."""
        if "ssh" in self.paths or self.https is None:
            return str(self.ssh.target)
        return f"https://{self.https.authority}{self.https.base.decode()}"


class SettingsError(Exception):
    """The file cannot be used; the message lists every fault with its file and key."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


def parse_address(text: str) -> Address:
    """Return the address in "host:port" or "[ipv6]:port".

    Raises:
        ValueError: it is neither; the message says what is wrong.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text)
    if match is None:
        raise ValueError('must be "host:port", e.g. "127.0.0.1:5000"')
    port = int(match[3])
    if not 0 <= port <= 65535:
        raise ValueError("the port must be between 0 and 65535")
    return Address(match[1] or match[2], port)


def _loopback_address(text: str) -> Address:
    address = parse_address(text)
    if not is_loopback(address.host):
        raise ValueError("must be a loopback address: the tunnel asks its callers for no password")
    return address


def _target_address(text: str) -> Address:
    address = parse_address(text)
    if address.port == 0:
        raise ValueError("the port must be between 1 and 65535")
    return address


def _hops(text: str) -> tuple[Hop, ...]:
    hops = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:([^\s@]+)@)?(?:\[([^\]\s]+)\]|([^\s:@]+))(?::(\d{1,5}))?", part)
        if match is None:
            raise ValueError('must be "[user@]host[:port]", several with commas between')
        port = _port(int(match[4])) if match[4] else None
        hops.append(Hop(match[1], match[2] or match[3], port))
    return tuple(hops)


def _origins(value: list[Any]) -> frozenset[str]:
    for item in value:
        # As a browser writes it (RFC 6454 section 6.2): lower case, without a default port.
        if not isinstance(item, str) or not re.fullmatch(
            r"(http(?!.*:80$)|https(?!.*:443$)|(?!https?:)[a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?",
            item,
        ):
            raise ValueError('must be a list of origins such as "https://app.example.com"')
    return frozenset(value)


def load(file: Path, only: str | None = None) -> Settings:
    """Read, check and return the settings in `file`; the files that it names must be usable.

    Args:
        file: where they are.
        only: the one path to use, whatever they say, or None.

    Raises:
        SettingsError: with every fault that there is.
    """
    settings, faults = _parse(file, _text(file))
    if settings is not None and only is not None:
        if (only == "https" and settings.https is None) or (
            only == "ssh" and not settings.ssh.host
        ):
            faults.append(f"{file}: has no [{only}] table, so there is no such path")
        if only == "https" and settings.forwards:
            faults.append(f"{file}: [[forward]]: needs the ssh path")
        settings = replace(settings, paths=(only,))
    if settings is not None:
        from .custody import keyfiles  # late: whoever only asks for the home pays for no keys

        faults += [f"{file}: {fault}" for fault in keyfiles.faults(settings)]
    if settings is None or faults:
        raise SettingsError(faults)
    return settings


def load_unchecked(file: Path) -> Settings:
    """Return the settings in `file`, whether or not key and known_hosts exist yet.

    Raises:
        SettingsError: with every fault that the file itself has.
    """
    return parse(file, _text(file))


def parse(file: Path, text: str) -> Settings:
    """Return the settings that `text` would be as the content of `file`.

    Raises:
        SettingsError: with every fault that it has.
    """
    settings, faults = _parse(file, text)
    if settings is None or faults:
        raise SettingsError(faults)
    return settings


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # editors on Windows write a byte order mark
    except FileNotFoundError:
        text = f"{file}: there is no such file. `catalyst-tunnel init` writes one."
        raise SettingsError([text]) from None
    except OSError as exc:
        raise SettingsError([f"{file}: cannot be read ({exc.strerror})"]) from exc
    except UnicodeDecodeError as exc:
        raise SettingsError([f"{file}: is not TOML, which is UTF-8: {exc.reason}"]) from exc


def _parse(file: Path, text: str) -> tuple[Settings | None, list[str]]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        return None, [f"{file}: is not TOML: {exc}"]
    except RecursionError:
        return None, [f"{file}: is nested too deeply"]
    faults: list[str] = []
    return _read(file, content, faults), faults


def _read(file: Path, content: dict[str, Any], faults: list[str]) -> Settings:
    def table(name: str) -> Table:
        values = content.get(name, {})
        if not isinstance(values, dict):
            faults.append(f"{file}: [{name}] must be a table")
            values = {}
        return Table(f"{file}: [{name}]", values, faults)

    faults.extend(
        f"{file}: [{name}]: unknown table (known here: {', '.join(_TABLES)})"
        for name in sorted(content.keys() - set(_TABLES))
    )
    names = Names()
    try:
        names = read_pointer(file.parent / "keys")
    except KeyFileError as exc:
        faults.append(str(exc))
    tunnel = table("tunnel")
    there = tuple(name for name in PATHS if name in content) or ("ssh",)
    paths = tunnel.take("paths", list, there, _paths)
    settings = Settings(
        file=file,
        ssh=_read_ssh(file, table("ssh"), "ssh" in content or "ssh" in paths),
        https=_read_https(file, table("https")) if "https" in content else None,
        listen=tunnel.take("listen", str, Settings.listen, _loopback_address),
        paths=paths,
        hold=tunnel.seconds("hold", Settings.hold, 0, 600),
        silence=tunnel.seconds("silence", Settings.silence, 1, 3600),
        allowed_origins=tunnel.take("allowed_origins", list, frozenset(), _origins),
        forwards=_read_forwards(file, content.get("forward", []), faults),
        keys=_read_keys(table("keys")),
    )
    from .custody import keyfiles

    settings = keyfiles.with_names(settings, names)
    tunnel.rest()
    if "https" in paths and "https" not in content:
        tunnel.fault("paths", '"https" is named but there is no [https] table')
    if settings.ssh.gateway and "https" not in content:
        faults.append(f"{file}: [ssh] gateway: needs [https] token_key and client for its tokens")
    if settings.forwards and "ssh" not in paths:
        faults.append(f"{file}: [[forward]]: needs the ssh path, and [tunnel] paths has none")
    taken: dict[Address, str] = {}
    for where, listen in [
        ("[tunnel]", settings.listen),
        *((f"[[forward]] {rule.name}", rule.listen) for rule in settings.forwards),
    ]:
        # 127.0.0.1, ::1 and localhost are bound together.
        place = listen._replace(host="localhost") if listen.host in TWINS else listen
        if listen.port and place in taken:
            faults.append(f"{file}: {where} listen: {listen} is taken by {taken[place]}")
        taken[place] = where
    return settings


def _paths(value: list[Any]) -> tuple[str, ...]:
    if not value or not all(item in PATHS for item in value) or len(set(value)) != len(value):
        raise ValueError(f"must list one or more of {', '.join(PATHS)}, each once")
    return tuple(value)


def _read_ssh(file: Path, table: Table, wanted: bool) -> Ssh:
    use_ssh_config = table.flag("use_ssh_config")
    ssh = Ssh(
        host=table.word("host") or "",
        port=table.take("port", int, None if use_ssh_config else 22, _port),
        user=table.word("user"),
        identity=_beside(file, table, "identity", None),
        follows=not use_ssh_config and "identity" not in table.values,
        known_hosts=_beside(file, table, "known_hosts", None) or file.parent / "known_hosts",
        target=table.take("target", str, Ssh.target, _target_address),
        jumps=table.take("proxy_jump", str, (), _hops),
        use_ssh_config=use_ssh_config,
        gateway=table.flag("gateway"),
        keepalive=table.seconds("keepalive", Ssh.keepalive, 1, 60),
    )
    table.rest()
    if wanted and "host" not in table.values:
        table.fault("host", "is missing: the name or address of the droplet")
    return ssh


def _beside(file: Path, table: Table, key: str, default: Path | None) -> Path | None:
    """Take the name of a file, relative to the settings."""

    def read(value: str) -> Path:
        if not value.isprintable():
            raise ValueError("must be the name of a file")
        try:
            return file.parent / Path(value).expanduser()
        except RuntimeError:
            raise ValueError("names the home of a user who does not exist") from None

    return table.take(key, str, default, read)


def _read_https(file: Path, table: Table) -> Https:
    host, port, base = table.take("url", str, ("", 443, b""), _url)
    keys = file.parent / "keys"
    own = {"cert", "key"} & table.values.keys()
    https = Https(
        host=host,
        port=port,
        base=base,
        client=table.word("client") or "",
        audience=table.word("audience") or f"catalyst-gateway:{host}",
        cert=_beside(file, table, "cert", None) or keys / "tls.crt",
        key=_beside(file, table, "key", None) or keys / "tls.key",
        token_key=_beside(file, table, "token_key", None) or keys / "token.key",
        follows=not own,
        token_follows="token_key" not in table.values,
        ca_file=_beside(file, table, "ca_file", None),
        use_proxy=table.flag("use_proxy"),
    )
    table.rest()
    for key, what in (("url", "such as https://droplet/mcp"), ("client", "this client's name")):
        if key not in table.values:
            table.fault(key, f"is missing: {what}. `catalyst-tunnel keys accept` writes it.")
    return https


def _read_keys(table: Table) -> KeyRules:
    def days(value: int) -> float:
        if not 1 <= value <= 3650:
            raise ValueError("must be between 1 and 3650 days")
        return float(value)

    def kept_by(value: str) -> str:
        if value != "keyring":
            raise ValueError('must be "keyring": the passphrase itself has no place in a file')
        return value

    every = table.take("max_age", int, None, days)
    ages = {family: table.take(f"max_age_{family}", int, every, days) for family in FAMILIES}
    kept = table.take("passphrase", str, None, kept_by)
    table.rest()
    return KeyRules(
        tuple((family, age) for family, age in ages.items() if age is not None), kept is not None
    )


def _url(text: str) -> tuple[str, int, bytes]:
    match = re.fullmatch(
        r"https://(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?"
        r"((?:/[A-Za-z0-9._~-]+)*)/?",
        text,
    )
    if match is None or not 1 <= int(match[3] or 443) <= 65535:
        raise ValueError('must be "https://HOST[:PORT]/PATH", such as "https://droplet/mcp"')
    return match[1] or match[2], int(match[3] or 443), match[4].encode("ascii")


def _port(value: int) -> int:
    if not 1 <= value <= 65535:
        raise ValueError("must be between 1 and 65535")
    return value


def _read_forwards(file: Path, content: object, faults: list[str]) -> tuple[ForwardRule, ...]:
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        faults.append(f"{file}: [[forward]] must be tables, each headed [[forward]]")
        return ()
    rules: list[ForwardRule] = []
    for number, values in enumerate(content, 1):
        called = values.get("name")
        plain = isinstance(called, str) and called.isprintable()
        table = Table(f"{file}: [[forward]] {called if plain else number}", values, faults)
        name = table.word("name", blanks=True)
        listen = table.take("listen", str, None, _loopback_address)
        target = table.take("target", str, None, _target_address)
        table.rest()
        for key in sorted({"name", "listen", "target"} - values.keys()):
            table.fault(key, "is missing")
        if name in {rule.name for rule in rules}:
            table.fault("name", "is taken by another forward")
        if name and listen and target:
            rules.append(ForwardRule(name, listen, target))
    return tuple(rules)
