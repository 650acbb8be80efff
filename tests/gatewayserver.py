"""A real `catalyst-gateway serve`, with clients that were enrolled as people enrol them.

::

    with GatewayServer(tmp_path / "gateway", "http://127.0.0.1:5000") as gateway:
        laptop = gateway.enrol(tmp_path / "laptop", "operator")
        ...  # gateway.port for what comes over ssh, gateway.socket for NGINX
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keys import certs
from keys.keyring import load_token_key
from keys.token import JTI, Minter
from tests.droplet import free_port
from tunnel.custody import enrol

DEADLINE = 15.0
AUDIENCE = "catalyst-gateway:localhost"


@dataclass(frozen=True)
class Enrolled:
    """A client that was let in, with everything that it holds."""

    name: str
    home: Path
    key: Ed25519PrivateKey
    certificate: str
    thumbprint: str

    @property
    def config(self) -> Path:
        return self.home / "config.toml"

    @property
    def escaped(self) -> str:
        """The certificate as NGINX tells it."""
        return quote(self.certificate, safe="")

    def identity(self, verify: str = "SUCCESS") -> dict[str, str]:
        """The fields that NGINX sets."""
        return {"X-Client-Verify": verify, "X-Client-Cert": self.escaped}

    def token(self, *, bound: bool, now: float | None = None) -> str:
        minter = Minter(self.key, self.name, AUDIENCE)
        when = time.time() if now is None else now
        return minter.mint(when, os.urandom(JTI), self.thumbprint if bound else None)

    def over_https(self) -> dict[str, str]:
        """Fields of a good request, as NGINX passes it on."""
        return {**self.identity(), "Authorization": f"Bearer {self.token(bound=True)}"}

    def over_ssh(self) -> dict[str, str]:
        """Fields of a good request that came through sshd; they serve once."""
        return {"Authorization": f"Bearer {self.token(bound=False)}"}


def call(method: str = "tools/call", name: str | None = "get_cycle", **params: Any) -> bytes:
    """Return a JSON-RPC request."""
    if name is not None:
        params["name"] = name
    message = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
    return json.dumps(message).encode()


class GatewayServer:
    """One gateway in a directory of its own."""

    def __init__(
        self,
        directory: Path,
        upstream: str,
        *,
        https_port: int = 443,
        tls_ca: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.socket = directory / "run" / "gateway.sock"
        self.log = directory / "log"
        self._process: subprocess.Popen[str] | None = None
        arguments = ["init", "--domain", "localhost", "--upstream", upstream]
        arguments += ["--listen", f"127.0.0.1:{self.port}", "--https-port", str(https_port)]
        if tls_ca is not None:
            arguments += ["--tls-ca", str(tls_ca)]
        self.run(*arguments)
        for key, value in (settings or {}).items():
            self.change(key, value)

    def change(self, key: str, value: str) -> None:
        """Give a key of gateway.toml another value, as TOML."""
        file = self.directory / "gateway.toml"
        text = file.read_text()
        changed, count = re.subn(rf"(?m)^{key} = .*$", lambda _: f"{key} = {value}", text)
        if not count:
            table, _, name = key.rpartition(".")
            changed = text.replace(f"[{table}]", f"[{table}]\n{name} = {value}", 1)
        assert changed != text, key
        fresh = file.with_suffix(".new")
        fresh.write_text(changed)
        fresh.chmod(0o600)
        fresh.replace(file)

    def run(
        self, *arguments: str, stdin: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of `catalyst-gateway` on this directory."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *arguments, "--dir", str(self.directory)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
        )
        if check and done.returncode:
            raise AssertionError(f"{arguments}: {done.stderr}")
        return done

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Change settings or registry inside; afterwards a gateway that runs has looked at them."""
        before = self._looks()
        yield
        deadline = monotonic() + DEADLINE
        while self.running and self._looks() == before:
            assert monotonic() < deadline, self.log.read_text()
            sleep(0.02)

    def _looks(self) -> int:
        text = self.log.read_text() if self.log.exists() else ""
        return text.count(" loaded ") + text.count(" kept what was loaded ")

    def enrol(self, home: Path, role: str, name: str | None = None) -> Enrolled:
        """Enrol a client: request there, `client add` here, accept there."""
        name = name or home.name
        request = enrol.make_request(home)
        with self.reloading():
            answer = self.run("client", "add", name, "--role", role, stdin=request).stdout
        enrol.install(home / "config.toml", answer.encode())
        key = load_token_key(home / "keys" / "token.key")
        certificate = (home / "keys" / "tls.crt").read_text()
        thumbprint = certs.facts(certificate.encode()).thumbprint
        return Enrolled(name, home, key, certificate, thumbprint)

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--dir", str(self.directory)],
            stdout=subprocess.PIPE,
            stderr=self.log.open("a"),
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert " ready on " in line, self.log.read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, seconds: float = DEADLINE) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self) -> int:
        """Stop in order, and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(60)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def audit(self) -> list[dict[str, Any]]:
        """Return what is on record."""
        text = (self.directory / "state" / "audit.jsonl").read_text()
        whole = text[: text.rfind("\n") + 1]  # the last line may be on its way
        return [json.loads(line) for line in whole.splitlines()]

    def until_audit(self, code: str, seconds: float = 5.0) -> dict[str, Any]:
        """Return the last line with `code`, once there is one."""
        deadline = monotonic() + seconds
        while True:
            found = [line for line in self.audit() if line.get("code") == code]
            if found:
                return found[-1]
            assert monotonic() < deadline, self.audit()[-3:]
            sleep(0.02)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.terminate()
                self._process.wait(3)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
