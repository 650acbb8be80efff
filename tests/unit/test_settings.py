from pathlib import Path

import pytest

from tunnel.initialise import Answers, render
from tunnel.settings import Address, Settings, SettingsError, load, load_unchecked, parse_address


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    key = tmp_path / "keys" / "ssh_ed25519"
    key.write_text("secret")
    key.chmod(0o600)
    (tmp_path / "known_hosts").write_text("")
    return tmp_path


def read(home: Path, text: str) -> Settings:
    (home / "config.toml").write_text(text)
    return load(home / "config.toml")


def faults(home: Path, text: str) -> str:
    with pytest.raises(SettingsError) as told:
        read(home, text)
    for fault in told.value.faults:
        assert fault.startswith(str(home / "config.toml"))
    return str(told.value)


SSH = '[ssh]\nhost = "droplet"\n'


def test_defaults(home: Path) -> None:
    settings = read(home, SSH)
    assert settings.listen == Address("127.0.0.1", 5000)
    assert settings.hold == 30
    assert settings.paths == ("ssh",)
    assert settings.ssh.port == 22
    assert settings.ssh.target == Address("127.0.0.1", 5000)
    assert settings.ssh.identity == home / "keys" / "ssh_ed25519"
    assert settings.ssh.known_hosts == home / "known_hosts"
    assert not settings.ssh.use_ssh_config


def test_paths_are_relative_to_the_file(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (home / "other").write_text("")
    (home / "other").chmod(0o600)
    assert read(home, SSH + 'identity = "other"').ssh.identity == home / "other"
    absolute = home / "known_hosts"
    assert read(home, SSH + f'known_hosts = "{absolute}"').ssh.known_hosts == absolute


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("colour = 1\n" + SSH, "[colour]: unknown table"),
        ("[tunnel]\ncolour = 1\n" + SSH, "[tunnel] colour: unknown key"),
        (SSH + "colour = 1", "[ssh] colour: unknown key"),
        ("tunnel = 1\n" + SSH, "[tunnel] must be a table"),
        ("[tunnel]\nlisten = 5000\n" + SSH, "[tunnel] listen: must be a string"),
        ('[tunnel]\nlisten = "5000"\n' + SSH, "[tunnel] listen: must be"),
        ('[tunnel]\nlisten = "0.0.0.0:5000"\n' + SSH, "[tunnel] listen: must be a loopback"),
        ('[tunnel]\nlisten = "[::]:5000"\n' + SSH, "[tunnel] listen: must be a loopback"),
        ('[tunnel]\nlisten = "localhost.evil:5"\n' + SSH, "[tunnel] listen: must be a loopback"),
        ('[tunnel]\nlisten = "127.0.0.1:70000"\n' + SSH, "[tunnel] listen: the port"),
        ("[tunnel]\nhold = true\n" + SSH, "[tunnel] hold: must be a number"),
        ("[tunnel]\nhold = -1\n" + SSH, "[tunnel] hold: must be between"),
        ("[tunnel]\nhold = nan\n" + SSH, "[tunnel] hold: must be between"),
        ("[tunnel]\npaths = []\n" + SSH, "[tunnel] paths: must list"),
        ('[tunnel]\npaths = ["ssh", "ssh"]\n' + SSH, "[tunnel] paths: must list"),
        ('[tunnel]\npaths = ["carrier pigeon"]\n' + SSH, "[tunnel] paths: must list"),
        ("[tunnel]\npaths = [[]]\n" + SSH, "[tunnel] paths: must list"),
        ('[tunnel]\npaths = ["ssh", "https"]\n' + SSH, "there is no [https] table"),
        ('[tunnel]\nallowed_origins = ["evil"]\n' + SSH, "[tunnel] allowed_origins: must be"),
        ("[tunnel]\nallowed_origins = [1]\n" + SSH, "[tunnel] allowed_origins: must be"),
        ("[ssh]\n", "[ssh] host: is missing"),
        ('[ssh]\nhost = ""', "[ssh] host: must be"),
        ('[ssh]\nhost = "a\\nb"', "[ssh] host: must be"),
        (SSH + 'port = "22"', "[ssh] port: must be a whole number"),
        (SSH + "port = 0", "[ssh] port: must be between"),
        (SSH + "port = true", "[ssh] port: must be a whole number"),
        (SSH + 'target = "nowhere"', "[ssh] target: must be"),
        (SSH + 'target = "localhost:0"', "[ssh] target: the port"),
        (SSH + 'proxy_jump = "a b"', "[ssh] proxy_jump: must be"),
        (SSH + "use_ssh_config = 1", "[ssh] use_ssh_config: must be true or false"),
        (SSH + "keepalive = 0", "[ssh] keepalive: must be between"),
        (SSH + 'identity = "none"', "[ssh] identity: "),
        (SSH + 'known_hosts = "none"', "[ssh] known_hosts: "),
        (SSH + "[forward]\n", "[[forward]] must be tables"),
        (SSH + "[[forward]]\n", "[[forward]] 1 target: is missing"),
        (SSH + '[[forward]]\nname="a"\nlisten="1.2.3.4:1"\ntarget="b:1"', "must be a loopback"),
    ],
)
def test_faults(home: Path, text: str, expected: str) -> None:
    assert expected in faults(home, text)


def test_all_faults_in_one_message(home: Path) -> None:
    (home / "keys" / "ssh_ed25519").chmod(0o644)
    text = '[tunnel]\nlisten = 1\nx = 2\n[ssh]\nport = "a"\n[[forward]]\nname = "f"\n'
    told = faults(home, text).splitlines()
    assert len(told) == 7


def test_addresses_and_names_are_taken_once(home: Path) -> None:
    forward = '[[forward]]\nname = "{}"\nlisten = "127.0.0.1:{}"\ntarget = "db:5432"\n'
    text = SSH + forward.format("a", 6000) + forward.format("a", 6001)
    assert "taken by another forward" in faults(home, text)
    text = SSH + forward.format("a", 5000)
    assert "is taken by [tunnel]" in faults(home, text)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda file: file.mkdir(), "cannot be read"),
        (lambda file: file.write_bytes(b"\xff\xfe"), "is not TOML"),
        (lambda file: file.write_text("[ssh\n"), "line 1"),
        (lambda file: None, "no such file"),
    ],
)
def test_files_that_are_none(tmp_path: Path, spoil: object, expected: str) -> None:
    file = tmp_path / "config.toml"
    spoil(file)  # type: ignore[operator]
    with pytest.raises(SettingsError, match=expected):
        load(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("[::1]:80", ("::1", 80)),
        ("db.internal:5432", ("db.internal", 5432)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected
    assert str(parse_address(text)) == text


@pytest.mark.parametrize("text", ["", ":80", "a", "a:", "a:b", "::1:80", "a:80/x", "a :80"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_address(text)


@pytest.mark.parametrize("user", ["me", 'o"brien', "back\\slash"])
def test_what_init_writes_is_what_load_reads(home: Path, user: str) -> None:
    answers = Answers("droplet", 2222, user, Address("::1", 5001), Address("127.0.0.1", 5050))
    (home / "config.toml").write_text(render(answers))
    settings = load_unchecked(home / "config.toml")
    assert (settings.ssh.host, settings.ssh.port, settings.ssh.user) == ("droplet", 2222, user)
    assert (settings.ssh.target, settings.listen) == (answers.target, answers.listen)


def test_jump_hosts(home: Path) -> None:
    hops = read(home, SSH + 'proxy_jump = "me@bastion:2222,[fe80::1]:22,inner"').ssh.jumps
    assert hops == (("me", "bastion", 2222), (None, "fe80::1", 22), (None, "inner", None))
