"""What `up` does about keys by itself: it finishes, renews, and tells in time."""

import asyncio
import contextlib
import functools
import logging
import random
import time
from collections.abc import Callable

from keys.errors import KeyFileError
from keys.pointer import Family
from keys.rotation import Step

from ..problems import ProblemError
from ..settings import Settings
from .account import AccountError
from .journal import Outcome, RotateError, StuckError, lock_file, read_journal
from .keyfacts import due, key_facts, local_notices
from .keyfiles import follow
from .lock import LockedError, locked
from .notices import Notice, ending
from .registrar import RefusedError
from .rotate import DRAIN, Rotator

FIRST = 5.0  # seconds after the start: the paths come first
EVERY = 30.0  # seconds between looks; a machine that slept is looked after this soon, too
AGAIN = 60.0  # seconds before what failed is tried again, doubling
SELDOM = 3600.0  # seconds, at most

_log = logging.getLogger(__name__)


class Keeper:
    """Looks after the keys of one laptop.

    Args:
        settings: the laptop's.
        site_ends: returns when NGINX's certificate ends (seconds since the epoch), if known.
        on_change: called when keys were replaced.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        site_ends: Callable[[], float | None],
        on_change: Callable[[], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._site_ends = site_ends
        self._on_change = on_change
        self._wall = wall
        self._pause = AGAIN
        self._not_before = 0.0
        self._told: set[str] = set()
        self.notices: list[Notice] = []
        """What is to be told now."""

    async def run(self) -> None:
        """Look after them until cancelled."""
        await asyncio.sleep(FIRST)
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001  a defect must cost a rotation, not the tunnel
                _log.exception("defect")
                self._put_off("The tunnel failed on it.")
            await asyncio.sleep(EVERY)

    async def look(self) -> None:
        """Look once: do what is due, and note what is to be told."""
        try:
            await self._act()
        except LockedError:
            pass  # somebody rotates already
        except (KeyFileError, RotateError, ProblemError, RefusedError, AccountError) as exc:
            self._put_off(str(exc))
        except StuckError as exc:
            self._put_off(f"{exc.step}: {exc}")
        except OSError as exc:
            self._put_off(f"{exc.filename}: {exc.strerror}")
        self._note()

    async def _act(self) -> None:
        if asyncio.get_running_loop().time() < self._not_before:
            return
        families: tuple[Family, ...] = ()
        if read_journal(self._settings) is None:
            settings = follow(self._settings)
            families = due(settings, key_facts(settings), self._wall())
            if not families:
                return
        with locked(lock_file(self._settings)):
            # Whoever held the lock until now may have done it.
            journal = read_journal(self._settings)
            rotator = Rotator(follow(self._settings), _log_step, self._wall)
            if journal is None:
                settings = follow(self._settings)
                families = due(settings, key_facts(settings), self._wall())
                if not families:
                    return
                journal = await rotator.plan(families, drain=DRAIN)
                _log.info("rotating keys", extra={"families": ",".join(families)})
            else:
                _log.info("rotation goes on", extra={"step": journal.step})
            self._over(await rotator.carry_on(journal))

    def _over(self, outcome: Outcome) -> None:
        extra = {"families": ",".join(outcome.families)}
        if outcome.step is Step.DONE:
            self._pause = AGAIN
            _log.info("keys rotated", extra=extra)
        else:
            self._put_off(f"It was taken back: {outcome.reason}")
        for warning in outcome.warnings:
            _log.warning(warning, extra=extra)
        self._on_change()

    def _put_off(self, why: str) -> None:
        jitter = random.uniform(1.0, 1.5)  # noqa: S311  laptops that fail together, later part
        self._not_before = asyncio.get_running_loop().time() + self._pause * jitter
        self._pause = min(self._pause * 2, SELDOM)
        _log.warning("keys not rotated", extra={"why": why})

    def _note(self) -> None:
        found: list[Notice] = []
        with contextlib.suppress(KeyFileError):
            settings = follow(self._settings)
            now = self._wall()
            found = local_notices(settings, key_facts(settings), now)
            site = self._site_ends()
            found += ending("site_certificate_ending", "NGINX's certificate", site, now)
        with contextlib.suppress(KeyFileError):
            if (journal := read_journal(self._settings)) is not None:
                text = f"A rotation is not finished ({journal.step})."
                found.append(Notice("rotation_pending", text))
        self.notices = found
        for notice in found:
            if notice.code not in self._told:  # once, not at every look
                _log.warning("notice", extra={"code": notice.code, "says": str(notice)})
        self._told = {notice.code for notice in found}


_log_step = functools.partial(_log.debug, "%s")
