"""The store in a real Redis server: shared, restarted, flushed, frozen, full, and out of reach."""

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from gateway import state_redis
from gateway.rate import Rate, gcra
from gateway.state import Admission, Claim, StateError, Verdict
from gateway.state_redis import DEADLINE, MARGIN, RedisState
from keys.token import LEEWAY
from tests.redisserver import RedisServer, find_redis

PASSWORD = "s3cret/+ #?@:"
WIDE = Rate(1e6, 100_000)

_numbers = itertools.count()


def fresh(issued: float, life: int = 60) -> Claim:
    """A claim that nobody has made."""
    return Claim("k" * 43, f"{next(_numbers):022}", int(issued), int(issued) + life)


@pytest.fixture(scope="module", autouse=True)
def _program() -> None:
    if find_redis() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have redis-server: apt install redis-server")
        pytest.skip("no redis-server on this machine: apt install redis-server")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", password=PASSWORD) as running:
        yield running


Open = Callable[..., Awaitable[RedisState]]


@pytest.fixture
async def opened(server: RedisServer) -> AsyncIterator[Open]:
    """Open a gateway's store; the memory begins a minute ago."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(url: str | None = None) -> RedisState:
            state = RedisState(url or server.url)
            stack.push_async_callback(state.close)
            await state.open()
            await state.admit("first", WIDE, None, time.time() - 60)
            return state

        yield begin


async def verdict(state: RedisState, claim: Claim, now: float | None = None) -> Verdict:
    return (await state.admit("laptop", WIDE, claim, now or time.time())).verdict


async def denied(state: RedisState, words: str) -> StateError:
    """Ask in vain; within the deadline, give or take, and without the password."""
    began = time.monotonic()
    with pytest.raises(StateError, match=words) as caught:
        await verdict(state, fresh(time.time()))
    assert time.monotonic() - began < 2 * DEADLINE
    texts = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    assert "s3cret" not in texts
    return caught.value


# Claims and rates


@pytest.mark.parametrize("way", ["tcp", "unix"])
async def test_a_token_serves_once(opened: Open, server: RedisServer, way: str) -> None:
    state = await opened(server.url if way == "tcp" else server.unix_url)
    claim = fresh(time.time())
    assert await verdict(state, claim) is Verdict.ADMITTED
    assert await verdict(state, claim) is Verdict.REPLAYED
    assert await verdict(state, fresh(time.time())) is Verdict.ADMITTED
    assert await state.admit("laptop", WIDE, None, time.time()) == Admission(Verdict.ADMITTED)


async def test_a_token_used_at_one_gateway_is_refused_at_the_other(opened: Open) -> None:
    one, other = await opened(), await opened()
    claim = fresh(time.time())
    assert await verdict(one, claim) is Verdict.ADMITTED
    assert await verdict(other, claim) is Verdict.REPLAYED


async def test_of_200_at_two_gateways_at_once_one_gets_in(opened: Open) -> None:
    gateways = [await opened(), await opened()]
    for _ in range(5):
        claim = fresh(time.time())
        verdicts = await asyncio.gather(*(verdict(gateways[n % 2], claim) for n in range(200)))
        assert verdicts.count(Verdict.ADMITTED) == 1
        assert verdicts.count(Verdict.REPLAYED) == 199


async def test_a_claim_stays_taken_where_the_lane_is_full(opened: Open) -> None:
    state = await opened()
    now, slow = time.time(), Rate(1, 1)
    claim = fresh(now)
    assert (await state.admit("desk", slow, None, now)).verdict is Verdict.ADMITTED
    limited = await state.admit("desk", slow, claim, now + 0.25)
    assert limited.verdict is Verdict.LIMITED
    assert limited.retry_after == pytest.approx(0.75, abs=1e-5)
    assert (await state.admit("desk", slow, claim, now + 2)).verdict is Verdict.REPLAYED
    assert (await state.admit("desk/stop_trading", slow, None, now)).verdict is Verdict.ADMITTED


async def test_the_script_computes_what_gcra_does(opened: Open) -> None:
    """To the microsecond, over jumps of the clock and changes of the rate."""
    state = await opened()
    dice = random.Random(7)
    due, now = 0, 1_900_000_000.0
    for _ in range(1500):
        rate = Rate(dice.choice([0.5, 3, 10, 777.7]), dice.choice([1, 2, 17]))
        now += dice.choice([0.0, 1e-6, 0.001, 0.05, 0.4, 3.0, -2.0, -40.0])
        due, wait = gcra(due, int(now * 1_000_000), rate.interval, rate.burst, LEEWAY * 1_000_000)
        expected = Verdict.LIMITED if wait else Verdict.ADMITTED
        assert await state.admit("dice", rate, None, now) == Admission(expected, wait / 1e6)


async def test_two_gateways_share_one_rate(opened: Open) -> None:
    gateways = [await opened(), await opened()]
    now, rate = time.time(), Rate(1, 10)
    admissions = await asyncio.gather(
        *(gateways[n % 2].admit("shared", rate, None, now) for n in range(40))
    )
    assert sum(one.verdict is Verdict.ADMITTED for one in admissions) == 10


async def test_keys_go_when_nobody_needs_them(opened: Open, server: RedisServer) -> None:
    state = await opened()
    now = time.time()
    claim = fresh(now)
    await state.admit("slow", Rate(0.1, 5), claim, now)
    kept = int(server.cli("pttl", f"catalyst:claim:{claim.kid}:{claim.jti}")) / 1000
    assert 60 + LEEWAY < kept <= 60 + 2 * LEEWAY
    lane = int(server.cli("pttl", "catalyst:lane:slow")) / 1000
    assert 10 < lane <= 10 + LEEWAY
    assert server.cli("ttl", "catalyst:since") == "-1"


async def test_an_expired_claim_is_never_admitted(opened: Open) -> None:
    state = await opened()
    now = time.time()
    assert await verdict(state, fresh(now - 50, life=10), now) is Verdict.FORGOTTEN
    assert await verdict(state, fresh(now - 46, life=44), now) is Verdict.ADMITTED


# Restarts and lost memory


async def test_a_new_server_takes_only_tokens_made_after_it(server: RedisServer) -> None:
    state = RedisState(server.url)
    await state.open()
    now = float(int(time.time()))
    assert await verdict(state, fresh(now), now) is Verdict.FORGOTTEN
    assert await verdict(state, fresh(now + MARGIN), now + 6) is Verdict.FORGOTTEN
    later = now + MARGIN + 1
    assert await verdict(state, fresh(later), later) is Verdict.ADMITTED
    await state.close()


@pytest.mark.parametrize("loss", ["restarted", "flushed", "mark deleted", "mark spoilt"])
async def test_no_token_is_used_on_both_sides_of_a_loss(
    opened: Open, server: RedisServer, loss: str
) -> None:
    """The second gateway's clock is behind, the clients' are ahead, by all that is allowed."""
    one, other = await opened(), await opened()
    now = time.time()
    used = [fresh(issued) for issued in (now - 30, now, now + LEEWAY)]
    assert {await verdict(one, claim, now) for claim in used} == {Verdict.ADMITTED}
    match loss:
        case "restarted":
            await asyncio.to_thread(server.restart, keep_data=False)
        case "flushed":
            server.cli("flushall")
        case "mark deleted":
            server.cli("del", "catalyst:since")
        case "mark spoilt":
            server.cli("set", "catalyst:since", "yesterday")
    for passed in (-LEEWAY, 0.5, 3.0, 20.0, 64.0):
        for state, claim in itertools.product((other, one), used):
            refused = await verdict(state, claim, now + passed)
            assert refused in (Verdict.FORGOTTEN, Verdict.REPLAYED)
    later = now + MARGIN + 2
    assert await verdict(one, fresh(later), later) is Verdict.ADMITTED
    assert await verdict(other, fresh(later), later) is Verdict.ADMITTED


async def test_a_restart_with_its_data_keeps_claims(opened: Open, server: RedisServer) -> None:
    state = await opened()
    now = time.time()
    used = fresh(now)
    assert await verdict(state, used, now) is Verdict.ADMITTED
    await asyncio.to_thread(server.restart, keep_data=True)
    assert await verdict(state, used, now) is Verdict.REPLAYED
    later = now + MARGIN + 2
    assert await verdict(state, used, later) is Verdict.REPLAYED
    assert await verdict(state, fresh(later), later) is Verdict.ADMITTED


async def test_a_restart_with_old_data_is_a_loss(opened: Open, server: RedisServer) -> None:
    """The mark is there, the claims made since the last save are not."""
    state = await opened()
    server.cli("save")
    now = time.time()
    used = fresh(now)
    assert await verdict(state, used, now) is Verdict.ADMITTED
    await asyncio.to_thread(server.crash)
    await asyncio.to_thread(server.start)
    assert server.cli("exists", "catalyst:since") == "1"
    assert await verdict(state, used, now + 1) is Verdict.FORGOTTEN


async def test_a_replica_that_was_behind_takes_over(
    opened: Open, server: RedisServer, tmp_path: Path
) -> None:
    auth = f'masterauth "{PASSWORD}"'
    replicaof = f"replicaof {server.host} {server.port}"
    with RedisServer(tmp_path / "replica", password=PASSWORD, options=[auth, replicaof]) as replica:
        server.cli("config", "set", "repl-diskless-sync-delay", "0")
        state = await opened()
        while "master_link_status:up" not in replica.cli("info", "replication"):
            await asyncio.sleep(0.02)
        before = await _opened(replica)
        await denied(before, "read-only replica")
        await before.close()
        replica.freeze()  # what is claimed now never reaches it
        now = time.time()
        used = fresh(now)
        assert await verdict(state, used, now) is Verdict.ADMITTED
        await asyncio.to_thread(server.stop)
        replica.resume()
        replica.cli("replicaof", "no", "one")
        after = await _opened(replica)
        replica.cli("del", f"catalyst:claim:{used.kid}:{used.jti}")  # if it did after all
        assert await verdict(after, used, now + 1) is Verdict.FORGOTTEN
        await after.close()


async def _opened(server: RedisServer) -> RedisState:
    state = RedisState(server.url)
    await state.open()
    return state


async def test_a_mark_from_a_clock_that_was_ahead(opened: Open, server: RedisServer) -> None:
    state = await opened()
    server.cli("flushall")
    await state.admit("laptop", WIDE, None, time.time() + 3600)
    error = await denied(state, "begins 3[56].. s from now")
    assert "DEL catalyst:since" in str(error)
    assert (await state.admit("laptop", WIDE, None, time.time())).verdict is Verdict.ADMITTED
    server.cli("del", "catalyst:since")
    now = time.time()
    assert await verdict(state, fresh(now), now) is Verdict.FORGOTTEN
    assert await verdict(state, fresh(now + 13), now + 13) is Verdict.ADMITTED


async def test_scripts_are_forgotten_and_sent_again(opened: Open, server: RedisServer) -> None:
    state = await opened()
    used = fresh(time.time())
    assert await verdict(state, used) is Verdict.ADMITTED
    server.cli("script", "flush")
    assert await verdict(state, used) is Verdict.REPLAYED
    assert await verdict(state, fresh(time.time())) is Verdict.ADMITTED


# Out of reach


async def test_stopped_and_started_mid_run(opened: Open, server: RedisServer) -> None:
    state = await opened()
    now = time.time()
    assert set(await asyncio.gather(*(verdict(state, fresh(now), now) for _ in range(40)))) == {
        Verdict.ADMITTED
    }  # every pooled connection has been used
    used = fresh(now)
    assert await verdict(state, used, now) is Verdict.ADMITTED
    await asyncio.to_thread(server.stop, keep_data=True)
    await denied(state, "cannot be reached")
    await denied(state, "cannot be reached")
    await asyncio.to_thread(server.start)
    assert await verdict(state, used, now) is Verdict.REPLAYED  # the next call, at once
    await asyncio.to_thread(server.restart, keep_data=True)  # and with nothing asked in between
    verdicts = await asyncio.gather(*(verdict(state, used, now) for _ in range(40)))
    assert set(verdicts) == {Verdict.REPLAYED}


async def test_the_first_start_may_come_before_the_servers(server: RedisServer) -> None:
    await asyncio.to_thread(server.stop)
    state = RedisState(server.url)
    with pytest.raises(StateError, match="cannot be reached"):
        await state.open()
    await asyncio.to_thread(server.start)
    assert (await state.admit("laptop", WIDE, None, time.time())).verdict is Verdict.ADMITTED
    await state.close()


async def test_a_server_that_does_not_answer(opened: Open, server: RedisServer) -> None:
    state = await opened()
    server.freeze()
    await denied(state, "no answer within 1 s")
    began = time.monotonic()
    outcomes = await asyncio.gather(
        *(verdict(state, fresh(time.time())) for _ in range(50)), return_exceptions=True
    )
    assert time.monotonic() - began < 2 * DEADLINE
    assert all(isinstance(one, StateError) for one in outcomes)
    server.resume()
    assert await verdict(state, fresh(time.time())) is Verdict.ADMITTED


async def test_callers_that_leave_do_not_mix_up_answers(opened: Open) -> None:
    """An abandoned call's answer must not be read by the next one on that connection."""
    state = await opened()
    dice = random.Random(11)
    now = time.time()
    used = fresh(now)
    assert await verdict(state, used, now) is Verdict.ADMITTED

    async def ask(new: bool) -> tuple[Verdict, Verdict]:
        expected = Verdict.ADMITTED if new else Verdict.REPLAYED
        return expected, await verdict(state, fresh(now) if new else used, now)

    answered = 0
    pool = state._pool
    assert pool is not None
    for turn in range(60):
        if turn % 3 == 0:
            await pool.disconnect()  # new connections, abandoned while they log in
        tasks = [asyncio.ensure_future(ask(dice.random() < 0.5)) for _ in range(16)]
        await asyncio.sleep(dice.random() * 0.004)
        for task in dice.sample(tasks, 8):
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(outcome, BaseException):
                expected, found = outcome
                assert found is expected
                answered += 1
            else:
                assert isinstance(outcome, asyncio.CancelledError)
    assert answered >= 480
    assert not pool._in_use_connections  # nothing leaked either


async def test_an_answer_to_somebody_else_is_not_taken(opened: Open, server: RedisServer) -> None:
    """Left unread on a connection that goes back to the pool, as libraries have done before."""
    state = await opened()
    pool, claim = state._pool, fresh(time.time())
    assert pool is not None
    assert await verdict(state, claim) is Verdict.ADMITTED
    server.freeze()  # so that the pool does not see it arrive
    connection = await pool.get_connection()
    serial = next(state._serials)
    rate = (WIDE.interval, WIDE.burst, LEEWAY * 1_000_000)
    earlier = (serial, int(time.time() * 1_000_000), *rate)
    keys = ("catalyst:since", "catalyst:lane:laptop")
    await connection.send_command("EVALSHA", state_redis._SHA, 2, *keys, *earlier)
    await pool.release(connection)  # with "admitted" to come
    replay = asyncio.ensure_future(verdict(state, claim))
    await asyncio.sleep(0.1)
    server.resume()
    with pytest.raises(StateError, match="something else than was asked"):
        await replay
    assert await verdict(state, claim) is Verdict.REPLAYED


async def test_a_server_that_still_loads(opened: Open, server: RedisServer) -> None:
    state = await opened()
    assert state._client is not None
    async with state._client.pipeline(transaction=False) as pipe:
        for number in range(3000):
            pipe.set(f"filler:{number}", "x")
        await pipe.execute()
    await asyncio.to_thread(server.stop, keep_data=True)
    server.options = ["key-load-delay 1000", "loading-process-events-interval-bytes 1024"]
    await asyncio.to_thread(server.start, ready=False)
    await denied(state, "cannot be reached|still loading")
    async with asyncio.timeout(20):
        while True:
            try:
                await state.admit("laptop", WIDE, None, time.time())
                break
            except StateError as exc:
                seen = str(exc)
                await asyncio.sleep(0.05)
    assert "still loading" in seen


async def test_a_full_server_denies(opened: Open, server: RedisServer) -> None:
    state = await opened()
    used = fresh(time.time())
    assert await verdict(state, used) is Verdict.ADMITTED
    server.cli("config", "set", "maxmemory", "1")
    await denied(state, "memory is full")
    server.cli("config", "set", "maxmemory", "0")
    assert await verdict(state, used) is Verdict.REPLAYED
    assert await verdict(state, fresh(time.time())) is Verdict.ADMITTED


async def test_a_server_that_evicts_is_refused(opened: Open, server: RedisServer) -> None:
    server.cli("config", "set", "maxmemory", "100mb")
    server.cli("config", "set", "maxmemory-policy", "volatile-lru")
    with pytest.raises(StateError, match="Set maxmemory-policy to noeviction"):
        await opened()
    server.cli("config", "set", "maxmemory-policy", "noeviction")
    state = await opened()
    server.options = ["maxmemory 100mb", "maxmemory-policy allkeys-lru"]
    await asyncio.to_thread(server.restart, keep_data=True)
    await denied(state, "Set maxmemory-policy")


async def test_a_server_that_cannot_save_denies(opened: Open, server: RedisServer) -> None:
    state = await opened()
    server.cli("config", "set", "save", "1 1")
    dump = server.directory / "dump.rdb"
    (dump / "in the way").mkdir(parents=True)
    server.cli("bgsave")
    async with asyncio.timeout(10):
        while "rdb_last_bgsave_status:err" not in server.cli("info", "persistence"):
            await asyncio.sleep(0.02)
    await denied(state, "MISCONF")
    shutil.rmtree(dump)


# Who may


async def test_wrong_and_missing_passwords(opened: Open, server: RedisServer) -> None:
    await opened()
    for url in (
        server.url.replace("s3cret", "wr0ng-s3cret"),
        f"redis://{server.host}:{server.port}",
    ):
        state = RedisState(url)
        with pytest.raises(StateError, match="user and password") as caught:
            await state.open()
        assert "s3cret" not in f"{caught.value!r} {caught.value.__context__!r} {state!r}"
        await denied(state, "user and password")
        await state.close()


async def test_a_server_without_the_command_repeats_no_password(tmp_path: Path) -> None:
    """Where AUTH is renamed away, the server's complaint quotes what it was sent."""
    with RedisServer(tmp_path / "redis", options=['rename-command AUTH ""']) as server:
        state = RedisState(f"redis://:s3cret@{server.host}:{server.port}")
        with pytest.raises(StateError, match="Redis at") as caught:
            await state.open()
        assert "s3cret" not in f"{caught.value!r} {caught.value.__context__!r}"
        await state.close()


async def test_the_rights_that_the_documentation_names_are_enough(server: RedisServer) -> None:
    rights = ["on", ">pw", "~catalyst:*", "+eval", "+evalsha", "+get", "+set", "+info"]
    server.cli("acl", "setuser", "gateway", *rights)
    server.cli("acl", "setuser", "poor", *rights[:-2], "+info")
    state = RedisState(f"redis://gateway:pw@{server.host}:{server.port}")
    await state.open()
    now = time.time()
    await state.admit("laptop", WIDE, None, now - 60)
    claim = fresh(now)
    assert await verdict(state, claim, now) is Verdict.ADMITTED
    assert await verdict(state, claim, now) is Verdict.REPLAYED
    await state.close()
    poor = RedisState(f"redis://poor:pw@{server.host}:{server.port}")
    await poor.open()
    await denied(poor, "may not|answered with an error")
    await poor.close()


# TLS


def _certificate(directory: Path, name: str) -> Path:
    """Write a self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = directory / f"{name}.pem"
    file.write_bytes(certificate.public_bytes(Encoding.PEM))
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return file


async def test_over_tls_only_the_right_server_is_asked(tmp_path: Path) -> None:
    ours, theirs = _certificate(tmp_path, "ours"), _certificate(tmp_path, "theirs")
    server = RedisServer(tmp_path / "redis", password=PASSWORD)
    plain = server.port
    server.options = [
        "port 0",
        f"tls-port {plain}",
        f'tls-cert-file "{ours}"',
        f'tls-key-file "{tmp_path / "ours.key"}"',
        "tls-auth-clients no",
    ]
    with server:
        secure = server.url.replace("redis:", "rediss:")
        state = RedisState(f"{secure}?ssl_ca_certs={ours}")
        await state.open()
        await state.admit("laptop", WIDE, None, time.time() - 60)
        claim = fresh(time.time())
        assert await verdict(state, claim) is Verdict.ADMITTED
        assert await verdict(state, claim) is Verdict.REPLAYED
        await state.close()
        by_name = secure.replace("127.0.0.1", "localhost")
        for url in (
            f"{secure}?ssl_ca_certs={theirs}",
            secure,
            f"{by_name}?ssl_ca_certs={ours}",
            f"{secure}?ssl_ca_certs={tmp_path / 'missing.pem'}",
        ):
            state = RedisState(url)
            with pytest.raises(StateError, match="cannot be reached") as caught:
                await state.open()
            assert "s3cret" not in f"{caught.value!r} {caught.value.__context__!r}"
            await state.close()
