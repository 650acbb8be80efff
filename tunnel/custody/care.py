"""Looking after the keys of a laptop: what commands ask for, and what `up` does by itself."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from keys.errors import KeyFileError
from keys.pointer import Family
from keys.rotation import Journal

from ..problems import Problem, ProblemError
from ..settings import Settings
from .journal import WHAT, Outcome, StuckError, journal_file, lock_file, read_journal
from .keyfacts import KeyFacts, key_facts, local_notices
from .keyfiles import follow
from .lock import LockedError, locked
from .notices import Notice, ending
from .registrar import Accepted, RefusedError
from .rotate import Rotator, check_via
from .wayin import gateway_paths

EXIT_WELL, EXIT_UNASKED, EXIT_NOTICES = 0, 4, 5


async def rotate_now(
    settings: Settings,
    families: Collection[Family],
    say: Callable[[str], None],
    *,
    compromised: bool,
    drain: float,
    via: str | None,
    authorized_keys: str | None,
) -> Outcome:
    """Finish a rotation that was interrupted, then rotate `families`, unless that was just it.

    Raises:
        LockedError: another rotation runs.
        RotateError, StuckError, ProblemError, RefusedError, KeyFileError, OSError: see `Rotator`.
    """
    with locked(lock_file(settings)):
        done = await _finish(settings, say, compromised, via, authorized_keys)
        # Keys that had been made already may be in other hands, too.
        covered = done is not None and done.step == "done" and set(families) <= set(done.families)
        if done is not None and covered and not compromised:
            return done
        rotator = Rotator(follow(settings), say)
        journal = await rotator.plan(
            families,
            compromised=compromised,
            drain=drain,
            via=via,
            authorized_keys=authorized_keys,
        )
        return await rotator.carry_on(journal)


async def plan_only(settings: Settings, families: Collection[Family], **options: Any) -> Journal:
    """Return the rotation that `rotate_now` would begin.

    Raises:
        RotateError, ProblemError, RefusedError, KeyFileError, OSError: see `Rotator.plan`.
    """
    return await Rotator(settings, _silent).plan(families, **options)


def _silent(_: str) -> None:
    """Say nothing."""


async def _finish(
    settings: Settings,
    say: Callable[[str], None],
    compromised: bool = False,
    via: str | None = None,
    authorized_keys: str | None = None,
) -> Outcome | None:
    """Go on with the rotation that was begun and not finished, if there is one.

    A login that is given now takes the place of the one that it was begun with, which may be wrong.
    """
    journal = read_journal(settings)
    if journal is None:
        return None
    say(f"A rotation was interrupted ({journal.step}); going on with it.")
    if compromised:
        journal = replace(journal, compromised=True)
    if via is not None and journal.desk == "account":
        check_via(via)
        file = authorized_keys or journal.authorized_keys
        journal = replace(journal, via=via, authorized_keys=file)
    return await Rotator(settings, say).carry_on(journal)


@dataclass
class Seen:
    """What is so of this laptop's keys, here and over there."""

    facts: list[KeyFacts]
    accepted: Accepted | None = None
    problem: Problem | str | None = None
    """Why the other end could not be asked."""
    notices: list[Notice] = field(default_factory=list)

    def accepts(self, one: KeyFacts) -> bool | None:
        """Return whether the other end lets a key in; None where that is not known."""
        if self.accepted is None or one.name is None:
            return None
        match one.family:
            case "ssh":
                # Where the registry has no SSH keys at all, authorized_keys lets them in.
                return one.name in self.accepted.fingerprints if self.accepted.ssh_keys else None
            case "token":
                return one.name in self.accepted.kids
            case "cert":
                return one.name in self.accepted.certificates

    def others(self) -> list[str]:
        """Return what is let in besides the keys in use."""
        if self.accepted is None:
            return []
        ours = {one.name for one in self.facts}
        there = self.accepted.kids | self.accepted.certificates | self.accepted.fingerprints
        return sorted(there - ours)

    @property
    def exit_code(self) -> int:
        """What `keys status` exits with."""
        if self.problem is not None:
            return EXIT_UNASKED
        return EXIT_NOTICES if self.notices else EXIT_WELL

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        problem = self.problem
        return {
            "keys": [{**one.to_json(), "accepted": self.accepts(one)} for one in self.facts],
            "also_accepted": self.others(),
            "client": self.accepted.client if self.accepted else None,
            "generation": self.accepted.generation if self.accepted else None,
            "problem": None if problem is None else str(problem),
            "notices": [notice.to_json() for notice in self.notices],
        }


async def look(settings: Settings, say: Callable[[str], None]) -> Seen:
    """Go on with a rotation that was interrupted, then look at every key, here and over there.

    Raises:
        KeyFileError: the journal or the pointer cannot be believed.
    """
    notices: list[Notice] = []
    try:
        with locked(lock_file(settings)):
            await _finish(settings, say)
    except (StuckError, LockedError) as exc:
        why = f" ({exc.step}: {exc})" if isinstance(exc, StuckError) else ", and runs"
        notices.append(Notice("rotation_pending", f"A rotation is not finished{why}."))
    settings = follow(settings)
    now = time.time()
    seen = Seen(key_facts(settings))
    seen.notices = notices + local_notices(settings, seen.facts, now)
    if not gateway_paths(settings):
        return seen
    rotator = Rotator(settings, _silent)
    try:
        async with rotator.registrar(settings) as (_, seen.accepted):
            pass
    except ProblemError as exc:
        seen.problem = exc.problem
        return seen
    except (RefusedError, KeyFileError) as exc:
        seen.problem = str(exc)
        return seen
    seen.notices += [
        Notice("key_not_accepted", f"The {WHAT[one.family]} in use is not let in.")
        for one in seen.facts
        if seen.accepts(one) is False
    ]
    ca_ends = seen.accepted.issuer_ends
    seen.notices += ending("client_ca_ending", "The client CA", ca_ends, now)
    site = rotator.site_ends or seen.accepted.site_ends
    seen.notices += ending("site_certificate_ending", "NGINX's certificate", site, now)
    return seen


async def give_up(settings: Settings) -> list[str]:
    """Have every key of this laptop refused, for good; return what is to be told besides.

    Raises:
        LockedError: a rotation runs.
        ProblemError, RefusedError, KeyFileError, OSError: it was not done.
    """
    with locked(lock_file(settings)):
        async with Rotator(settings, _silent).registrar(settings) as (registrar, accepted):
            await registrar.revoke()
        journal_file(settings).unlink(missing_ok=True)  # there is nothing to rotate any longer
    if accepted.ssh_keys:
        return []
    return [
        "The SSH key is let in by authorized_keys, which the gateway does not write: remove its "
        "line there, and end its sessions."
    ]
