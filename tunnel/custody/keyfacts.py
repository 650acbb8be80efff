"""What is known of this laptop's keys without asking anybody: files, ages, ends."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keys import certs, sshkey
from keys.keyring import load_token_key, thumbprint
from keys.locked import Unlock
from keys.pointer import Family

from ..settings import Settings
from .journal import WHAT, families_of
from .keyfiles import pair_fault, ssh_fault, token_fault
from .notices import DAY, Notice, ending, renewal_due


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """One key in use."""

    family: Family
    file: str
    name: str | None
    """What it is called over there: fingerprint, kid, or thumbprint."""
    made: float | None  # seconds since the epoch
    begins: float | None  # of a certificate
    ends: float | None  # of a certificate
    fault: str | None
    """Why it cannot be used, with the repair."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def key_facts(settings: Settings) -> list[KeyFacts]:
    """Return what is so of each key that the settings use."""
    https = settings.https
    found = []
    for family in families_of(settings):
        if family == "ssh" and settings.ssh.identity is not None:
            found.append(_ssh(settings.ssh.identity, settings.ssh.unlock))
        elif family == "token" and https is not None:
            found.append(_token(https.token_key, https.unlock))
        elif https is not None:
            found.append(_pair(https.cert, https.key, https.unlock))
    return found


def _ssh(path: Path, unlock: Unlock | None) -> KeyFacts:
    fault = ssh_fault(path, unlock)
    name = None if fault else sshkey.fingerprint(sshkey.public_half(path, unlock))
    return KeyFacts("ssh", str(path), name, _made(path), None, None, fault)


def _token(path: Path, unlock: Unlock | None) -> KeyFacts:
    fault = token_fault(path, unlock)
    name = None if fault else thumbprint(load_token_key(path, unlock).public_key())
    return KeyFacts("token", str(path), name, _made(path), None, None, fault)


def _pair(cert: Path, key: Path, unlock: Unlock | None) -> KeyFacts:
    fault = pair_fault(cert, key, unlock)
    if fault:
        return KeyFacts("cert", str(cert), None, _made(key), None, None, fault)
    facts = certs.facts(cert.read_bytes())
    return KeyFacts(
        "cert", str(cert), facts.thumbprint, _made(key), facts.not_before, facts.not_after, None
    )


def _made(path: Path) -> float | None:
    """Return when a key file was written; nothing writes to it afterwards."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def local_notices(settings: Settings, facts: list[KeyFacts], now: float) -> list[Notice]:
    """Return what is to be told of keys that end soon, or are older than the settings allow."""
    ages = dict(settings.keys.max_age)
    found: list[Notice] = []
    for one in facts:
        found += ending("certificate_ending", "The client certificate", one.ends, now)
        age = 0.0 if one.made is None else (now - one.made) / DAY
        if one.family in ages and age > ages[one.family]:
            text = f"The {WHAT[one.family]} is {age:.0f} days old ([keys] max_age)."
            found.append(Notice("key_old", text))
    return found


def due(settings: Settings, facts: list[KeyFacts], now: float) -> tuple[Family, ...]:
    """Return the families whose keys are to be rotated now, for their age or their end."""
    ages = dict(settings.keys.max_age)
    families: list[Family] = []
    for one in facts:
        if one.fault is not None:
            continue
        old = one.made is not None and now - one.made > ages.get(one.family, 1e9) * DAY
        if one.begins is not None and one.ends is not None and one.name is not None:
            old = old or renewal_due(one.begins, one.ends, now, _jitter(one.name))
        if old:
            families.append(one.family)
    return tuple(families)


def _jitter(name: str) -> float:
    return hashlib.sha256(name.encode()).digest()[0] / 255
