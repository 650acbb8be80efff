"""A real `catalyst-gateway registrar` beside a gateway, and clients that change their keys.

::

    with RegistrarServer(gateway.directory) as registrar:
        pen = Pen(laptop, generation)
        await caller.ask(pen.introduce(csr=...), path=PATH, fields=JOSE)
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keys import certs
from keys.statement import CONTENT_TYPE, PATH, Author
from keys.token import JTI
from tests.callers import Caller
from tests.gatewayserver import AUDIENCE, Enrolled

DEADLINE = 15.0
JOSE = {"Content-Type": CONTENT_TYPE}


class RegistrarServer:
    """One registrar for a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "registrar.log"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "registrar", "--dir", str(self.directory)],
            stdout=subprocess.PIPE,
            stderr=self.log.open("a"),
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("registrar ready on "), self.log.read_text()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> int:
        """Stop in order, and return the exit code."""
        assert self._process is not None and self._process.stdout is not None
        self._process.terminate()
        code = self._process.wait(DEADLINE)
        self._process.stdout.close()
        return code

    def kill(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait(DEADLINE)
        self._process.stdout.close()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.running:
            self.signal(signal.SIGCONT)
            self.kill()


@dataclass
class Pen:
    """Writes the statements of a client, each good now but for what a test changes."""

    client: Enrolled
    generation: int
    key: Ed25519PrivateKey | None = None

    def _written(self, verb: str, **what: Any) -> bytes:
        author = Author(self.key or self.client.key, self.client.name, AUDIENCE)
        made = getattr(author, verb)(self.generation, time.time(), os.urandom(JTI), **what)
        return str(made).encode()

    def introduce(self, **what: Any) -> bytes:
        return self._written("introduce", **what)

    def retire(self, **what: Any) -> bytes:
        return self._written("retire", **what)

    def revoke(self) -> bytes:
        return self._written("revoke")


def new_csr() -> tuple[ec.EllipticCurvePrivateKey, str]:
    """Return a new TLS key, and the request for its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key, certs.make_request(key).decode()


async def status(caller: Caller) -> dict[str, Any]:
    """Return what the gateway says is in force for this client."""
    async with caller.ask(path=PATH) as answer:
        assert answer.status == 200, await answer.text()
        told = await answer.json()
        assert isinstance(told, dict)
        return told


async def change(caller: Caller, statement: bytes) -> tuple[int, dict[str, Any]]:
    """Send a statement; return status and answer."""
    async with caller.ask(statement, path=PATH, fields=JOSE) as answer:
        assert "Via" not in answer.headers
        assert answer.headers["Proxy-Status"].startswith("catalyst-gateway")
        return answer.status, await answer.json()
