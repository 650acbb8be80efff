"""Who is compared: each brings one local port that leads to the same target over the same sshd."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.processes import Generator, Process
from tests.droplet import Sshd, free_port

READY = 15.0  # seconds to come up


@dataclass(frozen=True)
class Far:
    """The far side as a contender sees it."""

    sshd: Sshd
    ssh_port: int  # sshd's own, or that of a relay in front of it
    target_port: int  # as sshd reaches it
    direct_port: int  # the target, or a relay in front of it, without any SSH
    directory: Path


class Contender:
    """A way to the target. `port` is where its clients connect."""

    name: ClassVar[str]
    program: ClassVar[str | None] = None  # what has to be installed

    def __init__(self, far: Far) -> None:
        self.far = far
        self.port = free_port()
        self.directory = far.directory / f"{self.name.replace(' ', '-')}-{self.port}"
        self.process: Process | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot take part, or None."""
        if cls.program is None or shutil.which(cls.program):
            return None
        return f"{cls.program} is not installed"

    def make(self) -> Process:
        """The process that brings the port."""
        raise NotImplementedError

    async def start(self, generator: Generator) -> None:
        """Start and wait for the first answer; raises JobError."""
        self.launch()
        assert self.process is not None
        await self.process.start()
        await generator.run("first", port=self.port, deadline=READY)

    def launch(self) -> None:
        """Make its directory and its process, without starting it."""
        self.directory.mkdir(parents=True)
        host_key = self.far.sshd.host_key
        self.known_hosts.write_text(f"[127.0.0.1]:{self.far.ssh_port} {host_key}\n")
        self.process = self.make()

    async def stop(self) -> None:
        """End it."""
        if self.process is not None:
            await self.process.stop()

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def log(self) -> Path:
        return self.directory / "log"


class Direct(Contender):
    """No tunnel at all, for reference."""

    name = "direct"

    async def start(self, generator: Generator) -> None:
        self.port = self.far.direct_port
        await generator.run("first", port=self.port, deadline=READY)


class Ssh(Contender):
    """`ssh -N -L` with stock settings."""

    name = "ssh -L"
    program = "ssh"

    def make(self) -> Process:
        return Process(["ssh", *self.arguments()], self.log)

    def arguments(self) -> list[str | Path]:
        far = self.far
        options = [
            f"UserKnownHostsFile={self.known_hosts}",
            "GlobalKnownHostsFile=none",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "BatchMode=yes",
            "ExitOnForwardFailure=yes",
        ]
        return [
            *("-N", "-F", "none", "-i", far.sshd.identity, "-p", str(far.ssh_port)),
            *(part for option in options for part in ("-o", option)),
            *("-L", f"127.0.0.1:{self.port}:127.0.0.1:{far.target_port}"),
            f"{far.sshd.user}@127.0.0.1",
        ]


class Autossh(Ssh):
    """autossh as its users run it: no monitoring port, SSH's own keepalives instead."""

    name = "autossh"
    program = "autossh"

    def make(self) -> Process:
        alive = ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        # Without GATETIME=0 it gives up for good when its first connection is short.
        env = {"AUTOSSH_GATETIME": "0"}
        return Process(["autossh", "-M", "0", *alive, *self.arguments()], self.log, env)


class Catalyst(Contender):
    """`catalyst-tunnel up`, in a process of its own for each contender."""

    name = "catalyst listener"
    hold = 90.0

    def make(self) -> Process:
        config = self.directory / "config.toml"
        config.write_text(self.config())
        command: list[str | Path] = [sys.executable, "-m", "tunnel", "up", "--config", config]
        return Process(command, self.log, {"CATALYST_HOME": str(self.directory)})

    def config(self) -> str:
        sshd = self.far.sshd
        listener, raw = self.ports()
        return f"""\
[tunnel]
listen = "127.0.0.1:{listener}"
paths = ["ssh"]
hold = {self.hold:g}

[ssh]
host = "127.0.0.1"
port = {self.far.ssh_port}
user = "{sshd.user}"
identity = "{sshd.identity}"
known_hosts = "{self.known_hosts}"
target = "127.0.0.1:{self.far.target_port}"

[[forward]]
name = "raw"
listen = "127.0.0.1:{raw}"
target = "127.0.0.1:{self.far.target_port}"
"""

    def ports(self) -> tuple[int, int]:
        """The ports of listener and raw forward; one of them is `port`."""
        return self.port, free_port()


class CatalystRaw(Catalyst):
    """The same program's raw [[forward]]."""

    name = "catalyst raw"

    def ports(self) -> tuple[int, int]:
        return free_port(), self.port


CONTENDERS: list[type[Contender]] = [Direct, Ssh, Autossh, CatalystRaw, Catalyst]
