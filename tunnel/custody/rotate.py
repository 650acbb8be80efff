"""Carrying out a rotation: `keys.rotation` says what comes next, this does it.

The journal is written before each step and removed after the last, so whoever finds one goes on
where it stopped. Nothing is believed because it was asked for: that new keys are let in is seen by
coming in with them and no others, that old ones are not, by trying.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace

from keys import sshkey
from keys.errors import KeyFileError
from keys.files import write_private
from keys.pointer import FAMILIES, Family, Names, read_pointer, write_pointer
from keys.rotation import ENDS, Desk, Event, Journal, Step

from ..control import ControlError, NotRunningError, ask
from ..initialise import line_for
from ..problems import Problem, ProblemError
from ..settings import Settings
from ..tokens import Clock
from . import authorized
from .journal import WHAT, Outcome, RotateError, StuckError, families_of, journal_file
from .keyfiles import directory, fixed, unlock_new, with_names
from .keystore import KeyStore
from .registrar import Accepted, NewKeys, RefusedError, Registrar
from .wayin import gateway_paths, paths_for, way_in

DRAIN = 30.0  # seconds that what runs with the old keys is given at most, unless told otherwise
NOTICE = 2.0  # seconds within which every process of this laptop has noticed a new pointer
TAKE = 10.0  # seconds that a tunnel that runs is given to come in with the new keys
SETTLE = 5.0  # seconds that the other end is given to act on a change of its registry
PAUSE = 0.1  # seconds between looks

_SHUT = frozenset({"auth_denied", "certificate_refused", "key_unusable", "token_refused"})
"""How keys are refused, for good."""
_OUT = _SHUT | {"certificate_expired"}


class Rotator:
    """Rotates the keys of one laptop; whoever uses it holds the lock of `lock_file`.

    Args:
        settings: the laptop's.
        say: is told of progress, in words.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        say: Callable[[str], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._store = KeyStore(directory(settings), settings.ssh.unlock)
        self._say = say
        self._wall = wall
        self._clock = Clock(wall)
        self.site_ends: float | None = None
        """When NGINX's own certificate ends (seconds since the epoch), where it was seen."""
        self._outcome = Outcome(Step.INTRODUCE, (), Names())

    # Beginning

    async def plan(
        self,
        families: Collection[Family],
        *,
        compromised: bool = False,
        drain: float = DRAIN,
        via: str | None = None,
        authorized_keys: str | None = None,
    ) -> Journal:
        """Return the rotation of these families, not begun yet.

        Raises:
            RotateError: it cannot be made, here or over there.
            ProblemError, RefusedError: the other end cannot be asked.
            KeyFileError, OSError: the keys in use cannot be read.
        """
        if via is not None:
            check_via(via)
        chosen = tuple(family for family in FAMILIES if family in families)
        have = families_of(self._settings)
        for family in chosen:
            if family not in have:
                raise RotateError(f"No {WHAT[family]} is used by these settings: none to rotate.")
            if named := fixed(self._settings, family):
                raise RotateError(
                    f"{self._settings.file} names the {WHAT[family]} itself ({named}), so it is "
                    "yours to replace. Remove that line to leave it to `keys rotate`."
                )
        desk: Desk = "registry"
        if "ssh" in chosen and not await self._registered():
            if via is None:
                raise RotateError(
                    "The gateway's registry does not have this SSH key; the account's "
                    "authorized_keys lets it in. Say by which login that file can be changed: "
                    "--via USER@HOST. (Tokens and certificates need the gateway: `keys rotate "
                    "token`, `keys rotate cert`.)"
                )
            desk = "account"
        old = read_pointer(self._store.directory)
        taken = [one.name for one in self._store.directory.iterdir()]
        now = self._wall()
        new = old.after(chosen, taken)
        return Journal(
            chosen, old, new, now, drain, compromised, desk, via, authorized_keys, since=now
        )

    async def _registered(self) -> bool:
        """Return whether the registry has our SSH key."""
        identity = self._settings.ssh.identity
        if identity is None or not gateway_paths(self._settings):
            return False
        mine = sshkey.fingerprint(sshkey.public_half(identity, self._settings.ssh.unlock))
        async with self.registrar(self._settings) as (_, accepted):
            return mine in accepted.fingerprints

    # Going on

    async def carry_on(self, journal: Journal) -> Outcome:
        """Go on from the step that the journal names, to the end.

        Raises:
            StuckError: a step cannot be done now; the journal says which.
        """
        from .account import AccountError

        outcome = self._outcome = Outcome(journal.step, journal.families, journal.old)
        while journal.step not in ENDS:
            began = time.monotonic()
            try:
                write_private(journal_file(self._settings), journal.to_text(), replace=True)
                event = await self._do(journal)
            except (ProblemError, KeyFileError, RefusedError, AccountError) as exc:
                raise StuckError(journal.step, str(exc)) from exc
            except OSError as exc:
                text = f"{exc.filename or self._store.directory}: {exc.strerror}."
                raise StuckError(journal.step, text) from exc
            outcome.seconds[journal.step] = time.monotonic() - began
            journal = journal.taken(event, self._wall())
        try:
            journal_file(self._settings).unlink(missing_ok=True)
        except OSError as exc:
            raise StuckError(journal.step, f"{exc.filename}: {exc.strerror}.") from exc
        outcome.step = journal.step
        outcome.names = journal.new if journal.step is Step.DONE else journal.old
        return outcome

    async def _do(self, journal: Journal) -> Event:
        what = " and ".join(WHAT[family] for family in journal.families)
        match journal.step:
            case Step.INTRODUCE:
                self._say(f"introduce: a new {what} beside the old")
                return await self._introduce(journal)
            case Step.PROVE:
                self._say("prove: come in with the new alone")
                return await self._prove(journal)
            case Step.SWITCH:
                self._say("switch: use the new")
                write_pointer(self._store.directory, journal.new)
                await self._tell()
            case Step.DRAIN:
                self._say("drain: let what runs with the old finish")
                await self._drain(journal)
            case Step.RETIRE:
                self._say("retire: have the old refused, and see that it is")
                return await self._retire(journal)
            case Step.TIDY:
                self._store.remove(journal.old, journal.families)
            case Step.REVERT:
                self._say("revert: use the old again")
                write_pointer(self._store.directory, journal.old)
                await self._tell()
            case Step.UNDO:
                self._say("undo: take the new back")
                await self._undo(journal)
        return Event.DONE

    async def _introduce(self, journal: Journal) -> Event:
        asked = self._by_registry(journal)
        try:
            unlock_new(self._settings)
            self._store.make(journal.new, journal.families)
            if asked:
                await self._have_let_in(journal, asked)
            if journal.desk == "account":
                await self._edit(journal, self._beside(journal))
        except (RefusedError, KeyFileError, ProblemError) as exc:
            if isinstance(exc, ProblemError) and exc.problem.code not in _SHUT:
                raise
            # Before a crash they may have been let in, and the old ones removed by hand since.
            if asked and await self._let_in_before(journal, asked):
                return Event.DONE
            return self._refused(str(exc))
        return Event.DONE

    async def _have_let_in(self, journal: Journal, asked: Collection[Family]) -> None:
        store, new = self._store, journal.new
        keys = NewKeys(
            token=store.token(new) if "token" in asked else None,
            csr=store.csr(new) if "cert" in asked else None,
            ssh=store.ssh(new) if "ssh" in asked else None,
        )
        async with self.registrar(self._with(journal.old)) as (registrar, _):
            certificate = await registrar.introduce(keys)
        if "cert" in asked:
            store.keep_certificate(new, certificate or "")

    async def _let_in_before(self, journal: Journal, asked: Collection[Family]) -> bool:
        """Return whether the new keys are let in already; fetch a certificate that was lost."""
        store, new = self._store, journal.new
        try:
            async with self.registrar(self._with(new)) as (registrar, accepted):
                if "cert" in asked and not store.certificate(new).exists():
                    certificate = await registrar.introduce(NewKeys(csr=store.csr(new)))
                    store.keep_certificate(new, certificate or "")
                    accepted_now = await registrar.accepted()
                    return accepted_now.lets_in(store.called(new, asked))
                return accepted.lets_in(store.called(new, asked))
        except (ProblemError, RefusedError, KeyFileError):
            return False

    async def _prove(self, journal: Journal) -> Event:
        """Come in by each path that a new key is for, with the new keys and no others."""
        settings = self._with(journal.new)
        paths = paths_for(settings, journal.families)
        found = await asyncio.gather(*(self._comes_in(settings, name) for name in paths))
        for problem in found:
            if problem is not None and problem.code not in _SHUT:
                raise ProblemError(problem.code, problem.message)
        for problem in found:
            if problem is not None:
                return self._refused(str(problem))
        return Event.DONE

    async def _comes_in(self, settings: Settings, name: str) -> Problem | None:
        """Come in by a path, trying for a while; return what is in the way."""
        deadline = time.monotonic() + SETTLE
        while (problem := await self._try(settings, name)) is not None:
            # A login that fails counts against this address at sshd: it is not tried twice.
            if problem.code in ("auth_denied", "key_unusable") or time.monotonic() > deadline:
                return problem
            await asyncio.sleep(PAUSE)
        return None

    async def _drain(self, journal: Journal) -> None:
        began = time.monotonic()
        while True:
            gone = time.monotonic() - began
            behind, running = await self._behind()
            waited = behind and gone < TAKE
            if not journal.compromised and gone < min(NOTICE, journal.drain):
                waited = True
            # Both clocks: this one stands still while the machine sleeps, the other may be set.
            left = min(journal.draining(self._wall()), journal.drain - gone)
            if not waited and (not running or left <= 0):
                return
            await asyncio.sleep(PAUSE)

    async def _tell(self) -> None:
        """Have a path that had given up on the keys of before try those of now."""
        with contextlib.suppress(NotRunningError, ControlError):
            await ask(self._settings.file.parent, "look")

    async def _behind(self) -> tuple[int, int]:
        """Return what of a tunnel that runs still stands on old keys: paths, and requests."""
        try:
            said = await ask(self._settings.file.parent, "keys")
            return int(said["behind"]), int(said["running"])
        except (NotRunningError, ControlError, KeyError, TypeError, ValueError):
            return 0, 0

    async def _retire(self, journal: Journal) -> Event:
        new = self._with(journal.new)
        if asked := self._by_registry(journal):
            ours = self._store.called(journal.new, asked)
            old = self._store.called(journal.old, asked)
            try:
                async with self.registrar(new) as (registrar, accepted):
                    if not accepted.lets_in(ours):
                        return self._refused("The registry does not have the new keys any longer.")
                    await registrar.retire(accepted, old, compromised=journal.compromised)
            except RefusedError as exc:
                return self._refused(str(exc))
            except ProblemError as exc:
                if exc.problem.code in _SHUT:
                    return self._refused(str(exc.problem))
                raise
        if journal.desk == "account":
            if (problem := await self._try(new, "ssh")) is not None:
                if problem.code in _SHUT:
                    return self._refused(str(problem))
                raise ProblemError(problem.code, problem.message)
            await self._edit(journal, self._without(journal.old))
        await asyncio.gather(*(self._see_refused(journal, one) for one in journal.families))
        if journal.desk == "account" and journal.compromised:
            await self._end_sessions(journal)
        return Event.DONE

    async def _see_refused(self, journal: Journal, family: Family) -> None:
        """See that the old key of a family is not let in, though everything else is new."""
        files = [self._store.directory / name for name in journal.old.files(family)]
        if not all(file.exists() for file in files if file.suffix != ".pub"):
            return  # removed already, which comes after this
        settings = self._with(_with_old(journal, family))
        for name in paths_for(settings, (family,)):
            deadline = time.monotonic() + SETTLE
            while (problem := await self._try(settings, name)) is None or problem.code not in _OUT:
                if time.monotonic() > deadline:
                    if problem is not None:
                        raise ProblemError(problem.code, problem.message)
                    self._outcome.warnings.append(
                        f"The old {WHAT[family]} is still let in by {name}: something else there "
                        "knows it, such as a line in authorized_keys or AuthorizedKeysFile."
                    )
                    break
                await asyncio.sleep(PAUSE)

    async def _undo(self, journal: Journal) -> None:
        """Have the new keys refused, as far as they were ever let in, and remove them."""
        if asked := self._by_registry(journal):
            new = self._store.called(journal.new, asked)
            try:
                async with self.registrar(self._with(journal.old)) as (registrar, accepted):
                    await registrar.retire(accepted, new, compromised=False)
            except ProblemError as exc:
                if exc.problem.code not in _SHUT:
                    raise
                self._outcome.warnings.append(f"The old keys are not let in either. {exc.problem}")
        if journal.desk == "account":
            await self._edit(journal, self._without(journal.new))
        self._store.remove(journal.new, journal.families)

    # The other end

    @contextlib.asynccontextmanager
    async def registrar(self, settings: Settings) -> AsyncIterator[tuple[Registrar, Accepted]]:
        """Reach the registrar by the first path that leads to it, and ask what is let in now.

        By https first: sshd has to start a program for each login.

        Raises:
            ProblemError: no path does; says what is wrong.
            RefusedError: there is no gateway, or it will not tell.
        """
        met: list[ProblemError] = []
        async with contextlib.AsyncExitStack() as stack:
            for name in sorted(gateway_paths(settings)):
                try:
                    way = await stack.enter_async_context(way_in(settings, name, self._clock))
                    registrar = Registrar(way, settings, self._clock)
                    accepted = await registrar.accepted()
                except ProblemError as exc:
                    met.append(exc)
                    continue
                self.site_ends = way.site_ends or self.site_ends
                yield registrar, accepted
                return
        raise _weightiest(met)

    async def _try(self, settings: Settings, name: str) -> Problem | None:
        """Come in by a path, and send a request; return why that fails."""
        try:
            async with way_in(settings, name, self._clock) as way:
                await way.prove()
        except ProblemError as exc:
            return exc.problem
        return None

    async def _edit(self, journal: Journal, change: Callable[[bytes], bytes]) -> None:
        from .account import account

        via = journal.via or ""
        async with account(via, self._settings) as login:
            user = self._settings.ssh.user
            file = journal.authorized_keys or await login.authorized_keys(user)
            await login.edit(file, change)

    async def _end_sessions(self, journal: Journal) -> None:
        """End every SSH session of the account, ours too: plain sshd cannot tell them apart."""
        from .account import account

        async with account(journal.via or "", self._settings) as login:
            user = self._settings.ssh.user or login.user
            # Of root's processes called sshd one is the server itself.
            if user == "root" or not await login.end_sessions(user):
                self._outcome.warnings.append(
                    "Sessions that came in with the old key may still be open: end them on the "
                    f"droplet, as root (the account is {user})."
                )

    def _beside(self, journal: Journal) -> Callable[[bytes], bytes]:
        old = self._store.public(journal.old)
        new = self._store.public(journal.new)
        otherwise = line_for(self._settings, new)
        return lambda text: authorized.beside(text, old, new, otherwise)

    def _without(self, names: Names) -> Callable[[bytes], bytes]:
        try:
            public = self._store.public(names)
        except FileNotFoundError:  # it was never made
            return lambda text: text
        return lambda text: authorized.without(text, public)

    def _with(self, names: Names) -> Settings:
        return with_names(self._settings, names)

    def _refused(self, reason: str) -> Event:
        self._outcome.reason = reason
        self._say(f"refused: {reason}")
        return Event.REFUSED

    @staticmethod
    def _by_registry(journal: Journal) -> tuple[Family, ...]:
        """Return the families that the registry lets in."""
        if journal.desk == "registry":
            return journal.families
        return tuple(family for family in journal.families if family != "ssh")


def _weightiest(met: list[ProblemError]) -> ProblemError | RefusedError:
    """Return what to tell where no path led to the registrar.

    A refused token is the gateway's own word. A key that one path refuses proves nothing about
    another that could not be tried.
    """
    if not met:
        return RefusedError("These settings name no gateway, and tokens need one.")
    told = [exc for exc in met if exc.problem.code == "token_refused"]
    return (told or [exc for exc in met if exc.problem.code not in _SHUT] or met)[0]


def check_via(via: str) -> None:
    """Refuse what no login can be, before anything is begun.

    Raises:
        RotateError: it is not [USER@]HOST[:PORT].
    """
    from .account import parse_via

    try:
        parse_via(via)
    except ValueError as exc:
        raise RotateError(f"--via {exc}.") from None


def _with_old(journal: Journal, family: Family) -> Names:
    """Return the new names, but for those of one family."""
    match family:
        case "ssh":
            return replace(journal.new, ssh=journal.old.ssh)
        case "token":
            return replace(journal.new, token=journal.old.token)
        case "cert":
            return replace(journal.new, tls=journal.old.tls)
