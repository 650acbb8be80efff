"""A new client CA in place of the old, under a real NGINX: no step is below one that works."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway import authority
from gateway import registry as registries
from gateway.settings import Layout
from gateway.site import find_nginx
from keys import certs
from tests.callers import Callers
from tests.gatewayserver import Enrolled, GatewayServer, call
from tests.stack import Stack, stack

__all__ = ["stack"]

KILLED = -signal.SIGKILL


@dataclass
class Droplet:
    """What the commands are given."""

    stack: Stack

    @property
    def gateway(self) -> GatewayServer:
        return self.stack.gateway

    @property
    def layout(self) -> Layout:
        return Layout(self.gateway.directory)

    @property
    def nginx(self) -> str:
        return " ".join(self.stack.nginx._command())

    def rotate(self, *more: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return self.gateway.run("ca", "rotate", "--nginx", self.nginx, *more, check=check)

    def killed_at(self, step: int, *more: str) -> int:
        """Run it until it is about to put its file number `step` in place; return its exit code."""
        code = (
            "import os, pathlib, signal\n"
            f"left = [{step}]\n"
            "real = pathlib.Path.replace\n"
            "def replace(self, target):\n"
            "    left[0] -= 1\n"
            "    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return real(self, target)\n"
            "pathlib.Path.replace = replace\n"
            "from gateway.cli import main\n"
            "main()\n"
        )
        arguments = ["ca", "rotate", "--nginx", self.nginx, *more]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--dir", str(self.gateway.directory)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode

    async def works(self, *clients: Enrolled) -> None:
        """See each client get through NGINX and gateway."""
        async with Callers(self.gateway, self.stack.nginx) as callers:
            for client in clients:
                assert await callers.at("nginx", client).status(path="/health") == 200, client.name

    async def refused(self, client: Enrolled) -> None:
        """See that NGINX does not take its certificate."""
        async with Callers(self.gateway, self.stack.nginx) as callers:
            async with callers.at("nginx", client).ask(path="/health") as answer:
                assert answer.status == 400
                assert 'details="certificate"' in answer.headers["Proxy-Status"]

    def enrol(self, name: str) -> Enrolled:
        return self.gateway.enrol(self.stack.directory / name, "operator")

    def trusted(self) -> list[bytes]:
        return authority.trusted(self.layout)

    def signer(self) -> bytes:
        return authority.load(self.layout).certificate_pem()


@pytest.fixture
async def droplet(stack: Stack) -> AsyncIterator[Droplet]:
    # The relay in front of NGINX lives in this event loop, which waits for the commands.
    with stack.gateway.reloading():
        stack.gateway.change("https_port", str(stack.nginx.https_port))
    yield Droplet(stack)


async def test_a_rotation_and_its_end(droplet: Droplet) -> None:
    laptop, old = droplet.stack.laptop, droplet.signer()
    said = droplet.rotate().stdout
    assert "both CAs are trusted" in said
    assert droplet.signer() != old
    assert droplet.trusted() == [droplet.signer(), old]
    first, second = (certs_subject(one) for one in droplet.trusted())
    assert first != second
    desk = droplet.enrol("desk")
    assert certs.issued_by(desk.certificate.encode(), droplet.signer())
    await droplet.works(laptop, desk)

    again = droplet.rotate(check=False)
    assert again.returncode == 1
    assert "--finish" in again.stderr
    waiting = droplet.rotate("--finish", check=False)
    assert waiting.returncode == 1
    assert "outgoing CA: laptop." in waiting.stderr
    assert "desk" not in waiting.stderr
    await droplet.works(laptop, desk)

    with droplet.gateway.reloading():
        droplet.gateway.run("client", "revoke", "laptop")
    with droplet.gateway.reloading():
        droplet.rotate("--finish")
    assert droplet.trusted() == [droplet.signer()]
    await droplet.works(desk)
    assert droplet.gateway.run("check-config").returncode == 0
    assert droplet.rotate("--finish").returncode == 0  # nothing to do
    droplet.rotate()
    await droplet.works(desk)


def certs_subject(pem: bytes) -> str:
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem).subject.rfc4514_string()


async def test_what_an_old_ca_signed_is_refused_by_the_gateway_itself(droplet: Droplet) -> None:
    """A resumed TLS session still says SUCCESS; the registry does not name the certificate."""
    laptop = droplet.stack.laptop
    droplet.rotate()
    with droplet.gateway.reloading():
        said = droplet.rotate("--finish", "--force").stdout
    assert "locked out on https: laptop" in said
    await until_refused(droplet, laptop)
    async with Callers(droplet.gateway) as callers:
        assert await callers.at("unix", laptop).refusal(call()) == (401, "unauthorized")
        assert droplet.gateway.until_audit("certificate_unknown")
        assert await callers.at("loopback", laptop).status(path="/health") == 200
    [client] = registries.load(droplet.layout.registry).clients
    assert client.keys[0].certificates == frozenset()
    assert list(droplet.layout.issued.iterdir()) == []


async def until_refused(droplet: Droplet, client: Enrolled) -> None:
    """A reload takes a moment to reach every worker."""
    deadline = time.monotonic() + 15
    while True:
        try:
            await droplet.refused(client)
            return
        except AssertionError:
            if time.monotonic() > deadline:
                raise


async def test_a_certificate_without_a_record_counts_as_an_old_one(droplet: Droplet) -> None:
    droplet.rotate()
    desk = droplet.enrol("desk")
    (droplet.layout.issued / f"{desk.thumbprint}.pem").unlink()
    with droplet.gateway.reloading():
        droplet.gateway.run("client", "revoke", "laptop")
    said = droplet.rotate("--finish", check=False).stderr
    assert "outgoing CA: desk." in said


@pytest.mark.parametrize("step", range(1, 6))
async def test_killed_at_each_step(droplet: Droplet, step: int) -> None:
    """Files are put in place five times: two of the next CA, the bundle, key, certificate."""
    laptop = droplet.stack.laptop
    assert droplet.killed_at(step) == KILLED
    await droplet.works(laptop, droplet.enrol("desk"))
    assert not [one for one in registries.load(droplet.layout.registry).clients if one.revoked]

    done = droplet.rotate()
    assert done.returncode == 0
    after = droplet.enrol("later")
    assert certs.issued_by(after.certificate.encode(), droplet.trusted()[0])
    await droplet.works(laptop, after)
    assert {one.name for one in droplet.layout.ca_key.parent.iterdir()} == {"ca.key", "ca.pem"}
    assert droplet.gateway.run("check-config").returncode == 0


@pytest.mark.parametrize("step", [1, 2])
async def test_killed_while_it_finishes(droplet: Droplet, step: int) -> None:
    droplet.rotate()
    desk = droplet.enrol("desk")
    assert droplet.killed_at(step, "--finish", "--force") == KILLED
    await droplet.works(desk)
    with contextlib.ExitStack() as reloading:
        if step == 1:  # nothing had been written
            reloading.enter_context(droplet.gateway.reloading())
        droplet.rotate("--finish", "--force")
    assert droplet.trusted() == [droplet.signer()]
    await droplet.works(desk)
    async with Callers(droplet.gateway) as callers:
        laptop = callers.at("unix", droplet.stack.laptop)
        assert await laptop.refusal(call()) == (401, "unauthorized")


async def test_an_nginx_that_refuses(droplet: Droplet) -> None:
    """Its configuration is at fault, by somebody else's hand: it is not reloaded, nor is the CA."""
    old, bundle = droplet.signer(), droplet.layout.client_ca.read_bytes()
    site = droplet.layout.nginx / "site.conf"
    good = site.read_text()
    site.write_text(good + "nonsense;\n")
    said = droplet.rotate(check=False)
    assert said.returncode == 1
    assert "nonsense" in said.stderr
    assert "--no-reload" in said.stderr
    assert droplet.signer() == old
    assert droplet.layout.client_ca.read_bytes() == bundle
    await droplet.works(droplet.stack.laptop, droplet.enrol("desk"))
    site.write_text(good)
    droplet.rotate()
    assert droplet.signer() != old
    await droplet.works(droplet.stack.laptop)


async def test_an_nginx_that_is_not_there(droplet: Droplet) -> None:
    old = droplet.signer()
    for command in ("/no/such/nginx", "false", ""):
        done = droplet.gateway.run("ca", "rotate", "--nginx", command, check=False)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
    assert droplet.signer() == old
    droplet.gateway.run("ca", "rotate", "--no-reload")
    assert droplet.signer() != old
    droplet.stack.nginx.reload()
    await droplet.works(droplet.stack.laptop, droplet.enrol("desk"))


async def test_two_at_once(droplet: Droplet) -> None:
    """One of them rotates; the other waits for it, and is told that this was done."""
    command = [sys.executable, "-m", "gateway", "ca", "rotate", "--nginx", droplet.nginx]
    both = [
        subprocess.Popen(
            [*command, "--dir", str(droplet.gateway.directory)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [one.communicate(timeout=60)[1] for one in both]
    assert sorted(one.returncode for one in both) == [0, 1], said
    assert "under way" in "".join(said)
    assert len(droplet.trusted()) == 2
    await droplet.works(droplet.stack.laptop, droplet.enrol("desk"))


# Without NGINX: files at fault


@pytest.fixture
def place(tmp_path: Path) -> Iterator[GatewayServer]:
    yield GatewayServer(tmp_path / "gateway", "http://127.0.0.1:9")


def no_reload(place: GatewayServer, *more: str) -> "subprocess.CompletedProcess[str]":
    done = place.run("ca", "rotate", "--no-reload", *more, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_the_old_key_is_not_needed(place: GatewayServer) -> None:
    """It may have been kept offline, or be lost, which is a reason to rotate."""
    layout = Layout(place.directory)
    layout.ca_key.unlink()
    assert no_reload(place).returncode == 0
    assert layout.ca_key.stat().st_mode & 0o777 == 0o600
    assert authority.load(layout).certificate_pem() == authority.trusted(layout)[0]


@pytest.mark.parametrize("text", [b"", b"x", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_bundle_that_is_none(place: GatewayServer, text: bytes) -> None:
    layout = Layout(place.directory)
    layout.client_ca.write_bytes(text)
    for more in ([], ["--finish"]):
        done = no_reload(place, *more)
        assert done.returncode == 1
        assert "client-ca.pem" in done.stderr
    assert layout.client_ca.read_bytes() == text


def test_finishing_what_was_not_begun_right(place: GatewayServer) -> None:
    layout = Layout(place.directory)
    other = certs.make_authority("other", time.time()).certificate_pem()
    layout.client_ca.write_bytes(other + layout.ca_certificate.read_bytes())
    done = no_reload(place, "--finish")
    assert done.returncode == 1
    assert "does not begin with" in done.stderr
    assert no_reload(place, "--force").returncode == 2


@pytest.mark.parametrize("name", ["ca", "nginx"])
def test_a_directory_that_cannot_be_written(place: GatewayServer, name: str) -> None:
    """Every write that fails leaves the CA as it was. (A file in its place, since root may all.)"""
    layout = Layout(place.directory)
    old = authority.load(layout).certificate_pem()
    kept = place.directory.parent / "kept"
    if name == "ca":
        layout.next_ca_key.mkdir()
        assert no_reload(place).returncode == 1
        layout.next_ca_key.rmdir()
    else:
        shutil.move(layout.nginx, kept)
        assert no_reload(place).returncode == 1
        shutil.move(kept, layout.nginx)
    assert authority.load(layout).certificate_pem() == old
    assert no_reload(place).returncode == 0
    assert authority.load(layout).certificate_pem() != old


def test_nginx_is_found() -> None:
    """Otherwise the tests above were skipped."""
    if find_nginx() is None and os.environ.get("CI") == "true":
        pytest.fail("no nginx on this machine, and CI must have one: apt install nginx-light")
