"""The stdio client that judges bridges sees what it is there to see."""

import sys

import pytest

from tests.stdioclient import GoneError, StdioClient

SERVER = """\
import json, subprocess, sys
for line in sys.stdin:
    asked = json.loads(line)
    sys.stdout.write({script})
    sys.stdout.flush()
"""
ANSWER = """json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": {}})"""


def client(script: str) -> StdioClient:
    return StdioClient([sys.executable, "-c", SERVER.replace("{script}", script)])


async def test_an_answer_and_a_notification_are_no_noise() -> None:
    told = """'{"jsonrpc": "2.0", "method": "notifications/progress"}' + chr(10)"""
    async with client(f"{told} + {ANSWER} + chr(10)") as server:
        assert (await server.ask("ping"))["result"] == {}
        await server.notified(1)
    assert server.noise == []
    assert server.lines == 2


@pytest.mark.parametrize(
    "noise",
    [
        "'INFO: hello' + chr(10)",
        "chr(10)",
        "'{}' + chr(10)",
        "'[]' + chr(10)",
        """'{"jsonrpc": "2.0", "id": 99, "result": {}}' + chr(10)""",
        """'{"jsonrpc": "2.0", "method": "x"}' + chr(13) + chr(10)""",
    ],
)
async def test_what_is_no_message_is_noise(noise: str) -> None:
    async with client(f"{noise} + {ANSWER} + chr(10)") as server:
        await server.ask("ping")
    assert len(server.noise) == 1


async def test_a_second_answer_is_noise() -> None:
    async with client(f"({ANSWER} + chr(10)) * 2") as server:
        await server.ask("ping")
    assert len(server.noise) == 1


async def test_an_answer_without_its_end_of_line_is_noise() -> None:
    async with client(f"{ANSWER}") as server:
        _, answer = server.request("ping")
        server.end_input()
        with pytest.raises(GoneError):
            await answer
    assert len(server.noise) == 1


async def test_whoever_waits_is_told_when_the_server_ends() -> None:
    async with client("sys.exit(0)") as server:
        with pytest.raises(GoneError):
            await server.ask("ping")
        await server.ended(within=10)
        assert not server.alive
        with pytest.raises(GoneError):
            await server.ask("ping")


async def test_no_child_is_left() -> None:
    child = [sys.executable, "-c", "import time; time.sleep(60)"]
    script = f"subprocess.Popen({child!r}, stdout=subprocess.DEVNULL) and {ANSWER} + chr(10)"
    async with client(script) as server:
        await server.ask("ping")
        family = server.family()
        assert len(family) == 2
    family[1].wait(10)
    assert not any(one.is_running() for one in family)
