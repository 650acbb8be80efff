import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from keys.table import Table
from tunnel.settings import (
    Address,
    ForwardRule,
    Https,
    Settings,
    SettingsError,
    home,
    load,
    load_unchecked,
    parse,
    parse_address,
)

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
NOT_ROOT = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything"
)
SSH = '[ssh]\nhost = "droplet"\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A home with a key and known_hosts, and no settings yet."""
    (tmp_path / "keys").mkdir()
    key = tmp_path / "keys" / "ssh_ed25519"
    key.write_text("secret")
    key.chmod(0o600)
    (tmp_path / "known_hosts").write_text("")
    return tmp_path


def read(place: Path, text: str) -> Settings:
    (place / "config.toml").write_text(text, encoding="utf-8")
    return load(place / "config.toml")


def faults(place: Path, text: str) -> list[str]:
    """Return the faults without the file, which each must name; they are a line each."""
    with pytest.raises(SettingsError) as told:
        read(place, text)
    assert str(told.value).splitlines() == told.value.faults
    start = f"{place / 'config.toml'}: "
    assert all(fault.startswith(start) for fault in told.value.faults)
    return [fault.removeprefix(start) for fault in told.value.faults]


def one_fault(place: Path, text: str) -> str:
    [fault] = faults(place, text)
    return fault


# What is read.


def test_defaults(place: Path) -> None:
    settings = read(place, SSH)
    assert settings.file == place / "config.toml"
    assert settings.listen == Address("127.0.0.1", 5000)
    assert settings.hold == 30
    assert settings.silence == 300
    assert settings.paths == ("ssh",)
    assert settings.allowed_origins == frozenset()
    assert settings.forwards == ()
    assert (settings.ssh.host, settings.ssh.port, settings.ssh.user) == ("droplet", 22, None)
    assert settings.ssh.target == Address("127.0.0.1", 5000)
    assert settings.ssh.identity == place / "keys" / "ssh_ed25519"
    assert settings.ssh.known_hosts == place / "known_hosts"
    assert settings.ssh.jumps == ()
    assert settings.ssh.keepalive == 5
    assert not settings.ssh.use_ssh_config


def test_everything_given(place: Path) -> None:
    settings = read(
        place,
        """
        [tunnel]
        listen = "[::1]:5050"
        paths = ["ssh"]
        hold = 0
        silence = 1.5
        allowed_origins = ["https://app.example", "http://other.example:8080"]

        [ssh]
        host = "droplet"
        port = 2222
        user = "me"
        target = "db.internal:80"
        proxy_jump = "bastion"
        keepalive = 60

        [[forward]]
        name = "database"
        listen = "127.0.0.1:15432"
        target = "127.0.0.1:5432"

        [[forward]]
        name = "any port"
        listen = "localhost:0"
        target = "[fe80::1]:80"
        """,
    )
    assert settings.listen == Address("::1", 5050)
    assert (settings.hold, settings.silence) == (0, 1.5)
    assert settings.allowed_origins == {"https://app.example", "http://other.example:8080"}
    assert (settings.ssh.port, settings.ssh.user) == (2222, "me")
    assert (settings.ssh.target, settings.ssh.keepalive) == (Address("db.internal", 80), 60)
    assert settings.forwards == (
        ForwardRule("database", Address("127.0.0.1", 15432), Address("127.0.0.1", 5432)),
        ForwardRule("any port", Address("localhost", 0), Address("fe80::1", 80)),
    )


def test_the_users_own_ssh_configuration_decides_what_is_not_given(place: Path) -> None:
    ssh = read(place, SSH + "use_ssh_config = true").ssh
    assert (ssh.port, ssh.user, ssh.identity) == (None, None, None)
    given = 'use_ssh_config = true\nport = 23\nidentity = "keys/ssh_ed25519"'
    ssh = read(place, SSH + given).ssh
    assert (ssh.port, ssh.identity) == (23, place / "keys" / "ssh_ed25519")


def test_paths_are_relative_to_the_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (place / "other").write_text("")
    (place / "other").chmod(0o600)
    assert read(place, SSH + 'identity = "other"').ssh.identity == place / "other"
    absolute = place / "known_hosts"
    assert read(place, SSH + f"known_hosts = '{absolute}'").ssh.known_hosts == absolute


def test_a_tilde_is_the_users_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("USERPROFILE", str(place))
    assert read(place, SSH + 'known_hosts = "~/known_hosts"').ssh.known_hosts == (
        place / "known_hosts"
    )


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CATALYST_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("CATALYST_HOME")
    assert home() == Path.home() / ".catalyst-tunnel"
    monkeypatch.setenv("CATALYST_HOME", "")
    assert home() == Path.home() / ".catalyst-tunnel"


def test_a_byte_order_mark_is_no_fault(place: Path) -> None:
    """Editors on Windows write one."""
    assert read(place, "\ufeff" + SSH).ssh.host == "droplet"


def test_jump_hosts(place: Path) -> None:
    hops = read(place, SSH + 'proxy_jump = "me@bastion:2222,[fe80::1]:22,inner"').ssh.jumps
    assert hops == (("me", "bastion", 2222), (None, "fe80::1", 22), (None, "inner", None))


# What is refused.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("colour = 1\n" + SSH, "[colour]: unknown table"),
        ("[colour]\n" + SSH, "[colour]: unknown table"),
        ("[tunnel]\ncolour = 1\n" + SSH, "[tunnel] colour: unknown key"),
        (SSH + "colour = 1", "[ssh] colour: unknown key"),
        (SSH + "Host = 1", "[ssh] Host: unknown key"),
        ("tunnel = 1\n" + SSH, "[tunnel] must be a table"),
        ("[[tunnel]]\n" + SSH, "[tunnel] must be a table"),
        ("[tunnel]\nlisten = 5000\n" + SSH, "[tunnel] listen: must be a string"),
        ('[tunnel]\nlisten = ["127.0.0.1:5000"]\n' + SSH, "[tunnel] listen: must be a string"),
        ('[tunnel]\nlisten = ""\n' + SSH, "[tunnel] listen: must be"),
        ('[tunnel]\nlisten = "5000"\n' + SSH, "[tunnel] listen: must be"),
        ('[tunnel]\nlisten = "127.0.0.1:70000"\n' + SSH, "[tunnel] listen: the port"),
        ("[tunnel]\nhold = true\n" + SSH, "[tunnel] hold: must be a number"),
        ('[tunnel]\nhold = "30"\n' + SSH, "[tunnel] hold: must be a number"),
        ("[tunnel]\nhold = -1\n" + SSH, "[tunnel] hold: must be between"),
        ("[tunnel]\nhold = 601\n" + SSH, "[tunnel] hold: must be between"),
        ("[tunnel]\nhold = nan\n" + SSH, "[tunnel] hold: must be between"),
        ("[tunnel]\nhold = inf\n" + SSH, "[tunnel] hold: must be between"),
        ("[tunnel]\nhold = 1" + "0" * 400 + "\n" + SSH, "[tunnel] hold: must be"),
        ("[tunnel]\nsilence = 0\n" + SSH, "[tunnel] silence: must be between"),
        ("[tunnel]\npaths = []\n" + SSH, "[tunnel] paths: must list"),
        ('[tunnel]\npaths = "ssh"\n' + SSH, "[tunnel] paths: must be a list"),
        ('[tunnel]\npaths = ["ssh", "ssh"]\n' + SSH, "[tunnel] paths: must list"),
        ('[tunnel]\npaths = ["carrier pigeon"]\n' + SSH, "[tunnel] paths: must list"),
        ("[tunnel]\npaths = [[]]\n" + SSH, "[tunnel] paths: must list"),
        ("[tunnel]\npaths = [1]\n" + SSH, "[tunnel] paths: must list"),
        ('[tunnel]\npaths = ["ssh", "https"]\n' + SSH, "there is no [https] table"),
        ('[tunnel]\nallowed_origins = "https://a.example"\n' + SSH, "must be a list"),
        ('[tunnel]\nallowed_origins = ["evil"]\n' + SSH, "[tunnel] allowed_origins: must be"),
        ('[tunnel]\nallowed_origins = ["null"]\n' + SSH, "[tunnel] allowed_origins: must be"),
        ('[tunnel]\nallowed_origins = ["*"]\n' + SSH, "[tunnel] allowed_origins: must be"),
        ('[tunnel]\nallowed_origins = ["https://a.example/"]\n' + SSH, "allowed_origins: must be"),
        ("[tunnel]\nallowed_origins = [1]\n" + SSH, "[tunnel] allowed_origins: must be"),
        ('[tunnel]\nallowed_origins = ["http://["]\n' + SSH, "[tunnel] allowed_origins: "),
        ("", "[ssh] host: is missing"),
        ("[ssh]\n", "[ssh] host: is missing"),
        ('[ssh]\nhost = ""', "[ssh] host: must be"),
        ('[ssh]\nhost = " a"', "[ssh] host: must be"),
        ('[ssh]\nhost = "a\\nb"', "[ssh] host: must be"),
        ('[ssh]\nhost = "a\\u0000"', "[ssh] host: must be"),
        ('[ssh]\nhost = ["a"]', "[ssh] host: must be a string"),
        ('[ssh]\nhost = "a b"', "[ssh] host: must be"),
        (SSH + 'user = ""', "[ssh] user: must be"),
        (SSH + 'user = "a b"', "[ssh] user: must be"),
        (SSH + 'port = "22"', "[ssh] port: must be a whole number"),
        (SSH + "port = 22.0", "[ssh] port: must be a whole number"),
        (SSH + "port = true", "[ssh] port: must be a whole number"),
        (SSH + "port = 0", "[ssh] port: must be between"),
        (SSH + "port = 65536", "[ssh] port: must be between"),
        (SSH + 'target = "nowhere"', "[ssh] target: must be"),
        (SSH + 'target = "localhost:0"', "[ssh] target: the port"),
        (SSH + 'target = "localhost:65536"', "[ssh] target: the port"),
        (SSH + 'proxy_jump = ""', "[ssh] proxy_jump: must be"),
        (SSH + 'proxy_jump = "a b"', "[ssh] proxy_jump: must be"),
        (SSH + 'proxy_jump = "a,,b"', "[ssh] proxy_jump: must be"),
        (SSH + 'proxy_jump = "a:65536"', "[ssh] proxy_jump: "),
        (SSH + 'proxy_jump = "a:0"', "[ssh] proxy_jump: "),
        (SSH + "use_ssh_config = 1", "[ssh] use_ssh_config: must be true or false"),
        (SSH + "keepalive = 0", "[ssh] keepalive: must be between"),
        (SSH + 'identity = ""', "[ssh] identity: "),
        (SSH + 'identity = "none"', "[ssh] identity: "),
        (SSH + 'identity = "keys"', "[ssh] identity: "),
        (SSH + "identity = 1", "[ssh] identity: must be a string"),
        (SSH + 'identity = "~nobody-of-that-name/key"', "[ssh] identity: "),
        (SSH + 'identity = "a\\u0000b"', "[ssh] identity: "),
        (SSH + 'known_hosts = "none"', "does not exist. `catalyst-tunnel init` pins"),
        (SSH + 'known_hosts = "keys"', "[ssh] known_hosts: "),
        (SSH + 'known_hosts = "~nobody-of-that-name/x"', "[ssh] known_hosts: "),
        (SSH + 'known_hosts = "a\\u0000b"', "[ssh] known_hosts: "),
        ("forward = 1\n" + SSH, "[[forward]] must be tables"),
        ("forward = [1]\n" + SSH, "[[forward]] must be tables"),
        (SSH + "[forward]\n", "[[forward]] must be tables"),
    ],
)
def test_a_fault_is_told_with_its_key(place: Path, text: str, expected: str) -> None:
    assert expected in one_fault(place, text)


FORWARD = '[[forward]]\nname = "{}"\nlisten = "{}"\ntarget = "{}"\n'


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (FORWARD.format("", "127.0.0.1:1", "b:1"), " name: must be"),
        (FORWARD.format("a\\nb", "127.0.0.1:1", "b:1"), " name: must be"),
        (FORWARD.format("a", "x", "b:1"), "[[forward]] a listen: must be"),
        (FORWARD.format("a", "1.2.3.4:1", "b:1"), "[[forward]] a listen: must be a loopback"),
        (FORWARD.format("a", "127.0.0.1:1", "b"), "[[forward]] a target: must be"),
        (FORWARD.format("a", "127.0.0.1:1", "b:0"), "[[forward]] a target: the port"),
        (FORWARD.format("a", "127.0.0.1:1", "b:1") + "x = 1", "[[forward]] a x: unknown key"),
        (
            '[[forward]]\nlisten = "127.0.0.1:1"\ntarget = "b:1"\n',
            "[[forward]] 1 name: is missing",
        ),
        (FORWARD.format("a", "127.0.0.1:5000", "b:1"), "is taken by [tunnel]"),
        (FORWARD.format("a", "[::1]:5000", "b:1"), "is taken by [tunnel]"),
        (FORWARD.format("a", "localhost:5000", "b:1"), "is taken by [tunnel]"),
        (
            FORWARD.format("a", "127.0.0.1:1", "b:1") + FORWARD.format("a", "127.0.0.1:2", "b:1"),
            "[[forward]] a name: is taken by another forward",
        ),
        (
            FORWARD.format("a", "127.0.0.1:1", "b:1") + FORWARD.format("b", "127.0.0.1:1", "b:1"),
            "is taken by [[forward]] a",
        ),
        (
            FORWARD.format("a", "127.0.0.1:1", "b:1") + FORWARD.format("b", "localhost:1", "b:1"),
            "is taken by [[forward]] a",
        ),
    ],
)
def test_a_forward_at_fault_is_named(place: Path, forward: str, expected: str) -> None:
    assert expected in one_fault(place, SSH + forward)


def test_an_empty_forward_misses_everything(place: Path) -> None:
    told = faults(place, SSH + "[[forward]]\n")
    assert [fault.split(":")[0] for fault in told] == [
        f"[[forward]] 1 {key}" for key in ("listen", "name", "target")
    ]


@pytest.mark.parametrize("listen", ["127.0.0.2:5000", "127.0.0.1:0", "127.0.0.1:5001"])
def test_another_address_is_free(place: Path, listen: str) -> None:
    forwards = FORWARD.format("a", "127.0.0.1:0", "b:1") + FORWARD.format("b", listen, "b:1")
    assert len(read(place, SSH + forwards).forwards) == 2


@pytest.mark.parametrize(
    "listen",
    [
        "0.0.0.0:5000",
        "[::]:5000",
        "192.168.1.5:5000",
        "[fe80::1]:5000",
        "droplet:5000",
        "localhost.evil:5000",
        "127.0.0.1.evil:5000",
        "*:5000",
    ],
)
def test_no_address_that_others_can_reach_is_listened_on(place: Path, listen: str) -> None:
    told = one_fault(place, f'[tunnel]\nlisten = "{listen}"\n' + SSH)
    assert told.startswith("[tunnel] listen: must be ")


def test_a_table_that_is_none_is_read_as_an_empty_one(place: Path) -> None:
    assert faults(place, "ssh = 1") == [
        "[ssh] must be a table",
        "[ssh] host: is missing: the name or address of the droplet",
    ]


def test_unknown_keys_are_told_with_the_known_ones(place: Path) -> None:
    told = one_fault(place, SSH + "hots = 1")
    assert "known_hosts" in told
    assert "proxy_jump" in told


HTTPS = '[https]\nurl = "https://droplet.example/mcp"\nclient = "laptop"\n'


def test_the_https_path_is_second_where_there_is_one(place: Path) -> None:
    settings = parse(place / "config.toml", SSH + HTTPS)
    assert settings.paths == ("ssh", "https")
    assert settings.https == Https(
        host="droplet.example",
        port=443,
        base=b"/mcp",
        client="laptop",
        audience="catalyst-gateway:droplet.example",
        cert=place / "keys" / "tls.crt",
        key=place / "keys" / "tls.key",
        token_key=place / "keys" / "token.key",
        follows=True,
        token_follows=True,
    )
    assert settings.https.authority == "droplet.example"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://[::1]:8443/a/b/", ("::1", 8443, b"/a/b", "[::1]:8443")),
        ("https://droplet", ("droplet", 443, b"", "droplet")),
    ],
)
def test_urls(place: Path, url: str, expected: tuple[object, ...]) -> None:
    text = f'[https]\nurl = "{url}"\nclient = "laptop"\n[tunnel]\npaths = ["https"]\n'
    https = parse(place / "config.toml", text).https
    assert https is not None
    assert (https.host, https.port, https.base, https.authority) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://droplet/mcp",
        "droplet",
        "https://",
        "https://user:word@droplet/mcp",
        "https://droplet:0/mcp",
        "https://droplet:65536/mcp",
        "https://droplet/mcp?x",
        "https://droplet/mcp#x",
        "https://droplet/a b",
        "https://drop\u00e9/mcp",
    ],
)
def test_what_is_no_url_of_a_gateway(place: Path, url: str) -> None:
    text = SSH + f'[https]\nurl = "{url}"\nclient = "laptop"\n'
    told = "\n".join(faults(place, text))
    assert '[https] url: must be "https://HOST[:PORT]/PATH"' in told


def test_an_empty_https_table_is_told_all_it_lacks(place: Path) -> None:
    told = "\n".join(faults(place, SSH + "[https]"))
    assert "[https] url: is missing" in told
    assert "[https] client: is missing" in told


def test_a_path_needs_its_table(place: Path) -> None:
    assert "[https]" in one_fault(place, '[tunnel]\npaths = ["ssh", "https"]\n' + SSH)
    assert "[ssh] gateway: needs [https]" in one_fault(place, SSH + "gateway = true")


def test_forwards_need_ssh(place: Path) -> None:
    text = '[tunnel]\npaths = ["https"]\n' + HTTPS
    text += '[[forward]]\nname = "x"\nlisten = "127.0.0.1:1"\ntarget = "a:1"\n'
    assert "[[forward]]: needs the ssh path" in "\n".join(faults(place, text))


def test_what_the_https_path_needs_is_asked_for_where_it_is_used(place: Path) -> None:
    file = place / "config.toml"
    file.write_text(SSH + HTTPS)
    with pytest.raises(SettingsError) as told:
        load(file)
    text = str(told.value)
    assert "token_key: " in text
    assert "keys request" in text
    assert "keys accept" in text
    assert load(file, "ssh").paths == ("ssh",)
    file.write_text(SSH)
    with pytest.raises(SettingsError, match=r"no \[https\] table"):
        load(file, "https")


def test_all_faults_in_one_message(place: Path) -> None:
    (place / "keys" / "ssh_ed25519").unlink()
    (place / "known_hosts").unlink()
    told = faults(
        place,
        'colour = 1\n[tunnel]\nlisten = 1\nx = 2\n[ssh]\nport = "a"\n[[forward]]\nname = "f"\n',
    )
    starts = [
        "[colour]: unknown table",
        "[tunnel] listen: must be a string",
        "[tunnel] x: unknown key",
        "[ssh] port: must be a whole number",
        "[ssh] host: is missing",
        "[[forward]] f listen: is missing",
        "[[forward]] f target: is missing",
        "[ssh] identity: ",
        "[ssh] known_hosts: ",
    ]
    assert len(told) == len(starts)
    for start in starts:
        assert any(fault.startswith(start) for fault in told), start


# The files.


@POSIX
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_key_that_others_can_touch_is_refused_with_the_repair(place: Path, mode: int) -> None:
    key = place / "keys" / "ssh_ed25519"
    key.chmod(mode)
    told = one_fault(place, SSH)
    assert told.startswith("[ssh] identity: ")
    assert f"chmod 600 {key}" in told
    assert "secret" not in told


@NOT_ROOT
@pytest.mark.parametrize(
    ("file", "expected"),
    [("known_hosts", "[ssh] known_hosts: "), ("keys/ssh_ed25519", "[ssh] identity: ")],
)
def test_a_file_that_we_may_not_read(place: Path, file: str, expected: str) -> None:
    (place / file).chmod(0)
    told = one_fault(place, SSH)
    assert told.startswith(expected)
    assert "cannot be read" in told


def test_what_is_missing_yet_can_be_passed_over(place: Path) -> None:
    (place / "keys" / "ssh_ed25519").unlink()
    (place / "known_hosts").unlink()
    (place / "config.toml").write_text(SSH)
    assert load_unchecked(place / "config.toml").ssh.host == "droplet"
    (place / "config.toml").write_text(SSH + "x = 1\ny = 2\n")
    with pytest.raises(SettingsError) as told:
        load_unchecked(place / "config.toml")
    assert len(told.value.faults) == 2


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (Path.mkdir, "cannot be read"),
        (lambda file: file.write_bytes(b"\xff\xfe"), "is not TOML"),
        (lambda file: file.write_bytes(b"\0"), "is not TOML"),
        (lambda file: file.write_text("[ssh\n"), "line 1"),
        (lambda file: file.write_text('[ssh]\nhost = "a"\nhost = "b"\n'), "line 3"),
        (lambda file: file.write_text("x = " + "[" * 5000), "nested too deeply"),
        (lambda file: None, "no such file.*init"),
    ],
)
def test_files_that_are_none(
    tmp_path: Path, spoil: Callable[[Path], object], expected: str
) -> None:
    file = tmp_path / "config.toml"
    spoil(file)
    with pytest.raises(SettingsError, match=expected) as told:
        load(file)
    assert str(told.value).startswith(str(file))


# Addresses.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:80", ("::1", 80)),
        ("db.internal:65535", ("db.internal", 65535)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "a",
        "a:",
        "a:b",
        "a:-1",
        "a:65536",
        "a:999999",
        "::1:80",
        "[::1]",
        "[g]:80",
        "a:80/x",
        "a:80\n",
        "a :80",
        "a: 80",
        "http://a:80",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_address(text)


# The table on its own.


def test_a_table_gives_what_is_there_and_keeps_every_fault() -> None:
    faults: list[str] = []
    table = Table("f: [t]", {"a": 1, "b": "x", "c": True, "d": 2, "z": 0}, faults)
    assert table.take("a", int, 9, lambda value: value + 1) == 2
    assert table.take("b", int, 9, lambda value: value + 1) == 9
    assert table.take("missing", int, 9, lambda value: value + 1) == 9
    assert table.seconds("d", 1.0, 0, 2) == 2.0
    assert table.flag("c")
    assert not table.flag("also missing")
    assert table.word("a") is None
    table.rest()
    assert faults == [
        "f: [t] b: must be a whole number",
        "f: [t] a: must be a string",
        "f: [t] z: unknown key (known here: a, also missing, b, c, d, missing)",
    ]
