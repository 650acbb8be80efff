"""`demo`: a droplet (service, gateway, SSH server, NGINX) in processes, and a real tunnel to it.

What is written goes to a temporary home, what is started is stopped with it; gateway and tunnel are
started and enrolled as their users do it.
"""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from keys.files import make_private_directory, write_private
from keys.sshkey import authorized_line, make_key, public_half

from .. import hostkey, initialise
from ..custody import enrol
from ..settings import Address
from . import nginx
from .parts import STOP, DemoError, command, free_port, part, port_of, program
from .tour import show


def run(port: int, say: Callable[[str], object]) -> int:
    """Run the demo on local `port` until it is interrupted; returns the exit code of `up`.

    Raises:
        DemoError: a part cannot be started.
    """
    if find_spec("fastmcp") is None:
        raise DemoError("The demo's service needs FastMCP: pip install 'catalyst-tunnel[demo]'", 2)
    port = port or free_port()
    _must_be_free(port)
    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal says HUP; Windows knows none
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: sys.exit(143))  # and stop the parts
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(_directory()))
        say("Starting the orchestration service (FastMCP) ...")
        service = stack.enter_context(part("tunnel.demo.orchestration", "--port", "0"))
        droplet = Droplet(home / "droplet", port_of(service), say)
        droplet.start(stack)
        laptop, observer = home / "laptop", home / "observer"
        droplet.enrol(laptop, "operator", port)
        if droplet.has_gateway:
            droplet.enrol(observer, "observer", free_port())
        droplet.start_ssh()
        config = laptop / "config.toml"
        program = "catalyst-tunnel" if shutil.which("catalyst-tunnel") else sys.argv[0]
        say(_WHAT_TO_TRY.format(port=port, config=config, program=program))
        up = subprocess.Popen([sys.executable, "-m", "tunnel", "up", "--config", str(config)])
        try:
            show(droplet, port, config, observer / "config.toml", say)
            return up.wait()
        except KeyboardInterrupt:
            return up.wait(STOP * 2)  # Ctrl-C in a terminal reached it too
        finally:
            if up.poll() is None:
                up.terminate()
                up.wait(STOP * 2)


def _directory() -> "tempfile.TemporaryDirectory[str]":
    """Make the home; where it can be, its name is short, as those of Unix sockets have to be."""
    short = Path("/tmp")  # noqa: S108  closed to others, and $TMPDIR is long on macOS
    place = short if short.is_dir() else None
    return tempfile.TemporaryDirectory(prefix="catalyst-demo-", dir=place)


def _must_be_free(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as exc:
        text = f"Port {port} is taken. Choose another: --port 5050, or make demo PORT=5050."
        raise DemoError(text, 2) from exc


class Droplet:
    """The far side: an SSH server and, where it is installed, NGINX; the gateway behind both."""

    def __init__(self, directory: Path, service: int, say: Callable[[str], object]) -> None:
        self._directory = directory
        self._service = service
        self._say = say
        self._gateway_port = free_port()
        self._entry = self._gateway_port if self.has_gateway else service
        self._ssh_port = free_port()
        self._https_port = free_port()
        self._ssh: contextlib.ExitStack | None = None
        self._program = nginx.find() if self.has_gateway else None
        make_private_directory(directory)

    @property
    def has_gateway(self) -> bool:
        """Whether there is a gateway, and not the service alone."""
        return GATEWAY

    @property
    def has_https(self) -> bool:
        """Whether there is an NGINX to come in by."""
        return self._program is not None

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start the gateway, and NGINX if there is one; `stack` stops everything.

        Raises:
            DemoError: something does not start.
        """
        stack.callback(self.stop_ssh)
        make_key(self._directory / "host_key")
        if not self.has_gateway:
            self._say("The gateway does not run on Windows: this demo has the ssh path alone.")
            return
        gateway = self._directory / "gateway"
        certificate, key = nginx.make_certificate(self._directory)
        init = ["gateway", "init", "--dir", str(gateway), "--domain", "localhost"]
        init += ["--upstream", f"http://127.0.0.1:{self._service}"]
        init += ["--listen", f"127.0.0.1:{self._gateway_port}"]
        init += ["--https-port", str(self._https_port), "--tls-ca", str(certificate)]
        command(*init)
        settings = gateway / "gateway.toml"
        text = settings.read_text(encoding="utf-8")
        text = re.sub(r'(?m)^ssh_user = "[^"]*"', f'ssh_user = "{ACCOUNT}"', text)
        settings.write_text(text, encoding="utf-8")
        self._say("Starting the gateway ...")
        for service in ("serve", "registrar"):
            stack.enter_context(part("gateway", service, "--dir", str(gateway)))
        if self._program is None:
            self._say("NGINX is not installed, so there is no https path in this demo.")
            return
        self._say("Starting NGINX ...")
        site = ["gateway", "nginx", "--print", "--dir", str(gateway)]
        site += ["--https-port", str(self._https_port), "--http-port", str(free_port())]
        site += ["--tls-cert", str(certificate), "--tls-key", str(key)]
        site += ["--access-log", str(self._directory / "access.log")]
        file = nginx.configure(self._directory, command(*site))
        arguments = [self._program, "-p", str(self._directory), "-c", str(file)]
        arguments += ["-e", str(self._directory / "error.log")]
        stack.enter_context(program(arguments, self._https_port, self._directory / "nginx.log"))

    def start_ssh(self) -> None:
        """Start the SSH server, on the port that it had."""
        if self._ssh is None:
            self._say("Starting the SSH server ...")
            self._ssh = contextlib.ExitStack()
            self._ssh.enter_context(
                part(
                    "tunnel.demo.droplet",
                    str(self._directory),
                    str(self._ssh_port),
                    str(self._entry),
                )
            )

    def stop_ssh(self) -> None:
        """Stop the SSH server, and with it the ssh path."""
        if self._ssh is not None:
            self._ssh.close()
            self._ssh = None

    def enrol(self, home: Path, role: str, port: int) -> None:
        """Make a client's home with settings and keys, and have it let in.

        Raises:
            DemoError: the gateway does not.
        """
        where = Address("127.0.0.1", self._ssh_port)
        target = Address("127.0.0.1", self._entry)
        answers = initialise.Answers(
            where.host, where.port, "demo", target, Address("127.0.0.1", port)
        )
        config = home / "config.toml"
        identity = home / initialise.KEY
        initialise.write_settings(config, answers)
        make_key(identity)
        hostkey.pin(home / "known_hosts", where, public_half(self._directory / "host_key"))
        if not self.has_gateway:
            line = authorized_line(public_half(identity), [str(target)], home.name)
            (self._directory / "authorized_keys").write_text(f"{line}\n", encoding="ascii")
            return
        request = enrol.make_request(home)
        add = ["client", "add", home.name, "--role", role]
        gateway = self._directory / "gateway"
        answer = command("gateway", *add, "--dir", str(gateway), stdin=request)
        enrol.install(config, answer.encode())
        text = config.read_text(encoding="utf-8")
        text = text.replace("[ssh]\n", "[ssh]\ngateway = true\n", 1)
        if not self.has_https:
            text = text.replace('paths = ["ssh", "https"]', 'paths = ["ssh"]', 1)
        write_private(config, text.encode(), replace=True)


GATEWAY = sys.platform != "win32"  # it is for droplets
ACCOUNT = "catalyst-demo"  # nobody's here: the registrar ends sessions of sshd's that it has

_WHAT_TO_TRY = """\

The tunnel comes up on http://localhost:{port} now. In another terminal:

  curl http://localhost:{port}/system/health
  {program} status --config {config}
  {program} tools --config {config}

Point any MCP client (Streamable HTTP) at http://localhost:{port}/mcp, for example:

  npx @modelcontextprotocol/inspector --cli http://localhost:{port}/mcp \\
      --transport http --method resources/list

Ctrl-C stops everything.
"""
