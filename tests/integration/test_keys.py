"""A client changes its own keys, through the gateway and the registrar, and nobody else's.

Processes of their own, as on a droplet; the last part has the real NGINX in front.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway import registry as registries
from gateway.settings import Layout
from keys import certs
from keys.files import write_private, write_whole
from keys.keyring import thumbprint
from keys.sshkey import fingerprint, public_line
from keys.statement import PATH, SIZE
from tests.callers import Caller, Callers, Door, Far, open_far
from tests.gatewayserver import Enrolled, call
from tests.rawservice import SSE, Asked, chunk, whole
from tests.registrarserver import JOSE, Pen, RegistrarServer, change, new_csr, status
from tests.stack import Stack, stack

__all__ = ["stack"]

DOORS: tuple[Door, ...] = ("unix", "loopback")
BOTH = pytest.mark.parametrize("door", DOORS)


@dataclass
class Office:
    """A far side with a registrar, and one client's pen."""

    far: Far
    registrar: RegistrarServer

    def registry(self) -> registries.Registry:
        return registries.load(self.far.layout.registry)

    async def pen(self, client: Enrolled | None = None) -> Pen:
        """A pen that knows the generation."""
        return Pen(client or self.far.laptop, self.registry().generation)

    async def rotate(self, caller: Caller) -> Enrolled:
        """Introduce new keys of all families; return the client as it is with them."""
        pen = await self.pen(caller.client)
        fresh = Ed25519PrivateKey.generate()
        tls, csr = new_csr()
        code, told = await change(caller, pen.introduce(token_key=fresh, csr=csr))
        assert code == 200, told
        pem = told["certificate"]
        assert told["kid"] == thumbprint(fresh.public_key())
        home = caller.client.home.with_name(f"{caller.client.name}-{told['generation']}")
        write_private(home / "keys" / "tls.key", certs.private_pem(tls), replace=False)
        write_whole(home / "keys" / "tls.crt", pem.encode(), replace=False, mode=0o644)
        name = certs.facts(pem.encode()).thumbprint
        return replace(caller.client, key=fresh, certificate=pem, thumbprint=name, home=home)


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with open_far(tmp_path) as far:
        with RegistrarServer(far.gateway.directory) as registrar:
            yield Office(far, registrar)
        said = registrar.log.read_text()
        assert "defect" not in said
        assert "Traceback" not in said


def ssh_names(told: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(one["fingerprint"], one["revoked"]) for one in told["ssh_keys"]]


# What is in force


@BOTH
async def test_what_is_told(office: Office, door: Door) -> None:
    laptop = office.far.laptop
    told = await status(office.far.at(door))
    ends = told["keys"][0]["certificates"][0].pop("not_after")
    assert 364 * 86400 < ends - time.time() < 366 * 86400
    issuers = told["client_ca"]["issuers"]
    facts = certs.facts((office.far.layout.ca_certificate).read_bytes())
    ca, ca_ends = facts.thumbprint, int(facts.not_after)
    assert told == {
        "catalyst": "keys",
        "version": 1,
        "client": "laptop",
        "role": "operator",
        "generation": 2,
        "keys": [
            {
                "kid": thumbprint(laptop.key.public_key()),
                "revoked": False,
                "certificates": [{"thumbprint": laptop.thumbprint}],
                "open": 0,
            }
        ],
        "ssh_keys": [],
        "client_ca": {"issuers": issuers, "current": ca, "not_after": ca_ends},
        "site": {"not_after": None},
    }
    assert issuers == [ca]
    line = office.far.gateway.until_audit("allow")
    assert line["status"] == 200
    assert office.far.gateway.audit()[-2]["method"] == "keys.status"


async def test_requests_that_run_are_counted(office: Office) -> None:
    async def streaming(asked: Asked) -> None:
        await asked.say(SSE + chunk(b"data: 0\n\n"))
        await asked.gone()

    office.far.service.script = streaming
    caller = office.far.at("unix")
    async with caller.ask() as stream:
        assert await stream.content.readuntil(b"\n\n") == b"data: 0\n\n"
        assert [one["open"] for one in (await status(caller))["keys"]] == [1]
        neighbour = office.far.at("unix", office.far.neighbour)
        assert [one["open"] for one in (await status(neighbour))["keys"]] == [0]


async def test_what_cannot_be_read_is_told_as_unknown(office: Office) -> None:
    layout = office.far.layout
    layout.client_ca.write_text("x")
    for one in layout.issued.iterdir():
        one.write_text("x")
    told = await status(office.far.at("unix"))
    assert told["client_ca"] == {"issuers": [], "current": None, "not_after": None}
    assert told["keys"][0]["certificates"][0]["not_after"] is None


async def test_nothing_of_it_reaches_the_service(office: Office) -> None:
    await status(office.far.at("unix"))
    await change(office.far.at("unix"), (await office.pen()).introduce(csr=new_csr()[1]))
    assert office.far.service.asked == []


# A life


@BOTH
async def test_a_key_is_introduced_used_and_the_old_one_retired(office: Office, door: Door) -> None:
    far = office.far
    old = far.at(door)
    client = await office.rotate(old)
    new = far.at(door, client)
    # At once: the answer came, so the new key is accepted.
    assert await new.status(call()) == 200
    assert await old.status(call()) == 200

    pen = Pen(client, office.registry().generation)
    kid = thumbprint(far.laptop.key.public_key())
    code, told = await change(
        new, pen.retire(kids=[kid], certificates=[far.laptop.thumbprint], compromised=True)
    )
    assert (code, told) == (
        200,
        {"catalyst": "retired", "version": 1, "generation": pen.generation + 1},
    )
    assert await old.refusal(call()) == (401, "unauthorized")
    assert await new.status(call()) == 200
    assert not (far.layout.issued / f"{far.laptop.thumbprint}.pem").exists()
    # Not by way of the new certificate either, nor the new key with the old one.
    crossed = replace(client, thumbprint=far.laptop.thumbprint, certificate=far.laptop.certificate)
    if door == "unix":
        assert await far.at(door, crossed).refusal(call()) == (401, "unauthorized")
        assert far.gateway.until_audit("certificate_unknown")
    lines = [one for one in far.gateway.audit() if one.get("method") == "keys.retire"]
    assert lines[-1]["keys"] == f"{kid} {far.laptop.thumbprint} compromised"


async def test_a_retired_keys_stream_ends_and_its_neighbours_stays(office: Office) -> None:
    async def streaming(asked: Asked) -> None:
        if asked.method != "GET":
            await asked.say(whole(b"yes"))
            return
        await asked.say(SSE + chunk(b"data: 0\n\n"))
        await asked.gone()

    far = office.far
    far.service.script = streaming
    client = await office.rotate(far.at("unix"))
    async with far.at("unix").ask() as old, far.at("unix", client).ask() as new:
        for stream in (old, new):
            await stream.content.readuntil(b"\n\n")
        pen = Pen(client, office.registry().generation)
        kid = thumbprint(far.laptop.key.public_key())
        began = time.monotonic()
        assert (await change(far.at("unix", client), pen.retire(kids=[kid])))[0] == 200
        with pytest.raises(Exception, match=r"payload|closed|disconnected"):
            await asyncio.wait_for(old.content.read(1), 10)
        assert time.monotonic() - began < 5
        assert far.gateway.until_audit("client_revoked")
        assert await far.at("unix", client).status(call()) == 200
        assert not new.content.at_eof()


async def test_asking_again_after_the_answer_was_lost(office: Office) -> None:
    caller = office.far.at("unix")
    fresh, ssh = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    _, csr = new_csr()
    what = {"token_key": fresh, "csr": csr, "ssh_key": ssh}
    pen = await office.pen()
    first = (await change(caller, pen.introduce(**what)))[1]
    code, told = await change(caller, pen.introduce(**what))
    assert code == 409
    assert told["error"]["generation"] == first["generation"]
    pen.generation = told["error"]["generation"]
    assert await change(caller, pen.introduce(**what)) == (200, first)
    name = fingerprint(public_line(ssh.public_key()))
    assert ssh_names(await status(caller)) == [(name, False)]
    assert len(list(office.far.layout.issued.iterdir())) == 3


async def test_giving_up_everything_is_still_answered(office: Office) -> None:
    caller = office.far.at("unix")
    code, told = await change(caller, (await office.pen()).revoke())
    assert (code, told["catalyst"]) == (200, "revoked")
    assert await caller.refusal(call()) == (401, "unauthorized")
    assert await office.far.at("unix", office.far.neighbour).status(call()) == 200


async def test_an_observer_changes_its_own_keys_too(office: Office, tmp_path: Path) -> None:
    viewer = office.far.gateway.enrol(tmp_path / "viewer", "observer")
    client = await office.rotate(office.far.at("unix", viewer))
    assert await office.far.at("unix", client).refusal(call()) == (403, "tool_denied")


# Who may not


async def refused(
    office: Office, statement: bytes, caller: Caller | None = None, **more: Any
) -> tuple[int, str, str | None]:
    """Return status, code and the reason on record; the registry must be as it was."""
    caller = caller or office.far.at("unix")
    before = office.far.layout.registry.read_bytes()
    seen = len(office.far.gateway.audit())
    fields = JOSE | more.pop("fields", {})
    code, name = await caller.refusal(statement, path=PATH, fields=fields, **more)
    assert office.far.layout.registry.read_bytes() == before
    for _ in range(100):
        lines = [one for one in office.far.gateway.audit()[seen:] if one.get("status") == code]
        if lines:
            return code, name, lines[-1].get("reason")
        await asyncio.sleep(0.02)
    raise AssertionError("nothing is on record")


async def test_a_neighbour(office: Office) -> None:
    """With the laptop's statement in his hands, and his own good token."""
    far = office.far
    neighbour = far.at("unix", far.neighbour)
    statement = (await office.pen()).introduce(csr=new_csr()[1])
    denied = (403, "keys_denied", "other_key")
    assert await refused(office, statement, neighbour) == denied
    own = await office.pen(far.neighbour)
    kid = thumbprint(far.laptop.key.public_key())
    assert await refused(office, own.retire(kids=[kid]), neighbour) == (
        403,
        "keys_denied",
        "key_unknown",
    )
    lying = Pen(replace(far.laptop, key=far.neighbour.key), own.generation)
    assert await refused(office, lying.revoke(), neighbour) == denied
    taken = await office.pen(far.neighbour)
    assert await refused(office, taken.introduce(token_key=far.laptop.key), neighbour) == (
        403,
        "keys_denied",
        "key_of_another",
    )


async def test_other_keys_of_the_same_client(office: Office) -> None:
    """A statement goes with the key of its request, so nobody mixes two."""
    far = office.far
    client = await office.rotate(far.at("unix"))
    pen = await office.pen()
    by_new = Pen(client, pen.generation)
    denied = (403, "keys_denied", "other_key")
    assert await refused(office, by_new.introduce(csr=new_csr()[1])) == denied
    own = pen.retire(certificates=[far.laptop.thumbprint])
    assert await refused(office, own) == (403, "keys_denied", "own_certificate")
    kid = thumbprint(far.laptop.key.public_key())
    assert await refused(office, pen.retire(kids=[kid])) == (403, "keys_denied", "own_key")


async def test_a_retired_key_and_its_statements(office: Office) -> None:
    far = office.far
    client = await office.rotate(far.at("unix"))
    stolen = (await office.pen()).introduce(csr=new_csr()[1])
    pen = Pen(client, office.registry().generation)
    kid = thumbprint(far.laptop.key.public_key())
    assert (await change(far.at("unix", client), pen.retire(kids=[kid])))[0] == 200
    assert await refused(office, stolen) == (401, "unauthorized", None)
    new = far.at("unix", client)
    assert await refused(office, stolen, new) == (403, "keys_denied", "other_key")
    back = Pen(client, office.registry().generation)
    assert await refused(office, back.introduce(token_key=far.laptop.key), new) == (
        403,
        "keys_denied",
        "key_revoked",
    )


async def test_the_last_ones(office: Office) -> None:
    ssh = Ed25519PrivateKey.generate()
    caller = office.far.at("loopback")
    pen = await office.pen()
    assert (await change(caller, pen.introduce(ssh_key=ssh)))[0] == 200
    pen = await office.pen()
    name = fingerprint(public_line(ssh.public_key()))
    assert await refused(office, pen.retire(ssh_keys=[name]), caller) == (
        403,
        "keys_denied",
        "last_ssh_key",
    )
    last = pen.retire(certificates=[office.far.laptop.thumbprint])
    assert await refused(office, last, caller) == (403, "keys_denied", "last_certificate")


async def test_what_is_no_statement(office: Office) -> None:
    pen = await office.pen()
    good = pen.introduce(csr=new_csr()[1])
    for bad, reason in (
        (good[:-2], "token_malformed"),
        (good[:-4] + b"AAAA", "signature_invalid"),
        (b"x", "token_malformed"),
        (b"\xff.\xff.\xff", "token_not_ascii"),
        (good + b"\n" + good, "token_malformed"),
        (pen.introduce(csr="no csr"), "csr_invalid"),
    ):
        told = await refused(office, bad)
        assert told[:2] == (400, "statement_invalid")
        assert told[2] in (reason, "token_malformed", "signature_invalid")
    assert await refused(office, b"x" * (SIZE + 1)) == (413, "body_too_large", None)
    json_type = {"Content-Type": "application/json"}
    told = await refused(office, good, fields=json_type)
    assert told == (415, "content_type_refused", None)
    assert (await refused(office, good, method="PUT"))[:2] == (403, "http_method_denied")
    assert (await refused(office, good, method="GET"))[:2] == (403, "http_method_denied")
    assert (await refused(office, good, chunked=True))[:2] == (400, "request_invalid")


async def test_times_and_generations(office: Office) -> None:
    pen = await office.pen()
    for seen in (pen.generation - 1, pen.generation + 1, 10**9):
        stale = Pen(pen.client, seen).introduce(csr=new_csr()[1])
        assert (await refused(office, stale))[:2] == (409, "generation_mismatch")


@pytest.mark.parametrize("path", [f"{PATH}/", f"{PATH}x", "/_catalyst", "/%5Fcatalyst/keys"])
async def test_other_paths_are_not_open(office: Office, path: str) -> None:
    assert await office.far.at("unix").refusal(path=path) == (403, "path_denied")


async def test_without_an_identity(office: Office) -> None:
    caller = office.far.at("unix")
    bare = {"Authorization": "Bearer x"}
    assert await caller.refusal(path=PATH, fields=bare) == (401, "unauthorized")


async def test_a_token_for_ssh_serves_once_here_too(office: Office) -> None:
    caller = office.far.at("loopback")
    fields = caller.client.over_ssh()
    async with caller.ask(path=PATH, fields=fields) as first:
        assert first.status == 200
    assert await caller.refusal(path=PATH, fields=fields) == (401, "unauthorized")
    assert office.far.gateway.until_audit("token_replayed")


# The registrar


async def unavailable(office: Office) -> None:
    statement = (await office.pen()).introduce(csr=new_csr()[1])
    told = await refused(office, statement)
    assert told[:2] == (503, "registrar_unavailable")


async def test_without_a_registrar_nothing_changes_and_all_else_goes_on(office: Office) -> None:
    office.registrar.kill()
    await unavailable(office)  # its socket is still there
    office.registrar.start()
    await office.rotate(office.far.at("unix"))
    assert office.registrar.stop() == 0
    assert not office.far.layout.registrar.exists()
    await unavailable(office)
    assert await office.far.at("unix").status(call()) == 200
    assert (await status(office.far.at("unix")))["generation"] == 3


async def test_a_registrar_that_dies_with_the_statement(office: Office) -> None:
    """It is stopped, so that the statement waits in its socket, and killed."""
    office.registrar.signal(signal.SIGSTOP)
    asking = asyncio.ensure_future(unavailable(office))
    before = len(office.far.gateway.audit())
    await office.far.service.until(
        lambda: any(
            one.get("method") == "keys.introduce" for one in office.far.gateway.audit()[before:]
        )
    )
    office.registrar.kill()
    await asking
    office.registrar.start()
    await office.rotate(office.far.at("unix"))


async def test_a_second_registrar(office: Office) -> None:
    done = office.far.gateway.run("registrar", check=False)
    assert done.returncode == 2
    assert "runs already" in done.stderr
    await office.rotate(office.far.at("unix"))


async def test_a_ca_that_is_kept_offline(office: Office) -> None:
    """Nothing that needs it goes, in words; what does not need it goes."""
    layout = office.far.layout
    key = layout.ca_key.read_bytes()
    layout.ca_key.unlink()
    caller = office.far.at("unix")
    statement = (await office.pen()).introduce(csr=new_csr()[1])
    assert await refused(office, statement) == (503, "ca_unavailable", "ca_unusable")
    assert str(layout.ca_key) in office.registrar.log.read_text()
    fresh = Ed25519PrivateKey.generate()
    assert (await change(caller, (await office.pen()).introduce(token_key=fresh)))[0] == 200
    write_private(layout.ca_key, key, replace=True)
    layout.ca_key.chmod(0o644)
    statement = (await office.pen()).introduce(csr=new_csr()[1])
    assert (await refused(office, statement))[:2] == (503, "ca_unavailable")
    assert "chmod 600" in office.registrar.log.read_text()
    layout.ca_key.chmod(0o600)
    await office.rotate(caller)


@pytest.mark.parametrize("text", [b"", b"{", b"{}"])
async def test_a_registry_that_was_spoilt(office: Office, text: bytes) -> None:
    file = office.far.layout.registry
    statement = (await office.pen()).introduce(csr=new_csr()[1])
    good = file.read_bytes()
    with office.far.gateway.reloading():
        file.write_bytes(text)
    assert (await refused(office, statement))[:2] == (503, "registrar_unavailable")
    assert str(file) in office.registrar.log.read_text()
    with office.far.gateway.reloading():
        file.write_bytes(good)
    await office.rotate(office.far.at("unix"))


async def test_a_registry_edited_by_hand_meanwhile_is_what_counts(office: Office) -> None:
    file = office.far.layout.registry
    statement = (await office.pen()).introduce(csr=new_csr()[1])
    content = json.loads(file.read_text())
    content["generation"] += 1
    content["clients"][1]["revoked"] = True
    with office.far.gateway.reloading():
        file.write_text(json.dumps(content))
    assert (await refused(office, statement))[:2] == (409, "generation_mismatch")
    await office.rotate(office.far.at("unix"))
    assert await office.far.at("unix", office.far.neighbour).refusal(call()) == (
        401,
        "unauthorized",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
async def test_another_user_at_its_socket(office: Office) -> None:
    """The file's mode keeps others out; where it does not, the peer's user does."""
    path = office.far.layout.registrar
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    closed = [one for one in path.parents if one.stat().st_mode & 0o005 != 0o005]
    modes = [one.stat().st_mode & 0o7777 for one in closed]
    for one in closed:
        one.chmod(0o755)
    asking = (
        "import os, socket; os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
        f"s.connect({str(path)!r}); s.sendall(b'x\\n'); print(s.recv(100))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", asking], capture_output=True, text=True, timeout=30
        )
    finally:
        for one, old in zip(closed, modes, strict=True):
            one.chmod(old)
    # Nothing at all is answered, or the line was not even read.
    assert done.stdout == "b''\n" or re.search("BrokenPipe|ConnectionReset", done.stderr), done
    assert "hung up on a process of user 65534" in office.registrar.log.read_text()


async def test_what_is_no_line_costs_the_registrar_nothing(office: Office) -> None:
    path = str(office.far.layout.registrar)
    for text in (b"", b"x" * 100_000, b"\n", b"\xff\xfe\n", b"a.b.c\n"):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(text)
        if writer.can_write_eof():
            writer.write_eof()
        try:
            told = await reader.read()
        except ConnectionError:
            told = b""
        assert told == b"" or json.loads(told)["code"] == "statement_invalid"
        writer.close()
    await office.rotate(office.far.at("unix"))


async def test_many_at_once(office: Office) -> None:
    """Of statements with one generation one is carried out, and the others hear the next one."""
    caller = office.far.at("unix")
    pen = await office.pen()
    told = await asyncio.gather(
        *(change(caller, pen.introduce(ssh_key=Ed25519PrivateKey.generate())) for _ in range(8))
    )
    assert sorted(code for code, _ in told) == [200] + [409] * 7
    assert office.registry().generation == pen.generation + 1


# Through the real NGINX


async def test_through_nginx(stack: Stack) -> None:
    gateway = stack.gateway
    with RegistrarServer(gateway.directory):
        async with Callers(gateway, stack.nginx) as callers:
            old = callers.at("nginx", stack.laptop)
            told = await status(old)
            assert told["site"]["not_after"] > time.time()  # root's own certificate can be read
            layout = Layout(gateway.directory)
            pen = Pen(stack.laptop, registries.load(layout.registry).generation)
            fresh = Ed25519PrivateKey.generate()
            tls, csr = new_csr()
            code, told = await change(old, pen.introduce(token_key=fresh, csr=csr))
            assert code == 200
            assert told["ca"] == stack.ca.read_text()
            home = stack.directory / "laptop-2"
            write_private(home / "keys" / "tls.key", certs.private_pem(tls), replace=False)
            pem = told["certificate"]
            write_whole(home / "keys" / "tls.crt", pem.encode(), replace=False, mode=0o644)
            name = certs.facts(pem.encode()).thumbprint
            client = replace(stack.laptop, key=fresh, home=home, certificate=pem, thumbprint=name)
            new = callers.at("nginx", client)
            assert await new.status(path="/health") == 200
            kid = thumbprint(stack.laptop.key.public_key())
            retiring = Pen(client, told["generation"]).retire(kids=[kid])
            assert (await change(new, retiring))[0] == 200
            assert await old.refusal(path="/health") == (401, "unauthorized")
            assert (await status(new))["keys"][0]["revoked"] is True
