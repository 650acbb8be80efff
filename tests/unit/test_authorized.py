"""Changes to an authorized_keys file: our line, and not a byte elsewhere."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from keys.errors import KeyFileError
from keys.sshkey import public_line
from tunnel.custody.authorized import beside, has, without


def fresh() -> str:
    return public_line(Ed25519PrivateKey.generate().public_key())


OLD, NEW, OTHER = fresh(), fresh(), fresh()
RULES = 'restrict,command="/usr/sbin/nologin",permitopen="127.0.0.1:1" '
OTHERWISE = f"{RULES}{NEW} as-made"


def test_the_new_line_follows_the_old_one_with_its_options_and_comment() -> None:
    before = f"# mine\n{RULES}{OLD} me@laptop\n{OTHER} friend\n".encode()
    after = beside(before, OLD, NEW, OTHERWISE)
    assert after == (
        f"# mine\n{RULES}{OLD} me@laptop\n{RULES}{NEW} me@laptop\n{OTHER} friend\n".encode()
    )
    assert beside(after, OLD, NEW, OTHERWISE) == after
    assert without(after, OLD) == before.replace(OLD.split()[1].encode(), NEW.split()[1].encode())
    assert without(after, NEW) == before


def test_where_there_is_no_old_line_the_whole_one_is_added() -> None:
    assert beside(b"", OLD, NEW, OTHERWISE) == f"{OTHERWISE}\n".encode()
    assert beside(b"# x", OLD, NEW, OTHERWISE) == f"# x\n{OTHERWISE}\n".encode()


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_last_line_without_an_end(end: str) -> None:
    after = beside(f"{OTHER} x\n{OLD} y{end}".encode(), OLD, NEW, OTHERWISE)
    assert has(after, NEW) and has(after, OLD) and has(after, OTHER)
    assert without(after, NEW).rstrip() == f"{OTHER} x\n{OLD} y".encode()


@pytest.mark.parametrize(
    "line",
    [
        f"#{OLD}",
        f"  # {OLD}",
        f'command="echo {OLD}" {OTHER}',
        f'environment="A=\\" {OLD} " {OTHER} x',
        OLD[:-1],
        "",
    ],
    ids=["comment", "indented", "command", "environment", "shorter", "nothing"],
)
def test_what_only_mentions_the_key_is_not_its_line(line: str) -> None:
    text = f"{line}\n".encode()
    assert not has(text, OLD)
    assert without(text, OLD) == text


@given(st.lists(st.binary(max_size=60).filter(lambda b: OLD.split()[1].encode() not in b)))
def test_other_bytes_stay_as_they_are(lines: list[bytes]) -> None:
    before = b"\n".join(lines) + b"\n"
    ours = f"{RULES}{OLD} me\n".encode()
    assert without(ours + before, OLD) == before
    after = beside(ours + before, OLD, NEW, OTHERWISE)
    assert without(after, NEW) == ours + before


@pytest.mark.parametrize("public", ["", "ssh-ed25519"])
def test_what_is_no_key_matches_nothing(public: str) -> None:
    with pytest.raises(KeyFileError):
        has(b"x\n", public)
