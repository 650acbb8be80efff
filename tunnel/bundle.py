"""The bundle (.mcpb) that Claude Desktop installs on a double click: a zip with a manifest.

Several of our dependencies are compiled for one system and one Python, so a bundle that held them
would run on one kind of machine only. This one holds our sources and names the dependencies; Claude
Desktop's own uv fetches them (server type "uv", manifest version 0.4).

The same sources give the same bytes: names in order, one date, nothing compressed.
"""

import importlib.metadata
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import keys

from . import __version__

ENTRY_POINT = "server/main.py"
_LAUNCHER = b'''"""What Claude Desktop starts."""

from tunnel.bundled import main

if __name__ == "__main__":
    main()
'''
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can tell


class BundleError(Exception):
    """No bundle can be made of this installation; says why, in words."""


def file_name() -> str:
    """Return what the bundle of this version is called."""
    return f"catalyst-tunnel-{__version__}.mcpb"


def build() -> bytes:
    """Return the bundle of this installation.

    Raises:
        BundleError: the package is not installed, so that its dependencies are not known.
        OSError: a source cannot be read.
    """
    contents = {
        "manifest.json": (json.dumps(manifest(), indent=2) + "\n").encode(),
        "pyproject.toml": _project().encode(),
        ENTRY_POINT: _LAUNCHER,
        **_sources(),
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in sorted(contents):
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system = 3  # Unix, wherever it is made
            info.external_attr = 0o100644 << 16
            file.writestr(info, contents[name])
    return archive.getvalue()


def _sources() -> dict[str, bytes]:
    """Return our modules; the demo is left out, which needs the droplet's half."""
    found = {}
    for package in (Path(__file__).parent, Path(keys.__file__).parent):
        for source in package.rglob("*.py"):
            inside = source.relative_to(package.parent)
            if "demo" not in inside.parts:
                found[f"server/{inside.as_posix()}"] = source.read_bytes()
    return found


def _project() -> str:
    """Return the pyproject.toml from which uv learns the dependencies."""
    try:
        said = importlib.metadata.metadata("catalyst-tunnel")
    except importlib.metadata.PackageNotFoundError as exc:
        raise BundleError("catalyst-tunnel is not installed here: pip install it first.") from exc
    required = sorted(said.get_all("Requires-Dist") or [])
    lines = [f"    {json.dumps(one)}," for one in required if "extra ==" not in one]
    return "\n".join(
        [
            "[project]",
            'name = "catalyst-tunnel-bundle"',
            f'version = "{__version__}"',
            f'requires-python = "{said["Requires-Python"]}"',
            "dependencies = [",
            *lines,
            "]",
            "",
            "[tool.uv]",
            "package = false",
            "",
        ]
    )


def manifest() -> dict[str, Any]:
    """Return the manifest: how to start it, and what to ask when it is installed."""
    settings: dict[str, dict[str, Any]] = {
        "config": {
            "type": "string",
            "title": "Settings file",
            "description": "Where config.toml is. Empty: ~/.catalyst-tunnel/config.toml",
        },
        "ssh_host": {
            "type": "string",
            "title": "Droplet",
            "description": "Name or address. Only needed where there is no settings file yet.",
        },
        "ssh_port": {
            "type": "number",
            "title": "Port of its sshd",
            "description": "Only used where there is no settings file yet.",
            "default": 22,
            "min": 1,
            "max": 65535,
        },
        "ssh_user": {
            "type": "string",
            "title": "Account on the droplet",
            "description": "Only used where there is no settings file yet. Empty: your name here",
        },
        "fingerprint": {
            "type": "string",
            "title": "Fingerprint of the droplet's host key",
            "description": "SHA256:..., as the droplet itself says: "
            "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub. "
            "Only needed until the host key is pinned; it is never trusted unseen.",
        },
    }
    for setting in settings.values():
        setting.setdefault("default", "")  # without one, "${user_config...}" itself is passed on
        setting["required"] = False
    return {
        "manifest_version": "0.4",
        "name": "catalyst-tunnel",
        "display_name": "Catalyst Tunnel",
        "version": __version__,
        "description": "Reach an MCP service on a droplet, by SSH or through its gateway.",
        "long_description": "Starts the stdio bridge of catalyst-tunnel. The first start fetches "
        "Python packages, so it needs the internet. No key is in this bundle: keys are "
        "made on this computer, and their private halves stay here. After the first start, this "
        "server's log shows the line that the droplet's authorized_keys needs.",
        "author": {"name": "catalyst-tunnel"},
        "license": "MIT",
        "server": {
            "type": "uv",
            "entry_point": ENTRY_POINT,
            "mcp_config": {
                "command": "uv",
                "args": [
                    "run",
                    "--directory",
                    "${__dirname}",
                    f"${{__dirname}}/{ENTRY_POINT}",
                    *(f"--{key.replace('_', '-')}=${{user_config.{key}}}" for key in settings),
                ],
            },
        },
        "tools_generated": True,
        "prompts_generated": True,
        # Without "runtimes": uv brings a Python, and none on this computer must be asked for.
        "compatibility": {"platforms": ["darwin", "win32", "linux"]},
        "user_config": settings,
    }
