"""Changing the registry: nobody's change is lost, and a disk that is full changes nothing."""

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway import registry as registries
from gateway.changing import ConflictError, Draft, drafting, locked
from gateway.registry import Client, Registry, SshKey
from gateway.settings import Layout
from keys.sshkey import public_line

LINE = public_line(Ed25519PrivateKey.from_private_bytes(b"1" * 32).public_key())
LAPTOP = Client("laptop", "operator", ssh_keys=(SshKey(LINE),))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path)
    registries.save(made.registry, Registry((LAPTOP,), 3))
    return made


def test_each_change_is_a_generation(layout: Layout) -> None:
    with drafting(layout) as draft:
        first = draft.save(draft.registry.without("laptop"))
        assert first.generation == 4
        assert draft.save(draft.registry.with_client(Client("desk", "observer"))).generation == 5
    loaded = registries.load(layout.registry)
    assert (loaded.generation, len(loaded.clients)) == (5, 2)


def test_no_change_is_none(layout: Layout) -> None:
    before = layout.registry.stat()
    with drafting(layout) as draft:
        assert draft.save(draft.registry.with_client(LAPTOP)).generation == 3
    assert layout.registry.stat() == before


@pytest.mark.parametrize("text", [b" ", b"{}", None])
def test_a_hand_edit_meanwhile_is_left_alone(layout: Layout, text: bytes | None) -> None:
    edited = layout.registry.read_bytes() + b"\n" if text is None else text
    with drafting(layout) as draft:
        layout.registry.write_bytes(edited)
        with pytest.raises(ConflictError, match="was changed meanwhile and is left alone"):
            draft.save(draft.registry.without("laptop"))
    assert layout.registry.read_bytes() == edited


def test_a_registry_that_was_removed_meanwhile(layout: Layout) -> None:
    with drafting(layout) as draft:
        layout.registry.unlink()
        with pytest.raises(FileNotFoundError):
            draft.save(draft.registry.without("laptop"))
    assert not layout.registry.exists()


def test_a_full_disk(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = layout.registry.read_bytes()
    with monkeypatch.context() as patch, drafting(layout) as draft:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            draft.save(draft.registry.without("laptop"))
    assert layout.registry.read_bytes() == before
    assert sorted(one.name for one in layout.directory.iterdir()) == [".lock", "registry.json"]


@pytest.mark.parametrize("text", [b"", b"{", b'{"version": 1, "generation": -1, "clients": []}'])
def test_a_registry_that_is_none(layout: Layout, text: bytes) -> None:
    layout.registry.write_bytes(text)
    with pytest.raises(ValueError, match=r"registry\.json: "):
        with drafting(layout):
            pass
    assert layout.registry.read_bytes() == text


def test_the_lock_is_not_one_that_somebody_else_laid_there(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("")
    layout.lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        with locked(layout):
            pass


def test_nobody_overtakes(layout: Layout) -> None:
    """Every one of many that change at once sees what those before him did."""

    def change(number: int) -> None:
        with drafting(layout) as draft:
            draft.save(draft.registry.with_client(Client(f"c{number}", "observer")))

    threads = [threading.Thread(target=change, args=(number,)) for number in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    loaded = registries.load(layout.registry)
    assert loaded.generation == 3 + len(threads)
    assert len(loaded.clients) == 1 + len(threads)


def test_ssh_keys_belong_to_one_client() -> None:
    registry = Registry((LAPTOP,))
    with pytest.raises(ValueError, match="is there twice"):
        registry.with_client(Client("desk", "observer", ssh_keys=LAPTOP.ssh_keys))
    known = registry.ssh_key(LAPTOP.ssh_keys[0].fingerprint)
    assert known is not None and known.accepted and known.client == LAPTOP
    assert registry.ssh_accepted() == {LAPTOP.ssh_keys[0].fingerprint}
    assert not registry.without("laptop").ssh_accepted()
    one = replace(LAPTOP, ssh_keys=(replace(LAPTOP.ssh_keys[0], revoked=True),))
    assert not registry.with_client(one).ssh_accepted()


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_registry_that_others_may_write(layout: Layout, mode: int) -> None:
    """Whoever may write to it lets in whom he likes; so nobody acts on it."""
    layout.registry.chmod(mode)
    for attempt in (lambda: registries.load(layout.registry), lambda: Draft(layout)):
        with pytest.raises(ValueError, match="chmod go-w"):
            attempt()
    layout.registry.chmod(0o644)
    assert registries.load(layout.registry).generation == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_registry_that_is_somebody_elses(layout: Layout) -> None:
    os.chown(layout.registry, 65534, -1)
    with pytest.raises(ValueError, match="chown root"):
        registries.load(layout.registry)
