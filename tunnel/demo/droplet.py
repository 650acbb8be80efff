"""The demo's SSH server: lets known keys in, forwards to one target, and does nothing else.

A real droplet runs OpenSSH; this one is asyncssh's server, so that the demo needs no root, no
installed sshd and no POSIX. It is not for use outside of the demo.

    python -m tunnel.demo.droplet DIRECTORY PORT TARGET_PORT

DIRECTORY holds `host_key`, and `gateway/registry.json` or `authorized_keys`. `droplet ready on
HOST:PORT` is printed once it listens.
"""

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path

import asyncssh


class _Server(asyncssh.SSHServer):
    """Forwards to the service and refuses everything else."""

    def __init__(self, target_port: int, registry: Path) -> None:
        self._target_port = target_port
        self._registry = registry

    def public_key_auth_supported(self) -> bool:
        """Let clients in by their keys, and by nothing else."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Ask the registry, as sshd does by `catalyst-gateway authorized-keys`."""
        line = " ".join(key.export_public_key("openssh").decode("ascii").split()[:2])
        return line in _accepted(self._registry)

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> bool:
        """Allow the one target."""
        return (dest_host, dest_port) == ("127.0.0.1", self._target_port)


def _accepted(registry: Path) -> set[str]:
    """Return the keys that the registry lets in, "type base64"; none where there is no gateway."""
    if not registry.exists():
        return set()
    clients = json.loads(registry.read_bytes())["clients"]
    keys = [key for one in clients if not one["revoked"] for key in one["ssh_keys"]]
    return {key["key"] for key in keys if not key["revoked"]}


async def serve(directory: Path, port: int, target_port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows ends it with the process
        loop.add_signal_handler(signal.SIGTERM, over.set)
        loop.add_signal_handler(signal.SIGINT, over.set)
    keys = directory / "authorized_keys"
    server = await asyncssh.listen(
        "127.0.0.1",
        port,
        server_factory=lambda: _Server(target_port, directory / "gateway" / "registry.json"),
        server_host_keys=[str(directory / "host_key")],
        authorized_client_keys=str(keys) if keys.exists() else None,
        allow_pty=False,
        agent_forwarding=False,
    )
    sys.stdout.write(f"droplet ready on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await over.wait()
    server.close()


def main() -> None:
    """Run the server with the arguments of the command line."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))


if __name__ == "__main__":
    main()
