"""The bridge's life: with a droplet that is away, tunnels that come and go, and damaged files."""

import asyncio
import json
import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from tests.bridges import Laptop, laptop, modern, service, text_of, within
from tests.eraservice import EraService
from tests.integration.test_bridge_eras import ALL
from tests.stdioclient import Json, StdioClient

__all__ = ["laptop", "service"]

CHANGED = "notifications/tools/list_changed"


async def names(client: StdioClient, params: Json | None = None) -> set[str]:
    return {one["name"] for one in (await client.ask("tools/list", params))["result"]["tools"]}


def changes(client: StdioClient) -> list[Json]:
    return [one for one in client.notifications if one["method"] == CHANGED]


async def test_a_droplet_that_was_never_reached(laptop: Laptop, service: EraService) -> None:
    """Answered while no byte gets through, and told the truth when it comes."""
    laptop.relay.stall()
    laptop.settings(service.port)
    client = await laptop.bridge()
    hello = (await client.initialize())["result"]
    assert hello["serverInfo"]["name"] == "catalyst-tunnel"
    assert await names(client) == set()
    others = ("resources/list", "resources/templates/list", "prompts/list")
    for answer in await within(20, *(client.ask(method) for method in others)):
        assert list(answer["result"].values()) == [[]]
    assert service.begun == 0
    _, call = client.request("tools/call", {"name": "echo", "arguments": {"text": "held"}})
    laptop.relay.resume()
    assert text_of(await asyncio.wait_for(call, 30)) == "held"
    await client.until(lambda: len(client.notifications) >= 3)
    assert "echo" in await names(client)
    told = sorted(one["method"].split("/")[1] for one in client.notifications)
    assert told == ["prompts", "resources", "tools"]
    assert not client.noise


async def test_a_client_that_introduces_itself_anew(laptop: Laptop, service: EraService) -> None:
    """What waited for the first introduction is answered, and was not sent."""
    laptop.relay.stall()
    laptop.settings(service.port)
    client = await laptop.bridge()
    await client.initialize()
    _, call = client.request("tools/call", {"name": "echo", "arguments": {"text": "first"}})
    await client.ask("ping")
    await client.initialize()
    error = (await asyncio.wait_for(call, 20))["error"]
    assert error["data"]["code"] == "session_lost"
    assert "safe to call again" in error["message"]
    laptop.relay.resume()
    assert text_of(await client.call("echo", {"text": "second"})) == "second"
    assert service.called == ["echo"]


@ALL
async def test_what_is_remembered_from_the_last_time(laptop: Laptop, service: EraService) -> None:
    laptop.settings(service.port, tunnel="hold = 0.2")
    async with asyncio.timeout(30):
        before = await laptop.bridge()
        await before.initialize()
        while "echo" not in await names(before):  # the first answer may come from nowhere
            await before.until(lambda: bool(changes(before)))
        before.end_input()
        await before.ended(within=10)
    kept = laptop.home / "cache" / "service.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    laptop.relay.refuse()
    client = await laptop.bridge()
    hello = (await client.initialize())["result"]
    assert hello["serverInfo"]["name"] == "eras"
    assert hello["protocolVersion"] == "2025-06-18"
    assert "echo" in await names(client)
    modern_hello = (await client.ask("server/discover", modern()))["result"]
    assert modern_hello["supportedVersions"] == ["2026-07-28"]
    tools = (await client.ask("tools/list", modern()))["result"]
    assert tools["resultType"] == "complete"
    held = (await client.call("echo", {"text": "x"}))["error"]
    assert held["data"]["code"] == "hold_expired"
    assert "safe to call again" in held["message"]
    service.add_tool()
    laptop.relay.accept()
    await client.until(lambda: bool(changes(client)))
    assert "extra1" in await names(client)


async def test_a_damaged_memory_is_none(laptop: Laptop) -> None:
    cache = laptop.home / "cache"
    cache.mkdir()
    said = b'{"initialize": {"capabilities": {"tools": NaN}}, "tools/list": {"tools": [NaN]}}'
    (cache / "service.json").write_bytes(b'{"version": 1, "said": ' + said + b"}")
    (cache / "service.json").chmod(0o600)
    laptop.relay.refuse()
    laptop.settings(1)
    client = await laptop.bridge()
    assert (await client.initialize())["result"]["serverInfo"]["name"] == "catalyst-tunnel"
    assert await names(client) == set()


async def test_settings_that_cannot_be_used(laptop: Laptop, service: EraService) -> None:
    (laptop.home / "config.toml").write_text("[tunnel]\nhold = 'long'\n")
    client = await laptop.bridge()
    assert "result" in await client.initialize()
    error = (await client.call("echo", {"text": "x"}))["error"]
    assert error["data"]["code"] == "settings_faulty"
    assert "hold" in error["message"]
    laptop.settings(service.port)  # mended, and nothing is started again
    assert text_of(await client.call("echo", {"text": "mended"})) == "mended"


@pytest.mark.parametrize("left", ["nothing there", "damaged", "somebody else"])
async def test_what_a_killed_tunnel_leaves_behind(
    laptop: Laptop, service: EraService, left: str
) -> None:
    laptop.settings(service.port)
    run = laptop.home / "run"
    run.mkdir()
    file = run / "up.json"

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.write(b"x" * 64)
        heard.append(await reader.read(1000))
        writer.close()

    heard: list[bytes] = []
    server = await asyncio.start_server(stranger, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if left != "somebody else":
        server.close()
    secret = os.urandom(32)
    text = json.dumps({"pid": 1, "port": port, "secret": secret.hex()})
    file.write_text("{" if left == "damaged" else text)
    file.chmod(0o600)
    client = await laptop.bridge()
    assert text_of(await client.call("echo", {"text": "by itself"})) == "by itself"
    server.close()
    assert not any(secret in one or secret.hex().encode() in one for one in heard)


async def test_to_a_tunnel_that_is_started_and_back(laptop: Laptop, service: EraService) -> None:
    laptop.settings(service.port)
    client = await laptop.bridge()
    await client.initialize()
    assert text_of(await client.call("echo", {"text": "by itself"})) == "by itself"
    running = await laptop.up(service.port)
    assert text_of(await client.call("echo", {"text": "through up"})) == "through up"
    assert running.tunnel.snapshot().requests > 0
    running.tunnel.stop()
    await running.task
    assert text_of(await client.call("echo", {"text": "by itself"})) == "by itself"
    again = await laptop.up(service.port)
    assert text_of(await client.call("echo", {"text": "through up"})) == "through up"
    assert again.tunnel.snapshot().requests > 0
    assert service.called == ["echo"] * 4
    assert not client.noise


async def test_a_tunnel_that_could_not_say_where_it_listens_is_found_later(
    laptop: Laptop, service: EraService, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop.settings(service.port)
    running = await laptop.up(service.port)
    addresses = running.tunnel._listening.addresses
    kept, addresses[:] = list(addresses), []
    client = await laptop.bridge()
    assert text_of(await client.call("echo", {"text": "by itself"})) == "by itself"
    assert running.tunnel.snapshot().requests == 0
    addresses[:] = kept
    async with asyncio.timeout(20):
        while running.tunnel.snapshot().requests == 0:
            await client.call("echo", {"text": "x"})
            await asyncio.sleep(0.05)


async def test_a_tunnel_that_is_killed(laptop: Laptop, service: EraService) -> None:
    """The control file stays; the call that ran has an unknown outcome, and is not made again."""
    laptop.settings(service.port, tunnel='listen = "127.0.0.1:0"')
    log = (laptop.home / "up.log").open("wb")
    up = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tunnel", "up", "--config", str(laptop.home / "config.toml")),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=log,
        stderr=log,
    )
    try:
        await service.until(lambda: (laptop.home / "run" / "up.json").exists())
        client = await laptop.bridge()
        await client.initialize()
        _, call = client.request("tools/call", {"name": "hold", "arguments": {}})
        await service.until(lambda: service.called == ["hold"])
        up.kill()
        error = (await asyncio.wait_for(call, 20))["error"]
        assert error["data"]["code"] == "outcome_unknown"
        assert "state before you call again" in error["message"]
        assert text_of(await client.call("echo", {"text": "by itself"})) == "by itself"
        assert service.called == ["hold", "echo"]
    finally:
        if up.returncode is None:
            up.kill()
        await up.wait()
        log.close()


async def test_a_service_that_forgets_its_sessions(laptop: Laptop, service: EraService) -> None:
    """One new session for all that wait, with what the old one had been asked for."""
    await laptop.up(service.port)
    client = await laptop.bridge()
    await client.initialize()
    await names(client)
    await client.ask("resources/subscribe", {"uri": "test://watched"})
    assert service.begun == 1
    service.add_tool()
    await service.restart()
    answers = await within(
        30, *(client.call("echo", {"text": str(n), "region": ""}) for n in range(20))
    )
    assert [text_of(one) for one in answers] == [str(n) for n in range(20)]
    assert service.called == ["echo"] * 20
    assert service.begun == 2
    await client.until(lambda: bool(changes(client)))
    assert "extra1" in await names(client)
    assert service.subscribed == ["test://watched"] * 2
    updated = "notifications/resources/updated"
    await client.until(lambda: any(one["method"] == updated for one in client.notifications))
    assert not client.noise


@pytest.mark.parametrize("service", ["stateless"], indirect=True)
@pytest.mark.parametrize("era", ["session", "stateless"])
async def test_a_stateless_service_that_is_restarted(
    laptop: Laptop, service: EraService, era: str
) -> None:
    """What changed while its stream was broken is told when it stands again."""
    await laptop.up(service.port)
    client = await laptop.bridge()
    if era == "session":
        await client.initialize()
        await names(client)
        await client.ask("resources/subscribe", {"uri": "test://watched"})
    else:
        wanted = {"toolsListChanged": True, "resourceSubscriptions": ["test://watched"]}
        client.request("subscriptions/listen", modern({"notifications": wanted}))
    # The stream stands when something comes on it.
    updated = "notifications/resources/updated"
    tell: Json = {"name": "touch", "arguments": {}}
    async with asyncio.timeout(20):
        while not any(one["method"] == updated for one in client.notifications):
            await client.ask("tools/call", tell if era == "session" else modern(tell))
    client.notifications.clear()
    service.add_tool()
    await service.restart()
    await client.until(lambda: bool(changes(client)))
    await client.until(lambda: any(one["method"] == updated for one in client.notifications))
    assert not client.noise


async def test_reads_wait_while_the_network_is_away(laptop: Laptop, service: EraService) -> None:
    await laptop.up(service.port)
    client = await laptop.bridge()
    await client.initialize()
    laptop.relay.refuse()
    laptop.relay.reset_all()
    read = {"uri": "test://watched"}
    waiting = [client.request("resources/read", read)[1] for _ in range(5)]
    _, call = client.request("tools/call", {"name": "echo", "arguments": {"text": "late"}})
    assert (await client.ask("ping"))["result"] == {}
    assert not any(one.done() for one in waiting)
    laptop.relay.accept()
    for one in await within(30, *waiting):
        assert one["result"]["contents"][0]["text"] == "watched"
    assert text_of(await asyncio.wait_for(call, 30)) == "late"


async def test_a_call_whose_link_dies_is_answered(laptop: Laptop, service: EraService) -> None:
    await laptop.up(service.port)
    client = await laptop.bridge()
    await client.initialize()
    _, call = client.request("tools/call", {"name": "hold", "arguments": {}})
    await service.until(lambda: service.called == ["hold"])
    laptop.relay.reset_all()
    error = (await asyncio.wait_for(call, 50))["error"]
    assert error["data"]["code"] == "outcome_unknown"
    assert text_of(await client.call("echo", {"text": "x"})) == "x"
    assert service.called == ["hold", "echo"]


@pytest.mark.parametrize("state", ["idle", "a call runs", "the droplet is away", "held"])
async def test_it_ends_with_its_stdin(laptop: Laptop, service: EraService, state: str) -> None:
    laptop.settings(service.port)
    if state == "the droplet is away":
        laptop.relay.stall()
    client = await laptop.bridge()
    await client.initialize()
    if state == "a call runs":
        _, answer = client.request("tools/call", {"name": "hold", "arguments": {}})
        await service.until(lambda: service.called == ["hold"])
    if state == "held":
        await client.call("echo", {"text": "x"})
        laptop.relay.stall()
    if state in ("held", "the droplet is away"):
        _, answer = client.request("resources/read", {"uri": "test://watched"})
    family = client.family()
    client.end_input()
    took = await client.ended(within=10)
    print(f"{state}: ended within {took:.2f} s")
    assert not any(one.is_running() for one in family)
    assert client._running.returncode == 0
    assert not client.noise
    if state != "idle":
        error = (await answer)["error"]
        assert "stdin ended" in error["message"]
        assert ("may have run" in error["message"]) is (state == "a call runs")


async def test_what_was_asked_before_the_end_is_answered(
    laptop: Laptop, service: EraService
) -> None:
    await laptop.up(service.port)
    client = await laptop.bridge()
    await client.initialize()
    _, answer = client.request("tools/call", {"name": "echo", "arguments": {"text": "last"}})
    client.end_input()
    assert text_of(await asyncio.wait_for(answer, 10)) == "last"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_by_a_signal(laptop: Laptop, number: signal.Signals) -> None:
    laptop.settings(1)
    client = await laptop.bridge()
    await client.initialize()
    client._running.send_signal(number)
    await client.ended(within=10)
    assert client._running.returncode == 0
    assert "Traceback" not in (laptop.home / "stderr").read_text()


async def test_many_copies_side_by_side_and_some_are_killed(
    laptop: Laptop, service: EraService
) -> None:
    laptop.settings(service.port)
    clients = await within(40, *(laptop.bridge() for _ in range(4)))
    await within(40, *(one.initialize() for one in clients))
    clients[0]._running.kill()
    clients[1]._running.kill()
    rest = clients[2:]
    told = await within(40, *(one.call("echo", {"text": "x"}) for one in rest))
    assert [text_of(one) for one in told] == ["x", "x"]
    for one in rest:
        assert not any(conn.status == "LISTEN" for conn in one.family()[0].net_connections())
    json.loads((laptop.home / "cache" / "service.json").read_bytes())
    assert not list(laptop.home.rglob("*.lock"))


async def test_nobody_reads_stderr(laptop: Laptop, service: EraService) -> None:
    """A full pipe there must not stop what is said on stdout."""
    await laptop.up(service.port)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    program, *arguments = laptop.parameters["command"], *laptop.parameters["args"]
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        env=laptop.parameters["env"],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=writer,
    )
    os.close(writer)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        params = {"name": "no/such", "arguments": {}}
        for caller in range(20):
            line = {"jsonrpc": "2.0", "id": caller, "method": "x/y", "params": params}
            process.stdin.write(json.dumps(line).encode() + b"\n")
            answer = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
            assert answer["id"] == caller
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 10)
    finally:
        if process.returncode is None:
            process.kill()
        os.close(reader)


async def test_the_log_is_beside_the_settings(laptop: Laptop, service: EraService) -> None:
    laptop.settings(service.port)
    client = await laptop.bridge()
    await client.call("echo", {"text": "secret words"})
    client.end_input()
    await client.ended(within=10)
    assert "own paths" in laptop.log()
    assert "session" in laptop.log()
    assert f"pid={client._running.pid}" in laptop.log()
    assert "secret words" not in laptop.log()
    assert stat.S_IMODE((laptop.home / "logs").stat().st_mode) == 0o700
