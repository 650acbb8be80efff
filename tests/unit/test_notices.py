"""What is told before it ends, and what is renewed by itself."""

import os
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from keys import certs
from keys.files import write_private
from keys.keyring import make_token_key
from keys.sshkey import make_key
from tunnel.custody.keyfacts import due, key_facts, local_notices
from tunnel.custody.notices import DAY, REMEDIES, Notice, ending, renewal_due
from tunnel.settings import Settings, load_unchecked

CONFIG = """\
[ssh]
host = "droplet.example"
gateway = true
[https]
url = "https://droplet.example/mcp"
client = "laptop"
"""


def laptop(home: Path, *, begin: float = 0.0, days: int = 365, keys: str = "") -> Settings:
    """A laptop whose certificate began so many days ago."""
    now = time.time() - begin * DAY
    make_key(home / "keys" / "ssh_ed25519")
    make_token_key(home / "keys" / "token.key")
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(home / "keys" / "tls.key", certs.private_pem(key), replace=False)
    authority = certs.make_authority("test", now)
    made = certs.issue(authority, certs.make_request(key), "laptop", now, days)
    write_private(home / "keys" / "tls.crt", made, replace=False)
    (home / "config.toml").write_text(f"{CONFIG}{keys}")
    return load_unchecked(home / "config.toml")


def test_a_laptop_that_is_well_has_nothing_to_tell(tmp_path: Path) -> None:
    settings = laptop(tmp_path)
    facts = key_facts(settings)
    assert [one.family for one in facts] == ["ssh", "token", "cert"]
    assert all(one.name and one.fault is None for one in facts)
    assert local_notices(settings, facts, time.time()) == []
    assert due(settings, facts, time.time()) == ()


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (2.0, "in 2 days"),
        (1.1, "in 1 day"),
        (0.1, "in less than a day"),
        (-0.1, "ended less than a day ago"),
        (-1.0, "ended 1 day ago"),
    ],
)
def test_days_are_told_as_people_say_them(left: float, words: str) -> None:
    [notice] = ending("certificate_ending", "It", 1e9 + left * DAY, 1e9)
    assert notice.message.endswith(f"{words}.")


@pytest.mark.parametrize(("left", "told"), [(31, False), (29, True), (0, True), (-3, True)])
def test_an_end_is_told_thirty_days_before_it(left: float, told: bool) -> None:
    now = 1e9
    found = ending("certificate_ending", "It", now + left * DAY, now)
    assert bool(found) is told
    if told:
        assert found[0].remedy == REMEDIES["certificate_ending"]
        assert ("has ended" in str(found[0])) is (left < 0)


def test_what_has_no_end_is_not_told() -> None:
    assert ending("site_certificate_ending", "It", None, 1e9) == []


@pytest.mark.parametrize(("begin", "expected"), [(100, ()), (260, ("cert",)), (400, ("cert",))])
def test_a_certificate_is_renewed_at_two_thirds_and_after_its_end(
    tmp_path: Path, begin: float, expected: tuple[str, ...]
) -> None:
    settings = laptop(tmp_path, begin=begin)
    assert due(settings, key_facts(settings), time.time()) == expected


@given(st.floats(0, 1), st.floats(1, 4000))
def test_renewal_comes_in_time_and_not_at_once(jitter: float, days: float) -> None:
    end = days * DAY
    assert not renewal_due(0, end, 0.5 * end, jitter)
    assert renewal_due(0, end, 2 / 3 * end + 1, jitter)
    assert renewal_due(0, end, end + 1, jitter)


def test_keys_are_due_by_age_where_the_settings_say_so(tmp_path: Path) -> None:
    settings = laptop(tmp_path, keys="[keys]\nmax_age_token = 90\nmax_age_ssh = 200\n")
    old = time.time() - 100 * DAY
    for name in ("token.key", "ssh_ed25519"):
        os.utime(tmp_path / "keys" / name, (old, old))
    facts = key_facts(settings)
    assert due(settings, facts, time.time()) == ("token",)
    [notice] = local_notices(settings, facts, time.time())
    assert notice.code == "key_old"
    assert "token key is 100 days old" in str(notice)


@pytest.mark.parametrize("age", ["0", "3651", '"90"', "true", "1.5"])
def test_ages_that_make_no_sense_are_refused(tmp_path: Path, age: str) -> None:
    from tunnel.settings import SettingsError, parse

    with pytest.raises(SettingsError, match="max_age"):
        parse(tmp_path / "config.toml", f"{CONFIG}[keys]\nmax_age = {age}\n")


def spoil_mode(path: Path) -> None:
    path.chmod(0o644)


def spoil_owner(path: Path) -> None:
    os.chown(path, 12345, 12345)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_type(path: Path) -> None:
    other = path.parent / ("tls.key" if path.name != "tls.key" else "token.key")
    path.write_bytes(other.read_bytes())


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [spoil_mode, spoil_owner, truncate, empty, other_type, remove])
@pytest.mark.parametrize("name", ["ssh_ed25519", "token.key", "tls.key", "tls.crt"])
def test_a_file_that_cannot_be_used_is_told_with_the_repair(
    tmp_path: Path, name: str, spoil: object
) -> None:
    public = name == "tls.crt" and spoil in (spoil_mode, spoil_owner)
    if public or (spoil is spoil_owner and os.geteuid() != 0):
        pytest.skip("anybody may read or own it")
    settings = laptop(tmp_path)
    assert callable(spoil)
    spoil(tmp_path / "keys" / name)
    faults = [one.fault for one in key_facts(settings) if one.fault]
    assert len(faults) == 1
    assert name in faults[0]
    repairs = ("chmod 600", "chown", "Bring it back", "makes a key", "cannot be read")
    assert any(repair in faults[0] for repair in repairs)


def test_a_certificate_of_another_key_is_told(tmp_path: Path) -> None:
    settings = laptop(tmp_path / "one")
    other = laptop(tmp_path / "other")
    assert other.https is not None
    (tmp_path / "one" / "keys" / "tls.crt").write_bytes(other.https.cert.read_bytes())
    [fault] = [one.fault for one in key_facts(settings) if one.fault]
    assert "another key" in fault


def test_every_notice_has_words() -> None:
    for code in REMEDIES:
        assert Notice(code, "It is so.").to_json()["remedy"].endswith(".")
