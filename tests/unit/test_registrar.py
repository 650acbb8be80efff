"""The registrar by itself: what it is told counts for nothing, and no fault leaves half a change.

Whatever stands here as a line could come from a gateway that somebody has taken over.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway import registry as registries
from gateway.registrar import Registrar
from gateway.settings import Layout
from keys import certs
from keys.statement import Author
from tests.gatewayserver import Enrolled, GatewayServer
from tests.registrarserver import Pen, new_csr


@dataclass
class Desk:
    """A registrar in this process, on a copy of a directory that was set up once."""

    layout: Layout
    laptop: Enrolled
    neighbour: Enrolled

    def __post_init__(self) -> None:
        self.registrar = Registrar(self.layout)

    def pen(self, client: Enrolled | None = None) -> Pen:
        return Pen(client or self.laptop, registries.load(self.layout.registry).generation)

    def ask(self, statement: bytes, now: float | None = None) -> dict[str, Any]:
        self.registrar._wall = lambda: time.time() if now is None else now
        return self.registrar.answer(statement.decode())

    def refuses(self, statement: bytes, code: str, reason: str, now: float | None = None) -> None:
        before = self.layout.registry.read_bytes()
        told = self.ask(statement, now)
        assert (told["code"], told["reason"]) == (code, reason)
        assert self.layout.registry.read_bytes() == before


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Enrolled, Enrolled]:
    home = tmp_path_factory.mktemp("registrar")
    server = GatewayServer(home / "gateway", "http://127.0.0.1:9")
    laptop = server.enrol(home / "laptop", "operator")
    return server.directory, laptop, server.enrol(home / "neighbour", "operator")


@pytest.fixture
def desk(original: tuple[Path, Enrolled, Enrolled], tmp_path: Path) -> Iterator[Desk]:
    directory, laptop, neighbour = original
    shutil.copytree(directory, tmp_path / "gateway")
    yield Desk(Layout(tmp_path / "gateway"), laptop, neighbour)


def test_a_good_one(desk: Desk) -> None:
    told = desk.ask(desk.pen().introduce(csr=new_csr()[1]))
    assert told["answer"]["generation"] == registries.load(desk.layout.registry).generation == 3


# It verifies for itself


def test_forged_statements(desk: Desk) -> None:
    wish = {"csr": new_csr()[1]}
    stranger = Ed25519PrivateKey.generate()
    generation = desk.pen().generation

    def by(key: Ed25519PrivateKey, client: str, audience: str, now: float) -> bytes:
        author = Author(key, client, audience)
        return author.introduce(generation, now, os.urandom(16), **wish).encode()

    now, ours = time.time(), "catalyst-gateway:localhost"
    invalid, denied = "statement_invalid", "keys_denied"
    desk.refuses(by(stranger, "laptop", ours, now), invalid, "key_unknown")
    desk.refuses(by(desk.neighbour.key, "laptop", ours, now), denied, "client_mismatch")
    desk.refuses(
        by(desk.laptop.key, "laptop", "catalyst-gateway:x", now), invalid, "audience_refused"
    )
    good = by(desk.laptop.key, "laptop", ours, now)
    desk.refuses(good[:-8] + b"AAAAAAAA", invalid, "signature_invalid")
    desk.refuses(desk.laptop.token(bound=False).encode(), invalid, "type_refused")
    for line in ("", "x", "\0", "a.b.c", "{}", "\xff" * 100, "x" * 100_000):
        assert desk.registrar.answer(line)["code"] == invalid


def test_a_clock_that_is_a_day_off(desk: Desk) -> None:
    statement = desk.pen().introduce(csr=new_csr()[1])
    day = 86400
    desk.refuses(statement, "statement_invalid", "token_expired", time.time() + day)
    desk.refuses(statement, "statement_invalid", "token_early", time.time() - day)


def test_a_statement_that_comes_twice(desk: Desk) -> None:
    ssh = desk.pen().introduce(ssh_key=Ed25519PrivateKey.generate())
    assert "answer" in desk.ask(ssh)
    desk.refuses(ssh, "generation_mismatch", "2")


def test_a_client_that_was_revoked(desk: Desk) -> None:
    statement = desk.pen().introduce(csr=new_csr()[1])
    file = desk.layout.registry
    registries.save(file, registries.load(file).without("laptop"))
    desk.refuses(statement, "keys_denied", "key_revoked")


# No fault leaves half a change


def failing(number: int) -> Callable[[int], None]:
    """An fsync that finds the disk full the `number`th time."""
    left = [number]
    real = os.fsync

    def fsync(fd: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    return fsync


@pytest.mark.parametrize("number", [1, 3])
def test_a_full_disk(desk: Desk, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """File and directory are synced: 1 is the certificate's file, 3 the registry's."""
    statement = desk.pen().introduce(csr=new_csr()[1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(number))
        desk.refuses(statement, "registrar_unavailable", "not_written")
    assert "answer" in desk.ask(statement)


@pytest.mark.parametrize("number", [2, 4])
def test_a_disk_that_fails_after_a_file_is_in_place(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Told as unknown, which it is; asking again with what is in force completes it."""
    _, csr = new_csr()
    pen = desk.pen()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(number))
        told = desk.ask(pen.introduce(csr=csr))
        assert told["code"] == "registrar_unavailable"
    assert "answer" in desk.ask(desk.pen().introduce(csr=csr))
    [client] = [
        one for one in registries.load(desk.layout.registry).clients if one.name == "laptop"
    ]
    assert len(client.keys[0].certificates) == 2


@pytest.mark.parametrize("step", [1, 2])
def test_killed_at_each_step(desk: Desk, step: int) -> None:
    """Two files are put in place: the certificate's, and the registry."""
    code = (
        "import os, pathlib, signal, sys\n"
        "from gateway.registrar import Registrar\n"
        "from gateway.settings import Layout\n"
        "left, real = [int(sys.argv[2])], pathlib.Path.replace\n"
        "def replace(self, target):\n"
        "    left[0] -= 1\n"
        "    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, target)\n"
        "pathlib.Path.replace = replace\n"
        "Registrar(Layout(pathlib.Path(sys.argv[1]))).answer(sys.argv[3])\n"
    )
    fresh, ssh = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    what = {"token_key": fresh, "csr": new_csr()[1], "ssh_key": ssh}
    before = desk.layout.registry.read_bytes()
    line = desk.pen().introduce(**what).decode()
    command = [sys.executable, "-c", code, str(desk.layout.directory), str(step), line]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    assert desk.layout.registry.read_bytes() == before
    told = desk.ask(desk.pen().introduce(**what))["answer"]
    assert told["generation"] == 3
    client = registries.load(desk.layout.registry).client("laptop")
    assert client is not None
    assert client.keys[-1].certificates == {certs.facts(told["certificate"].encode()).thumbprint}


@pytest.mark.parametrize("name", ["issued", "registry.json", "gateway.toml"])
def test_what_is_not_there(desk: Desk, name: str) -> None:
    statement = desk.pen().introduce(csr=new_csr()[1])
    path, kept = desk.layout.directory / name, desk.layout.directory / "kept"
    path.rename(kept)
    told = desk.ask(statement)
    assert told == {"code": "registrar_unavailable", "reason": "not_written"}
    kept.rename(path)
    assert "answer" in desk.ask(statement)


def test_a_hand_edit_while_it_works(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor saves after the registry was read, and before it is written."""
    real = certs.issue

    def edited(*arguments: Any) -> bytes:
        file = desk.layout.registry
        registries.save(file, registries.load(file).without("neighbour"))
        return real(*arguments)

    statement = desk.pen().introduce(csr=new_csr()[1])
    with monkeypatch.context() as patch:
        patch.setattr(certs, "issue", edited)
        told = desk.ask(statement)
    assert told == {"code": "registrar_unavailable", "reason": "not_written"}
    after = registries.load(desk.layout.registry)
    known = after.client("neighbour")
    assert known is not None
    assert known.revoked  # the hand's change is the one that stands
    assert "answer" in desk.ask(desk.pen().introduce(csr=new_csr()[1]))


@pytest.mark.parametrize("spoil", ["gone", "open", "other", "truncated"])
def test_a_ca_that_cannot_be_used(desk: Desk, caplog: pytest.LogCaptureFixture, spoil: str) -> None:
    key = desk.layout.ca_key
    match spoil:
        case "gone":
            key.unlink()
        case "open":
            key.chmod(0o640)
        case "other":
            key.write_bytes(certs.make_authority("other", time.time()).key_pem())
        case "truncated":
            key.write_bytes(key.read_bytes()[:60])
    desk.refuses(desk.pen().introduce(csr=new_csr()[1]), "ca_unavailable", "ca_unusable")
    assert "the client CA cannot be used" in caplog.text
    assert "PRIVATE" not in caplog.text
    assert "answer" in desk.ask(desk.pen().introduce(ssh_key=Ed25519PrivateKey.generate()))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_ca_key_that_is_somebody_elses(desk: Desk) -> None:
    os.chown(desk.layout.ca_key, 65534, -1)
    desk.refuses(desk.pen().introduce(csr=new_csr()[1]), "ca_unavailable", "ca_unusable")


def test_a_private_ca_of_the_site_that_is_gone(desk: Desk) -> None:
    """Found out before anything is changed: whoever is changed gets his answer."""
    text = desk.layout.settings.read_text().replace("# tls_ca", "tls_ca")
    desk.layout.settings.write_text(text)
    statement = desk.pen().introduce(csr=new_csr()[1])
    desk.refuses(statement, "registrar_unavailable", "not_written")
    (desk.layout.directory / "ca.pem").write_text("PEM")
    told = desk.ask(statement)
    assert told["answer"]["ca"] == "PEM"


def test_an_expired_certificate_is_not_handed_out_again(desk: Desk) -> None:
    _, csr = new_csr()
    first = desk.ask(desk.pen().introduce(csr=csr))["answer"]["certificate"]
    assert desk.ask(desk.pen().introduce(csr=csr))["answer"]["certificate"] == first
    later = time.time() + 400 * 86400
    pen = desk.pen()
    author = Author(desk.laptop.key, "laptop", "catalyst-gateway:localhost")
    statement = author.introduce(pen.generation, later, os.urandom(16), csr=csr).encode()
    assert desk.ask(statement, later)["answer"]["certificate"] not in (None, first)


def test_a_certificate_of_the_ca_before_is_not_handed_out_again(desk: Desk) -> None:
    _, csr = new_csr()
    first = desk.ask(desk.pen().introduce(csr=csr))["answer"]["certificate"]
    other = certs.make_authority("next", time.time())
    desk.layout.ca_key.write_bytes(other.key_pem())
    desk.layout.ca_certificate.write_bytes(other.certificate_pem())
    second = desk.ask(desk.pen().introduce(csr=csr))["answer"]["certificate"]
    assert second != first
    assert certs.issued_by(second.encode(), other.certificate_pem())


def test_a_defect_costs_one_statement(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    statement = desk.pen().introduce(csr=new_csr()[1])
    with monkeypatch.context() as patch:
        patch.setattr(certs, "issue", broken)
        desk.refuses(statement, "registrar_unavailable", "defect")
    assert "answer" in desk.ask(statement)


def test_other_clients_keep_their_certificates(desk: Desk) -> None:
    other = replace(desk.pen(desk.neighbour))
    desk.ask(other.retire(certificates=[desk.laptop.thumbprint]))
    assert (desk.layout.issued / f"{desk.laptop.thumbprint}.pem").exists()
