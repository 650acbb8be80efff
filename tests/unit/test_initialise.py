import re
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keys.sshkey import KeyFileError, authorized_line, make_key, public_half
from tunnel.initialise import KEY, Answers, ensure_key, line_for, render, write_settings
from tunnel.settings import (
    Address,
    ForwardRule,
    Settings,
    SettingsError,
    Ssh,
    load,
    load_unchecked,
    parse,
)

ANSWERS = Answers(
    "droplet.example", 2222, "me", Address("127.0.0.1", 5000), Address("127.0.0.1", 5050)
)
WORDS = st.text(min_size=1, max_size=20).filter(
    lambda text: text.isprintable() and not re.search(r"\s", text)
)
PORTS = st.integers(1, 65535)
LOCAL = st.sampled_from(["127.0.0.1", "::1", "localhost", "127.0.0.2"])
FAR = LOCAL | st.just("db.internal")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@settings(max_examples=60, deadline=None)
@given(
    host=WORDS, port=PORTS, user=WORDS, listen=st.tuples(LOCAL, PORTS), target=st.tuples(FAR, PORTS)
)
@example("h", 1, 'o"brien', ("::1", 1), ("::1", 1))
@example("h", 1, "back\\slash", ("::1", 1), ("::1", 1))
@example("h", 1, "'#[x]", ("::1", 1), ("::1", 1))
@example("h", 1, "Grüße", ("::1", 1), ("::1", 1))
@example("h", 1, "\U0001f600", ("::1", 1), ("::1", 1))
def test_what_is_written_is_what_is_read(
    host: str, port: int, user: str, listen: tuple[str, int], target: tuple[str, int]
) -> None:
    answers = Answers(host, port, user, Address(*target), Address(*listen))
    read = parse(Path("config.toml"), render(answers))
    assert (read.ssh.host, read.ssh.port, read.ssh.user) == (host, port, user)
    assert (read.ssh.target, read.listen) == (answers.target, answers.listen)


def test_what_is_written_out_are_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(render(ANSWERS))
    written = load_unchecked(tmp_path / "config.toml")
    (tmp_path / "config.toml").write_text('[ssh]\nhost = "droplet.example"\n')
    default = load_unchecked(tmp_path / "config.toml")
    assert (written.paths, written.hold) == (default.paths, default.hold)
    assert written.ssh.identity == default.ssh.identity == tmp_path / KEY
    assert written.ssh.known_hosts == default.ssh.known_hosts
    assert written.forwards == ()


def test_the_example_in_it_is_a_forward_that_works(tmp_path: Path) -> None:
    head, mark, example = render(ANSWERS).partition("# [[forward]]")
    text = head + (mark + example).replace("# ", "")
    (tmp_path / "config.toml").write_text(text)
    [rule] = load_unchecked(tmp_path / "config.toml").forwards
    assert rule.name == "database"


def test_once_the_key_and_the_host_key_are_there_it_loads(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_settings(home / "config.toml", ANSWERS)
    ensure_key(home / KEY)
    (home / "known_hosts").write_text("")
    assert load(home / "config.toml").ssh.identity == home / KEY
    if sys.platform != "win32":
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "config.toml").stat().st_mode) == 0o600


def test_settings_are_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("mine")
    with pytest.raises(FileExistsError):
        write_settings(file, ANSWERS)
    assert file.read_text() == "mine"
    assert names(tmp_path) == ["config.toml"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"listen": Address("0.0.0.0", 5000)}, "[tunnel] listen: must be a loopback"),
        ({"target": Address("127.0.0.1", 0)}, "[ssh] target: the port"),
        ({"host": ""}, "[ssh] host: must be"),
        ({"host": "a\nb"}, "[ssh] host: must be"),
        ({"user": " "}, "[ssh] user: must be"),
    ],
)
def test_answers_at_fault_write_nothing(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    with pytest.raises(SettingsError) as told:
        write_settings(tmp_path / "config.toml", replace(ANSWERS, **change))
    assert expected in str(told.value)
    assert names(tmp_path) == []


def test_a_key_is_made_once(tmp_path: Path) -> None:
    key = tmp_path / "keys" / "key"
    public, made = ensure_key(key)
    assert made
    content = key.read_bytes()
    assert ensure_key(key) == (public, False)
    assert key.read_bytes() == content
    assert public_half(key) == public


@pytest.mark.parametrize("there", [b"", b"damaged", b"\xff\xfe"])
def test_what_is_no_key_is_left_as_it_was(tmp_path: Path, there: bytes) -> None:
    key = tmp_path / "key"
    key.write_bytes(there)
    with pytest.raises(KeyFileError):
        ensure_key(key)
    assert key.read_bytes() == there
    assert names(tmp_path) == ["key"]


def test_a_key_that_was_there_before_is_used(tmp_path: Path) -> None:
    public = make_key(tmp_path / "key")
    (tmp_path / "key.pub").unlink()
    assert ensure_key(tmp_path / "key") == (public, False)


def test_the_line_permits_each_target_once_and_nothing_else(tmp_path: Path) -> None:
    service, database = Address("127.0.0.1", 5000), Address("::1", 5432)
    settings = Settings(
        file=tmp_path / "config.toml",
        ssh=Ssh("droplet", tmp_path / "known_hosts", target=service),
        forwards=tuple(
            ForwardRule(str(number), Address("127.0.0.1", 0), target)
            for number, target in enumerate([database, service, database])
        ),
    )
    line = line_for(settings, "ssh-ed25519 AAAA")
    *_, comment = line.split(" ")
    assert comment.startswith("catalyst-tunnel:")
    targets = ["127.0.0.1:5000", "[::1]:5432"]
    assert line == authorized_line("ssh-ed25519 AAAA", targets, comment)
