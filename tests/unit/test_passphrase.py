"""Private keys under a passphrase that the system's keyring keeps."""

import sys
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked

from keys.errors import KeyFileError
from keys.pointer import FAMILIES, Names
from tunnel.custody import passphrase
from tunnel.custody.keyfacts import key_facts
from tunnel.custody.keyfiles import unlock_new
from tunnel.custody.keystore import KeyStore
from tunnel.settings import SettingsError, load_unchecked, parse

CONFIG = '[ssh]\nhost = "droplet.example"\n[keys]\npassphrase = "keyring"\n'


class Ring(KeyringBackend):
    """A keyring in memory."""

    priority = 1.0  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False
        self.asked = 0

    def get_password(self, service: str, username: str) -> str | None:
        self.asked += 1
        if self.locked:
            raise KeyringLocked("locked")
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.locked:
            raise KeyringLocked("locked")
        self.kept[service, username] = password


@pytest.fixture
def ring() -> Iterator[Ring]:
    before = keyring.get_keyring()
    ours = Ring()
    keyring.set_keyring(ours)
    yield ours
    keyring.set_keyring(before)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path / "config.toml"


def test_new_keys_are_locked_and_read_again(config: Path, ring: Ring) -> None:
    settings = load_unchecked(config)
    unlock = unlock_new(settings)
    assert unlock is not None
    store = KeyStore(config.parent / "keys", unlock)
    store.make(Names(), FAMILIES)
    [secret] = ring.kept.values()
    assert len(secret) >= 43
    for name in ("ssh_ed25519", "token.key", "tls.key"):
        text = (config.parent / "keys" / name).read_text()
        assert text.startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert secret not in text
    assert store.csr(Names()).startswith("-----BEGIN CERTIFICATE REQUEST-----")
    assert store.called(Names(), ("ssh", "token")).kid
    [fact] = key_facts(settings)
    assert (fact.family, fact.fault) == ("ssh", None)
    key = asyncssh.read_private_key(config.parent / "keys" / "ssh_ed25519", secret)
    assert key.get_fingerprint() == fact.name


def test_keys_from_before_need_no_passphrase(config: Path, ring: Ring) -> None:
    KeyStore(config.parent / "keys").make(Names(), FAMILIES)
    [fact] = key_facts(load_unchecked(config))
    assert fact.fault is None
    assert ring.asked == 0


def test_one_passphrase_for_a_home(config: Path, ring: Ring) -> None:
    settings = load_unchecked(config)
    first, second = unlock_new(settings), unlock_new(settings)
    assert first is not None and second is not None
    assert first() == second() == passphrase.passphrase(config.parent)
    assert len(ring.kept) == 1


def test_without_the_passphrase_it_is_told_in_words(config: Path, ring: Ring) -> None:
    settings = load_unchecked(config)
    KeyStore(config.parent / "keys", unlock_new(settings)).make(Names(), FAMILIES)
    kept = dict(ring.kept)
    ring.kept.clear()
    [fact] = key_facts(settings)
    assert fact.fault is not None
    assert "keyring has no passphrase" in fact.fault
    ring.kept = dict.fromkeys(kept, "another")
    [fact] = key_facts(settings)
    assert fact.fault is not None
    ring.locked = True
    [fact] = key_facts(settings)
    assert fact.fault is not None
    assert "cannot be used (KeyringLocked)" in fact.fault
    assert all(secret not in fact.fault for secret in kept.values())
    with pytest.raises(KeyFileError, match="cannot be used"):
        unlock_new(settings)


def test_locked_keys_without_the_setting_are_refused(config: Path, ring: Ring) -> None:
    KeyStore(config.parent / "keys", unlock_new(load_unchecked(config))).make(Names(), FAMILIES)
    config.write_text('[ssh]\nhost = "droplet.example"\n')
    [fact] = key_facts(load_unchecked(config))
    assert fact.fault is not None
    assert "without a passphrase" in fact.fault


def test_where_the_package_is_missing_it_says_how_to_get_it(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(KeyFileError, match=r"catalyst-tunnel\[keyring\]"):
        unlock_new(load_unchecked(config))


def test_the_passphrase_itself_has_no_place_in_the_settings(config: Path) -> None:
    with pytest.raises(SettingsError, match="no place in a file") as caught:
        parse(config, '[ssh]\nhost = "x"\n[keys]\npassphrase = "hunter2"\n')
    assert "hunter2" not in str(caught.value)
