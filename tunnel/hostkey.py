"""Fetching a host key to look at, and pinning the one that was confirmed."""

import asyncio
from pathlib import Path

import asyncssh

from keys.files import write_private
from keys.sshkey import fingerprint

from .settings import Address

DEADLINE = 10.0  # seconds for connection and key exchange
_ALGORITHMS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512")


class HostKeyError(Exception):
    """No host key could be had, or not the expected one; says why, in words."""


async def fetch(where: Address, expected: str | None) -> str:
    """Return the host key of `where` as "type base64"; nothing is trusted by that.

    Args:
        where: the droplet's sshd.
        expected: a fingerprint; of the server's several keys the one that has it is returned.

    Raises:
        HostKeyError: the server cannot be asked, or no key of it has the fingerprint.
    """
    seen: list[str] = []
    spoke = False  # whether it got as far as SSH at all
    for algorithm in _ALGORITHMS:
        try:
            async with asyncio.timeout(DEADLINE):
                key = await asyncssh.get_server_host_key(
                    where.host, where.port, config=None, server_host_key_algs=[algorithm]
                )
        except TimeoutError as exc:
            raise HostKeyError(f"{where} did not answer within {DEADLINE:g} s.") from exc
        except asyncssh.KeyExchangeFailed:
            spoke = True
            continue  # it has no key of this kind
        except (ConnectionResetError, asyncssh.ConnectionLost):
            continue  # the same, of an sshd that hangs up on the question
        except OSError as exc:
            reason = exc.strerror or "the name does not resolve"
            raise HostKeyError(f"Cannot connect to {where}: {reason}.") from exc
        except asyncssh.DisconnectError as exc:
            raise HostKeyError(f"{where} does not speak SSH as it should.") from exc
        if key is None:
            continue
        spoke = True
        public = " ".join(key.export_public_key("openssh").decode("ascii").split()[:2])
        if expected is None or fingerprint(public) == expected:
            return public
        seen.append(fingerprint(public))
    if not spoke:
        raise HostKeyError(f"{where} closes the connection before it shows a key: see its log.")
    if expected is None:
        raise HostKeyError(f"{where} offers no host key of a kind that is still trusted.")
    raise HostKeyError(
        f"{where} has no host key with the fingerprint {expected}; it shows {', '.join(seen)}. "
        "Compare on the droplet: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
    )


def pinned(known_hosts: Path, where: Address) -> list[str]:
    """Return the host keys that `known_hosts` holds for `where`, as "type base64".

    Raises:
        HostKeyError: the file is not in the format of known_hosts.
        OSError: it cannot be read, though it exists.
    """
    if not known_hosts.exists():
        return []
    try:
        keys, *_ = asyncssh.match_known_hosts(str(known_hosts), where.host, "", where.port)
    except ValueError as exc:
        raise HostKeyError(f"{known_hosts} is damaged: {exc}") from exc
    return [" ".join(key.export_public_key("openssh").decode("ascii").split()[:2]) for key in keys]


def pin(known_hosts: Path, where: Address, public: str) -> None:
    """Add `public` for `where` to `known_hosts`; lines that are there stay.

    Raises:
        OSError: the file cannot be written; it is left as it was.
    """
    name = where.host if where.port == 22 else f"[{where.host}]:{where.port}"
    before = known_hosts.read_bytes() if known_hosts.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    write_private(known_hosts, before + f"{name} {public}\n".encode(), replace=True)
