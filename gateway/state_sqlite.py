"""State of a single gateway, in one SQLite file that survives restarts.

A claim is one INSERT: the primary key is the test and the memory in one step. It runs in the event
loop, because it takes tens of microseconds, less than handing it to a thread. WAL with
synchronous=NORMAL keeps it that short: a claim is safe from the end of the process, not from the
end of the power. So the file notes the boot that it was written in, and the memory begins anew
with another one. (A copy that is put back within one boot is not noticed: it has no place in
backups.)

Rates live in memory, and are written at most once a second: what is lost is a second of pacing.
"""

import logging
import math
import os
import sqlite3
import stat
import sys
import uuid
from pathlib import Path

from keys.files import make_private_directory
from keys.token import LEEWAY

from .rate import MICROSECONDS, Rate, gcra
from .state import (
    ADMITTED,
    FORGOTTEN,
    REPLAYED,
    Admission,
    Claim,
    StateError,
    Verdict,
    forgotten,
)

FILE = "state.db"
SCHEMA = 1  # PRAGMA user_version
BUSY = 0.25  # seconds to wait at open for a process that is just ending
SAVE = 1.0  # seconds between writes of the rates
CHECKPOINT = 250  # pages of WAL; the loop waits for the disk then, so often and shortly
SWEEP = 128  # claims after which expired ones are deleted, at most twice as many

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_SKEW = LEEWAY * MICROSECONDS

_TABLES = f"""
BEGIN;
CREATE TABLE claims (
    kid TEXT NOT NULL, jti TEXT NOT NULL, expires INTEGER NOT NULL, PRIMARY KEY (kid, jti)
) WITHOUT ROWID;
CREATE INDEX claims_expires ON claims (expires);
CREATE TABLE lanes (lane TEXT PRIMARY KEY, due INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE mark (
    only INTEGER PRIMARY KEY CHECK (only = 1), since REAL NOT NULL, swept REAL NOT NULL,
    boot TEXT NOT NULL
);
PRAGMA user_version = {SCHEMA};
COMMIT;
"""
_TAKE = "INSERT INTO claims VALUES (?, ?, ?) ON CONFLICT (kid, jti) DO NOTHING"
_SWEEP = """DELETE FROM claims WHERE (kid, jti) IN
    (SELECT kid, jti FROM claims WHERE expires < ? ORDER BY expires LIMIT ?)"""

_log = logging.getLogger(__name__)


def prepare(directory: Path, now: float) -> None:
    """See `state.prepare`."""
    state = SqliteState(directory)
    if not state.file.exists():
        state.start()
        try:
            state.begin(now)
        finally:
            state.end()


class SqliteState:
    """`State` in directory/state.db, which one process at a time may hold."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / FILE
        self._files: list[tuple[Path, tuple[int, int]]] = []  # with the device and inode of each
        self._db: sqlite3.Connection | None = None
        self._since = math.inf  # nothing is known yet of what came before
        self._swept = 0.0  # when claims were last deleted
        self._taken = 0  # claims since then
        self._lanes: dict[str, int] = {}
        self._saved = 0.0  # when the lanes were last written
        self._changed = False

    async def open(self) -> None:
        """See `State.open`."""
        self.start()

    async def admit(self, lane: str, rate: Rate, claim: Claim | None, now: float) -> Admission:
        """See `State.admit`."""
        if now + LEEWAY < max(self._since, self._swept):
            # New, or the clock was put back: what was deleted as expired may be valid again.
            self.begin(now)
        if self._changed and abs(now - self._saved) >= SAVE:
            self._save(now)
        if claim is not None and (refusal := self._take(claim, now)):
            return refusal
        due, wait = gcra(
            self._lanes.get(lane, 0),
            int(now * MICROSECONDS),
            rate.interval,
            rate.burst,
            _SKEW,
        )
        if wait:
            return Admission(Verdict.LIMITED, wait / MICROSECONDS)
        self._lanes[lane] = due
        self._changed = True
        return ADMITTED

    async def close(self) -> None:
        """See `State.close`."""
        try:
            if self._changed:
                self._save(self._saved)
        except StateError as exc:
            _log.warning("rates were not kept: %s", exc)
        self.end()

    def start(self) -> None:
        """Open the file, or make it.

        Raises:
            StateError: it cannot be used, or another process holds it.
        """
        try:
            make_private_directory(self.file.parent)
            _make(self.file)
            self._check()
            self._db = db = sqlite3.connect(
                f"{self.file.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=BUSY,
                isolation_level=None,
            )
            self._read(db)
            self._files = [
                (path, _identity(path)) for path in (self.file, Path(f"{self.file}-wal"))
            ]
        except (sqlite3.Error, OSError) as exc:
            self.end()
            raise self._error(exc) from exc
        except StateError:
            self.end()
            raise

    def begin(self, now: float) -> None:
        """Let the memory begin now: what was made before is FORGOTTEN.

        Raises:
            StateError: this cannot be written.
        """
        db = self._present()
        try:
            with db:
                db.execute("BEGIN IMMEDIATE")
                db.execute("REPLACE INTO mark VALUES (1, ?, ?, ?)", (now, now, _boot()))
        except sqlite3.Error as exc:
            raise self._error(exc) from exc
        self._since = self._swept = now

    def end(self) -> None:
        """Close the file; raises nothing."""
        if self._db is not None:
            try:
                self._db.close()
            except sqlite3.Error as exc:
                _log.warning("%s", self._error(exc))
            self._db = None

    def _check(self) -> None:
        info = self.file.lstat()
        if not stat.S_ISREG(info.st_mode):
            raise StateError(f"{self.file} is not a regular file.")
        if sys.platform != "win32":
            if info.st_uid not in (0, os.geteuid()):
                raise StateError(f"{self.file} belongs to another user: chown it to this one.")
            if info.st_mode & 0o077:
                raise StateError(f"{self.file} is open to other users. Run: chmod 600 {self.file}")

    def _read(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # one process; and no shared memory is needed
        if db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise StateError(f"{self.file} is where SQLite has no WAL: not a local disk?")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}")
        if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("database disk image is malformed")
        [version] = db.execute("PRAGMA user_version").fetchone()
        if version == 0 and not db.execute("SELECT 1 FROM sqlite_schema").fetchone():
            db.executescript(_TABLES)
        elif version != SCHEMA:
            raise StateError(f"{self.file} was not written by this version; move it away.")
        db.executescript("BEGIN IMMEDIATE; COMMIT")  # read-only is to be said now
        mark = db.execute("SELECT since, swept, boot FROM mark").fetchone()
        if mark is not None and mark[2] == _boot():
            self._since, self._swept = mark[:2]
        self._lanes = dict(db.execute("SELECT lane, due FROM lanes"))

    def _take(self, claim: Claim, now: float) -> Admission | None:
        if claim.expires + LEEWAY < now:
            return FORGOTTEN
        db = self._present()
        try:
            if not db.execute(_TAKE, (claim.kid, claim.jti, claim.expires)).rowcount:
                return REPLAYED
            self._taken += 1
            if self._taken >= SWEEP:
                self._sweep(db, now)
        except sqlite3.Error as exc:
            raise self._error(exc) from exc
        return FORGOTTEN if forgotten(claim.issued, self._since, LEEWAY) else None

    def _sweep(self, db: sqlite3.Connection, now: float) -> None:
        # A leeway later than the verifier's, so that a clock put back by less changes nothing.
        with db:
            db.execute("BEGIN IMMEDIATE")
            db.execute(_SWEEP, (now - 2 * LEEWAY, 2 * SWEEP))
            db.execute("UPDATE mark SET swept = ?", (now,))
        self._swept = now
        self._taken = 0

    def _save(self, now: float) -> None:
        db = self._present()
        lanes = {lane: due for lane, due in self._lanes.items() if due > now * MICROSECONDS}
        try:
            with db:
                db.execute("BEGIN IMMEDIATE")
                db.execute("DELETE FROM lanes")
                db.executemany("INSERT INTO lanes VALUES (?, ?)", lanes.items())
        except sqlite3.Error as exc:
            raise self._error(exc) from exc
        self._lanes = lanes
        self._saved = now
        self._changed = False

    def _present(self) -> sqlite3.Connection:
        """Return the connection, if the files below it are still where they were."""
        if self._db is None:
            raise StateError(f"{self.file} is not open.")
        # Without this, SQLite goes on with a file that no restart would find again.
        for path, identity in self._files:
            try:
                if _identity(path) == identity:
                    continue
            except OSError:
                pass
            raise StateError(f"{path} was deleted or replaced; restart the gateway.")
        return self._db

    def _error(self, exc: Exception) -> StateError:
        if isinstance(exc, OSError):
            return StateError(f"{exc.filename or self.file}: {exc.strerror}")
        if isinstance(exc, sqlite3.OperationalError) and "locked" in str(exc):
            return StateError(f"{self.file} is held by another process.")
        return StateError(f"{self.file}: {exc}")


def _make(file: Path) -> None:
    """Make the file with mode 0600, whatever the umask; SQLite gives its WAL the same."""
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except FileExistsError:
        # Not opened, not even to look: closing it would release the locks that this process has.
        return
    try:
        if sys.platform != "win32":
            os.fchmod(handle, 0o600)
    finally:
        os.close(handle)


def _identity(path: Path) -> tuple[int, int]:
    info = os.stat(path)  # noqa: PTH116 (half the time of Path.stat)
    return info.st_dev, info.st_ino


def _boot() -> str:
    """Return a name for the time since the system started."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return uuid.uuid4().hex  # where it is not told, every start counts as a boot
