"""The far side: a real OpenSSH sshd, and the HTTP service (`Target`) for it to forward to.

::

    with Sshd(tmp_path) as sshd:
        async with Target() as target:
            ...  # ssh -p sshd.port -i sshd.identity -o UserKnownHostsFile=sshd.known_hosts

The service can be a process of its own too: ``python -m tests.droplet target --port 0``.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Self

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.faults import fast_runner
from tests.target import Target

__all__ = ["Sshd", "Target", "find_sshd", "free_port", "make_key"]

START_DEADLINE = 10.0

# Debian's stock sshd_config, with what a private instance needs in front.
CONFIG = """\
Port {port}
ListenAddress {host}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile {directory}/sshd.pid
StrictModes no
UsePAM no
KbdInteractiveAuthentication no
X11Forwarding yes
PrintMotd no
AcceptEnv LANG LC_*
"""


def find_sshd() -> Path | None:
    """Where sshd is, also for users whose PATH has no sbin; None where it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])
    found = shutil.which("sshd", path=path)
    return Path(found) if found else None


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def make_key(path: Path) -> str:
    """Write an Ed25519 key pair to PATH (0600) and PATH.pub; the public line is returned."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.with_suffix(".pub").write_text(f"{public}\n")
    return public


class Sshd:
    """The real sshd on a loopback port, with its own keys and configuration in `directory`.

    It logs in the user that runs it, so it needs no root (but an account that is not locked: see
    `log`). `config_lines` are added at the end of sshd_config (a Match block, say) and read again
    at every start. Raises RuntimeError, with sshd's own words, when it does not come up.
    """

    def __init__(self, directory: Path, *, config_lines: Sequence[str] = ()) -> None:
        found = find_sshd()
        if found is None:
            raise RuntimeError("sshd is not installed: apt install openssh-server")
        self.program = found
        self.directory = directory
        self.config_lines = list(config_lines)
        self.host = "127.0.0.1"
        self.port = free_port()
        self.user = psutil.Process().username()
        self.identity = directory / "id"
        self.known_hosts = directory / "known_hosts"
        self._log = directory / "sshd.log"
        self._process: subprocess.Popen[bytes] | None = None

        directory.mkdir(parents=True, exist_ok=True)
        self.host_key = make_key(directory / "host_key")
        self.public_key = make_key(self.identity)
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {self.host_key}\n")
        self.authorize(self.public_key)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it listens, on the same port as the last time."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd's chroot before login; systemd makes it
        config = self.directory / "sshd_config"
        lines = CONFIG.format(port=self.port, host=self.host, directory=self.directory)
        config.write_text(lines + "\n".join(self.config_lines) + "\n")
        before = len(self.log())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, "-D", "-e", "-f", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        limit = monotonic() + START_DEADLINE
        # Its own word is awaited: a trial connection would count against sshd's penalties.
        while "Server listening on" not in (said := self.log()[before:]):
            if self._process.poll() is not None or monotonic() > limit:
                self.stop()
                raise RuntimeError(f"sshd did not start: {said}")
            sleep(0.005)

    def stop(self) -> None:
        """End it and all its sessions, at once: nothing listens, and no FIN waits for a timeout."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)  # it cannot fork while its sessions die
            kill(self.sessions())
            self._process.kill()
            self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop and start on the same port; every session is lost."""
        self.stop()
        self.start()

    def kill_sessions(self) -> int:
        """SIGKILL the processes of its connections, not the listener; returns how many."""
        sessions = self.sessions()
        kill(sessions)
        psutil.wait_procs(sessions, timeout=START_DEADLINE)
        return len(sessions)

    def sessions(self) -> list[psutil.Process]:
        """The processes of its connections, authenticated or not."""
        if self._process is None:
            return []
        children: list[psutil.Process] = psutil.Process(self._process.pid).children(recursive=True)
        return children

    def authorize(self, *lines: str) -> None:
        """Make these the lines of authorized_keys; sshd reads them at every login."""
        (self.directory / "authorized_keys").write_text("".join(f"{line}\n" for line in lines))

    def log(self) -> str:
        """All that sshd has said since the first start."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def kill(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL each of them that is still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


async def _serve(host: str, port: int) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    async with Target(host=host, port=port) as target:
        print(f"target ready on {target.host}:{target.port}", flush=True)
        await over.wait()


def main() -> None:
    """Run the target as a process until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.droplet")
    commands = parser.add_subparsers(required=True)
    target = commands.add_parser("target", help="the HTTP service of tests/target.py")
    target.add_argument("--host", default="127.0.0.1")
    target.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with fast_runner() as runner:
        runner.run(_serve(options.host, options.port))


if __name__ == "__main__":
    main()
