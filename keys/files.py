"""Private files: born unreadable to others, written whole or not at all, checked before use."""

import os
import shlex
import stat
import sys
import tempfile
from pathlib import Path


def private_file_fault(path: Path) -> str | None:
    """Return in words why the secret in `path` must not be used, with the repair, or None.

    On POSIX the file must be a regular file, ours or root's, and closed to group and others: the
    rule of ssh(1). On Windows the profile directory's access list is what protects it.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            return f"{path} is not a regular file."
        with path.open("rb"):
            pass
    except FileNotFoundError:
        return f"{path} does not exist. `catalyst-tunnel init` makes a key."
    except ValueError:
        return f"{str(path)!r} is not the name of a file."
    except OSError as exc:
        return f"{path} cannot be read ({exc.strerror}). Make it readable for this user only."
    if sys.platform != "win32":
        if info.st_uid not in (0, os.geteuid()):
            return f"{path} belongs to another user. chown it to the user who runs the tunnel."
        if info.st_mode & 0o077:
            mode = stat.S_IMODE(info.st_mode)
            return f"{path} is open to other users (mode {mode:04o}). {_run('chmod 600', path)}"
    return None


def guarded_file_fault(path: Path) -> str | None:
    """Return in words why what `path` says must not be acted on, with the repair, or None.

    On POSIX the file must be ours or root's, and nobody else may write to it.

    Raises:
        OSError: it is not there, or cannot be looked at.
    """
    info = path.stat()
    if sys.platform != "win32":
        if info.st_uid not in (0, os.geteuid()):
            return f"{path} belongs to another user. {_run('chown root', path)}"
        if info.st_mode & 0o022:
            mode = stat.S_IMODE(info.st_mode)
            return f"{path} may be changed by others (mode {mode:04o}). {_run('chmod go-w', path)}"
    return None


def _run(command: str, path: Path) -> str:
    """Return a repair as a sentence: others follow it."""
    return f"Run `{command} {shlex.quote(str(path))}`."


def make_private_directory(path: Path) -> None:
    """Make `path` and its parents; what is made is closed to other users.

    Raises:
        OSError: it cannot be made.
    """
    if not path.parent.exists():
        make_private_directory(path.parent)  # mkdir's own `parents` would leave these open
    path.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, content: bytes, *, replace: bool) -> None:
    """Write a secret: as `write_whole`, with mode 0600; its directory is made if missing.

    Raises:
        FileExistsError, OSError: see `write_whole`.
    """
    make_private_directory(path.parent)
    write_whole(path, content, replace=replace, mode=0o600)


def write_whole(path: Path, content: bytes, *, replace: bool, mode: int) -> None:
    """Write `content` to `path`, whole or not at all, and through to the disk.

    Args:
        path: the file.
        content: what it shall hold.
        replace: whether a file that exists may be replaced.
        mode: permission bits, whatever the umask says.

    Raises:
        FileExistsError: the file exists and `replace` is False; it is left as it was.
        OSError: it cannot be written; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if mode != 0o600 and sys.platform != "win32":
            temporary.chmod(mode)
        if replace:
            temporary.replace(path)
        elif sys.platform != "win32":
            path.hardlink_to(temporary)  # atomic, and fails where the name is taken
            temporary.unlink()
        else:
            temporary.rename(path)  # Windows refuses to rename over a file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sys.platform != "win32":
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
