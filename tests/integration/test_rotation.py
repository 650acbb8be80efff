"""Keys changed under load, through crashes, and against somebody's will."""

import asyncio
import contextlib
import errno
import itertools
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway import registry
from gateway.registry import Client
from gateway.settings import Layout
from keys import certs
from keys.pointer import FAMILIES, Family, Names, read_pointer
from keys.rotation import Step
from tests.integration.test_failover import Traffic
from tests.keystack import KeyStack, keystack
from tunnel.custody.care import rotate_now
from tunnel.custody.journal import Outcome, StuckError, lock_file, read_journal
from tunnel.custody.lock import LockedError, locked
from tunnel.custody.registrar import Accepted, Registrar
from tunnel.custody.rotate import Rotator
from tunnel.custody.wayin import way_in
from tunnel.https import load_tokens
from tunnel.problems import ProblemError
from tunnel.settings import Settings, load
from tunnel.ssh import connect as connect_ssh
from tunnel.tokens import Clock

__all__ = ["keystack"]

ROUNDS: dict[tuple[Family, ...], int] = {("ssh",): 4, ("token",): 4, ("cert",): 4, FAMILIES: 8}


@contextlib.asynccontextmanager
async def traffic(keystack: KeyStack) -> AsyncIterator[list[Traffic]]:
    """50 requests a second on each path; afterwards none was refused, none failed, none ran twice.

    The second tunnel is one that a rotation does not know of.
    """
    over = asyncio.Event()
    runs = [
        await keystack.tunnel(paths=("ssh",)),
        await keystack.tunnel(keystack.stack.directory / "other", paths=("https",)),
    ]
    loads = [Traffic(run, every=0.02, first=n * 1_000_000) for n, run in enumerate(runs)]
    going = [asyncio.ensure_future(one.go(over)) for one in loads]
    yield loads
    over.set()
    await asyncio.gather(*going)
    for one in loads:
        assert one.failed_reads == []
        assert set(one.calls) == {200}
        # A read may be asked for twice: that is how none of them fails.
        assert all(keystack.stack.target.executed[body] == 1 for body in one.sent)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("families", ROUNDS)
async def test_rotations_under_load(keystack: KeyStack, families: tuple[Family, ...]) -> None:
    rounds = ROUNDS[families]
    async with traffic(keystack) as loads:
        for number in range(rounds):
            outcome = await finish(keystack, families, drain=1.0)
            assert (outcome.step, outcome.warnings) == (Step.DONE, []), (number, outcome)
            print(families, number, outcome.seconds)
    assert min(one.reads for one in loads) > 30 * rounds
    names = read_pointer(keystack.keys)
    last = {"ssh": names.ssh, "token": names.token, "cert": names.tls}
    assert all(str(rounds + 1) in last[family] for family in families)
    async with keystack.rotator().registrar(keystack.settings()) as (_, accepted):
        counts = (len(accepted.kids), len(accepted.certificates), len(accepted.fingerprints))
        assert counts == (1, 1, 1)


# Crashes.


def killed_after(keystack: KeyStack, number: int, families: str = "ssh,token,cert") -> list[str]:
    """Rotate in a process that is killed after so many effects; returns what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.rotating", str(keystack.config), families, str(number)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.stdout.split()


async def finish(
    keystack: KeyStack,
    families: tuple[Family, ...] = FAMILIES,
    drain: float = 0.0,
    compromised: bool = False,
) -> Outcome:
    return await rotate_now(
        keystack.settings(),
        families,
        lambda _: None,
        compromised=compromised,
        drain=drain,
        via=None,
        authorized_keys=None,
    )


@pytest.mark.timeout(300)
async def test_killed_after_every_effect(keystack: KeyStack) -> None:
    """Killed at any moment, it leaves a way in; begun again, it leaves nothing half done."""
    said: list[str] = []
    for number in itertools.count(1):
        said = await asyncio.to_thread(killed_after, keystack, number)
        await keystack.has_a_way_in()
        if said[-1] == "done":
            break
        assert len(said) == number
        assert (await finish(keystack)).step is Step.DONE
        await keystack.is_tidy()
    await keystack.is_tidy()
    assert len(said) > 14
    assert {"introduce", "keep_certificate", "write_pointer", "retire", "remove"} < set(said)


@pytest.mark.timeout(300)
async def test_killed_again_and_again(keystack: KeyStack) -> None:
    """Each process gets a step further than the one before it, no more."""
    before = read_pointer(keystack.keys)
    for _ in range(20):
        said = await asyncio.to_thread(killed_after, keystack, 4)
        await keystack.has_a_way_in()
        if said[-1] == "done":
            break
    assert said[-1] == "done"
    await keystack.is_tidy()
    assert read_pointer(keystack.keys) == before.after(FAMILIES, ())


@pytest.mark.timeout(300)
async def test_a_full_disk_at_every_write(
    keystack: KeyStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in itertools.count(1):
        with full_disk(monkeypatch, number) as failed:
            try:
                await finish(keystack)
            except StuckError as exc:
                assert "No space left on device" in str(exc)
            except OSError as exc:
                assert exc.errno == errno.ENOSPC
        if not failed:
            break
        await keystack.has_a_way_in()
        assert (await finish(keystack)).step is Step.DONE
        await keystack.is_tidy()
    assert number > 12


@contextlib.contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[list[str]]:
    """Have the `number`-th file that is written fail; what was to be written is told."""
    seen = itertools.count(1)
    failed: list[str] = []
    make = tempfile.mkstemp

    def full(*args: Any, **named: Any) -> tuple[int, str]:
        if next(seen) == number:
            failed.append(named.get("prefix", ""))
            raise OSError(errno.ENOSPC, "No space left on device", str(named.get("dir")))
        return make(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", full)
        yield failed


PARTS = {"introduce": True, "prove": True, "switch": False, "drain": False, "retire": True}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["registrar", "gateway", "nginx"])
async def test_the_other_end_is_killed_at_every_step(keystack: KeyStack, what: str) -> None:
    far: Any = {
        "registrar": keystack.registrar,
        "gateway": keystack.stack.gateway,
        "nginx": keystack.stack.nginx,
    }[what]
    for step in PARTS:
        killed = False

        def say(text: str, step: str = step) -> None:
            nonlocal killed
            if text.startswith(step):
                far.kill()
                killed = True

        rotator = Rotator(keystack.settings(), say)
        journal = await rotator.plan(FAMILIES, drain=0.0)
        with contextlib.suppress(StuckError):
            await rotator.carry_on(journal)
        assert killed
        await asyncio.to_thread(far.start)
        await keystack.has_a_way_in()
        if read_journal(keystack.settings()) is not None:
            assert (await finish(keystack)).step is Step.DONE
        await keystack.is_tidy()


async def test_keys_that_wait_on_the_disk_may_be_in_other_hands_too(keystack: KeyStack) -> None:
    """What an interrupted rotation had made is not what --compromised ends with."""
    await asyncio.to_thread(killed_after, keystack, 6)
    copied = {one.name for one in keystack.keys.iterdir()}
    assert "token-2.key" in copied
    assert (await finish(keystack, compromised=True)).step is Step.DONE
    used = read_pointer(keystack.keys)
    assert not {name for family in FAMILIES for name in used.files(family)} & copied
    await keystack.is_tidy()


# What is refused, and taken back.


async def test_two_at_once(keystack: KeyStack) -> None:
    results = await asyncio.gather(finish(keystack), finish(keystack), return_exceptions=True)
    assert sum(isinstance(one, LockedError) for one in results) == 1
    assert sum(isinstance(one, Outcome) and one.step is Step.DONE for one in results) == 1
    await keystack.is_tidy()


async def test_a_lock_of_another_process(keystack: KeyStack) -> None:
    with locked(lock_file(keystack.settings())):
        done = await asyncio.to_thread(keys_command, keystack, "rotate", "--compromised")
    assert done.returncode == 1
    assert "Another rotation runs here" in done.stderr
    await keystack.is_tidy()


def keys_command(keystack: KeyStack, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunnel", "keys", *words, "--config", str(keystack.config)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def edit(keystack: KeyStack, change: Callable[[Client], Client]) -> None:
    """Change the registry by hand."""
    path = Layout(keystack.stack.gateway.directory).registry
    known = registry.load(path)
    client = known.client("mobile")
    assert client is not None
    changed = known.with_client(change(client))
    with keystack.stack.gateway.reloading():
        registry.save(path, replace(changed, generation=known.generation + 1))


def without_newest(client: Client) -> Client:
    return replace(client, keys=client.keys[:-1], ssh_keys=client.ssh_keys[:-1])


@pytest.mark.parametrize("step", ["prove", "retire"])
async def test_new_keys_that_were_removed_by_hand_meanwhile(keystack: KeyStack, step: str) -> None:
    """The old ones are used on, or again; the operator's word counts."""
    before = read_pointer(keystack.keys)

    def say(text: str) -> None:
        if text.startswith(step):
            edit(keystack, without_newest)

    rotator = Rotator(keystack.settings(), say)
    outcome = await rotator.carry_on(await rotator.plan(FAMILIES, drain=0.0))
    assert outcome.step is Step.UNDONE
    assert outcome.reason
    assert read_pointer(keystack.keys) == before
    await keystack.has_a_way_in()
    await keystack.is_tidy()


async def test_old_keys_that_were_removed_by_hand_after_a_crash(keystack: KeyStack) -> None:
    """The new ones had been let in already, so they are the way in; the lost certificate comes."""
    said = await asyncio.to_thread(killed_after, keystack, 5)
    assert said[-1] == "introduce"

    def without_old(client: Client) -> Client:
        return replace(client, keys=client.keys[1:], ssh_keys=client.ssh_keys[1:])

    edit(keystack, without_old)
    assert (await finish(keystack)).step is Step.DONE
    await keystack.has_a_way_in()
    await keystack.is_tidy()


async def test_a_registry_that_others_change_meanwhile(
    keystack: KeyStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that comes late is made again for the registry as it is now."""
    accepted = Registrar.accepted
    times = 0

    async def then_another(self: Registrar) -> Accepted:
        nonlocal times
        told = await accepted(self)
        times += 1
        if times % 3:
            edit(keystack, lambda client: client)
        return told

    monkeypatch.setattr(Registrar, "accepted", then_another)
    rotator = keystack.rotator()
    outcome = await rotator.carry_on(await rotator.plan(FAMILIES, drain=0.0))
    monkeypatch.undo()
    assert (outcome.step, times > 4) == (Step.DONE, True)
    await keystack.is_tidy()


async def test_a_client_that_was_revoked_is_told(keystack: KeyStack) -> None:
    rotator = keystack.rotator()
    journal = await rotator.plan(("token",), drain=0.0)
    with keystack.stack.gateway.reloading():
        keystack.stack.gateway.run("client", "revoke", "mobile")
    outcome = await rotator.carry_on(journal)
    assert outcome.step is Step.UNDONE
    assert "not let in either" in outcome.warnings[0]
    assert read_pointer(keystack.keys) == Names()
    assert not (keystack.keys / "token-2.key").exists()


@pytest.mark.parametrize("days", [-1, 1])
async def test_a_clock_that_jumps_by_a_day_in_the_middle(keystack: KeyStack, days: int) -> None:
    jumped = 0.0

    def say(text: str) -> None:
        nonlocal jumped
        if text.startswith("drain"):
            jumped = days * 86400.0

    rotator = Rotator(keystack.settings(), say, lambda: time.time() + jumped)
    began = time.monotonic()
    outcome = await rotator.carry_on(await rotator.plan(FAMILIES, drain=0.5))
    assert outcome.step is Step.DONE
    assert time.monotonic() - began < 30
    await keystack.is_tidy()


# What was retired stays out.


async def refused(settings: Settings, name: str) -> str:
    with pytest.raises(ProblemError) as caught:
        async with way_in(settings, name, Clock()) as way:
            await way.prove()
    return caught.value.problem.code


async def test_what_was_retired_is_refused(keystack: KeyStack, tmp_path: Path) -> None:
    kept = tmp_path / "stolen" / "keys"
    shutil.copytree(keystack.keys, kept)
    shutil.copy(keystack.config, kept.parent)
    shutil.copy(keystack.known_hosts, kept.parent)
    stolen = load(kept.parent / "config.toml")
    held = await connect_ssh(stolen.ssh)
    token = load_tokens(stolen.https, Clock(), None).token()
    resumable = await asyncio.to_thread(tls_session, stolen)
    assert (await asyncio.to_thread(over_tls, stolen, resumable))[0] == 200
    assert (await finish(keystack)).step is Step.DONE
    await asyncio.wait_for(held.lost, 10)  # the session that came in with the old key
    new = keystack.settings()
    assert await refused(stolen, "ssh") == "auth_denied"
    assert await refused(stolen, "https") == "token_refused"
    # One old thing at a time among new ones.
    assert new.https is not None and stolen.https is not None
    old_token = replace(new, https=replace(new.https, token_key=stolen.https.token_key))
    assert await refused(old_token, "https") == "token_refused"
    assert await refused(old_token, "ssh") == "token_refused"
    pair = replace(new.https, cert=stolen.https.cert, key=stolen.https.key)
    assert await refused(replace(new, https=pair), "https") == "token_refused"
    # A token from before, and a TLS session from before.
    status, _ = await asyncio.to_thread(over_tls, stolen, resumable)
    assert status == 401
    status, _ = await asyncio.to_thread(over_tls, new, None, token)
    assert status == 401


def tls_session(settings: Settings) -> tuple[ssl.SSLContext, ssl.SSLSession | None]:
    """A TLS context, and a session that the server lets us resume, if any."""
    assert settings.https is not None
    context = ssl.create_default_context(cafile=str(settings.https.ca_file))
    context.load_cert_chain(settings.https.cert, settings.https.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    with open_tls(settings, context, None) as tls:
        send(tls, settings, None)
        return context, tls.session


def open_tls(
    settings: Settings, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> ssl.SSLSocket:
    assert settings.https is not None
    sock = socket.create_connection((settings.https.host, settings.https.port), 10)
    return context.wrap_socket(sock, server_hostname=settings.https.host, session=session)


def send(tls: ssl.SSLSocket, settings: Settings, token: str | None) -> int:
    assert settings.https is not None
    facts = certs.facts(settings.https.cert.read_bytes())
    token = token or load_tokens(settings.https, Clock(), facts.thumbprint).token()
    base = settings.https.base.decode()
    lines = [
        f"GET {base}/health HTTP/1.1",
        f"Host: {settings.https.authority}",
        f"Authorization: Bearer {token}",
        "Connection: close",
    ]
    tls.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while part := tls.recv(65536):
        answer += part
    return int(answer.split()[1])


def over_tls(
    settings: Settings,
    resumable: tuple[ssl.SSLContext, ssl.SSLSession | None] | None,
    token: str | None = None,
) -> tuple[int, bool]:
    """Status of a request, and whether the TLS session was resumed for it."""
    context, session = resumable or tls_session(settings)
    with open_tls(settings, context, session) as tls:
        return send(tls, settings, token), bool(tls.session_reused)
