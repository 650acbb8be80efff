"""`init`: the first settings file, the key, and the line that the droplet needs."""

import getpass
import json
import platform
from dataclasses import dataclass
from pathlib import Path

from keys.files import write_private
from keys.locked import Unlock
from keys.sshkey import authorized_line, make_key, public_half

from .settings import Address, Settings, parse

KEY = Path("keys") / "ssh_ed25519"


@dataclass(frozen=True, slots=True)
class Answers:
    """What `init` has to know."""

    host: str
    port: int
    user: str
    target: Address
    listen: Address


def render(answers: Answers) -> str:
    """Return the settings file, with the defaults that people look for written out."""

    def quoted(text: object) -> str:
        return json.dumps(str(text), ensure_ascii=False)  # a JSON string is a TOML basic string

    return f"""\
# catalyst-tunnel: `catalyst-tunnel up` reads this file. Paths are relative to it.

[tunnel]
listen = {quoted(answers.listen)}  # the twin on ::1 is bound too
paths = ["ssh"]
hold = 30                    # seconds that requests wait for a path

[ssh]
host = {quoted(answers.host)}
port = {answers.port}
user = {quoted(answers.user)}
known_hosts = "known_hosts"
target = {quoted(answers.target)}  # as the droplet sees the service

# A raw TCP forward for what is not HTTP:
# [[forward]]
# name = "database"
# listen = "127.0.0.1:15432"
# target = "127.0.0.1:5432"
"""


def write_settings(file: Path, answers: Answers) -> None:
    """Write the settings file, if it would be a good one.

    Raises:
        SettingsError: the answers are at fault; nothing is written.
        FileExistsError: there is one already.
        OSError: it cannot be written.
    """
    text = render(answers)
    parse(file, text)
    write_private(file, text.encode(), replace=False)


def ensure_key(path: Path, unlock: Unlock | None = None) -> tuple[str, bool]:
    """Return the public half of the key in `path`, made if there is none, and whether it was.

    Raises:
        keys.sshkey.KeyFileError: what is there is not such a key; it is left as it was.
        OSError: it cannot be read or written.
    """
    if path.exists():
        return public_half(path, unlock), False
    return make_key(path, unlock), True


def line_for(settings: Settings, public: str) -> str:
    """Return the authorized_keys line for these settings: their targets, and nothing else."""
    targets = [settings.ssh.target, *(rule.target for rule in settings.forwards)]
    comment = f"catalyst-tunnel:{getpass.getuser()}@{platform.node() or 'laptop'}".replace(" ", "-")
    return authorized_line(public, [str(target) for target in dict.fromkeys(targets)], comment)
