"""The control channel: how `status` and `down` talk to the `up` that runs.

A loopback TCP socket on every system, with a secret in a file that only the owner can read. Each
side proves that it knows the secret without sending it (HMAC-SHA-256 over both sides' nonces, with
a label for the direction), so a port that another user's program has taken over learns nothing and
cannot pretend to be the tunnel.

    client: 32 bytes nonce    server: 32 bytes nonce + proof    client: proof + command line
"""

import asyncio
import contextlib
import hmac
import json
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from keys.files import private_file_fault, write_private

NONCE = 32
DEADLINE = 5.0  # seconds for the other side to answer, at each step
ANSWER = 1 << 20  # bytes of an answer
PROBE_TIME = 10.0  # seconds for a command: a probe has to go to the service and back

Command = Callable[[], Awaitable[dict[str, Any]]]


class NotRunningError(Exception):
    """No tunnel answers on this home."""


class ControlError(Exception):
    """Something is in the way of talking to the tunnel; says what, in words."""


def control_file(home: Path) -> Path:
    """Return the file that holds port and secret while a tunnel runs on `home`."""
    return home / "run" / "up.json"


def _proof(secret: bytes, label: bytes, client: bytes, server: bytes) -> bytes:
    return hmac.digest(secret, label + client + server, "sha256")


class ControlServer:
    """Serves `commands` to the owner of the home."""

    def __init__(self, home: Path, commands: dict[str, Command]) -> None:
        self._file = control_file(home)
        self._commands = {"who": self._who, **commands}
        self._secret = secrets.token_bytes(NONCE)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen, and say where in the control file.

        Raises:
            ControlError: another tunnel runs on this home.
            OSError: the file cannot be written.
        """
        home = self._file.parents[1]
        try:
            running = await ask(home, "who")
        except (NotRunningError, ControlError):
            pass  # nobody there: a file that was left behind, damaged or not, is replaced
        else:
            raise ControlError(
                f"A tunnel runs on {home} already (pid {running.get('pid')}). "
                "Stop it first (catalyst-tunnel down), or give this one a home of its own."
            )
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        where = {
            "pid": os.getpid(),
            "port": self._server.sockets[0].getsockname()[1],
            "secret": self._secret.hex(),
        }
        write_private(self._file, json.dumps(where).encode(), replace=True)

    async def _who(self) -> dict[str, Any]:
        return {"pid": os.getpid()}

    def stop(self) -> None:
        """Stop listening and remove the file, unless another tunnel has replaced it."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(self._file.read_bytes())["secret"] == self._secret.hex():
                self._file.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                client = await reader.readexactly(NONCE)
                server = secrets.token_bytes(NONCE)
                writer.write(server + _proof(self._secret, b"server", client, server))
                proof = await reader.readexactly(NONCE)
                if not hmac.compare_digest(proof, _proof(self._secret, b"client", client, server)):
                    return
                command = self._commands[(await reader.readline()).decode().strip()]
            answer = await command()
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (OSError, EOFError, ValueError, KeyError, TimeoutError):
            pass  # a stranger, or a client that left: there is nobody to tell
        finally:
            writer.close()


async def ask(home: Path, command: str) -> dict[str, Any]:
    """Return what the tunnel that runs on `home` answers to `command`.

    Raises:
        NotRunningError: there is none.
        ControlError: there is one, perhaps, but it cannot be talked to.
    """
    file = control_file(home)
    if not file.exists():
        raise NotRunningError
    if fault := private_file_fault(file):
        raise ControlError(fault)
    try:
        where = json.loads(file.read_bytes())
        port, secret = int(where["port"]), bytes.fromhex(where["secret"])
        if not 0 < port < 65536:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as exc:
        raise ControlError(f"{file} is damaged. Stop the tunnel, then remove it.") from exc
    try:
        async with asyncio.timeout(DEADLINE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=ANSWER)
    except (OSError, TimeoutError) as exc:
        raise NotRunningError from exc  # it ended without time to remove its file
    try:
        proven = False
        async with asyncio.timeout(DEADLINE):
            client = secrets.token_bytes(NONCE)
            writer.write(client)
            server = await reader.readexactly(NONCE)
            proof = await reader.readexactly(NONCE)
        if not hmac.compare_digest(proof, _proof(secret, b"server", client, server)):
            raise NotRunningError  # another program has the port now
        proven = True
        writer.write(_proof(secret, b"client", client, server) + f"{command}\n".encode())
        async with asyncio.timeout(PROBE_TIME):
            answer = json.loads(await reader.readline())
    except TimeoutError as exc:
        if proven:
            raise ControlError("The tunnel runs but does not answer.") from exc
        raise NotRunningError from exc
    except (OSError, EOFError, ValueError) as exc:
        raise NotRunningError from exc
    finally:
        writer.close()
    if not isinstance(answer, dict):
        raise ControlError("The tunnel's answer makes no sense.")
    return answer
