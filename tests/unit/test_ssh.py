"""What becomes of a channel whose opening ends in the turn in which its caller leaves."""

import asyncio
import gc
from typing import Any, cast

import asyncssh
import pytest

from tunnel import ssh
from tunnel.settings import Address
from tunnel.ssh import Carrier


class Connection:
    async def wait_closed(self) -> None:
        await asyncio.Event().wait()

    def is_closed(self) -> bool:
        return False


class Channel:
    aborted = False

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize("fails", [True, False])
async def test_a_caller_that_leaves_as_its_channel_opens(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    gate, channel = asyncio.Event(), Channel()

    async def open_channel(*_: object) -> Any:
        await gate.wait()
        if fails:
            raise ssh.ProblemError("target_refused", "no")
        return channel, object()

    monkeypatch.setattr(ssh, "open_channel", open_channel)
    carrier = Carrier(cast(asyncssh.SSHClientConnection, Connection()), None, list)
    caller = asyncio.ensure_future(carrier.open(asyncio.Protocol, Address("127.0.0.1", 5000)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gate.set()
    await asyncio.sleep(0)  # it has ended, and its caller has not heard of it
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.sleep(0)
    del caller
    gc.collect()
    assert told == []
    assert channel.aborted is not fails
