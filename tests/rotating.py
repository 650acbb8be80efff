"""A rotation in a process of its own that is killed (SIGKILL) at a moment of the test's choice.

    python -m tests.rotating CONFIG FAMILIES NUMBER

It goes on with the rotation that it finds, or begins one, and is gone right after the NUMBER-th
lasting effect: a journal written, a key made, an answer of the droplet, the pointer replaced.
It prints each effect as it comes, so that a test can tell which one was the last.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from tunnel.custody import keystore, rotate
from tunnel.custody.account import Account
from tunnel.custody.care import rotate_now
from tunnel.custody.keystore import KeyStore
from tunnel.custody.registrar import Registrar
from tunnel.settings import load

EFFECTS: list[tuple[Any, str]] = [
    (rotate, "write_private"),
    (keystore.sshkey, "make_key"),
    (keystore, "make_token_key"),
    (keystore, "write_private"),
    (Registrar, "introduce"),
    (KeyStore, "keep_certificate"),
    (rotate, "write_pointer"),
    (Registrar, "retire"),
    (KeyStore, "remove"),
    (Account, "edit"),
]
"""Whatever a rotation changes for good, here or over there."""


def instrument(after: Callable[[str], None], patch: Callable[..., None] = setattr) -> None:
    """Have `after(name)` called after each effect."""
    for owner, name in EFFECTS:
        patch(owner, name, _watched(getattr(owner, name), name, after))


def _watched(effect: Any, name: str, after: Callable[[str], None]) -> Any:
    if asyncio.iscoroutinefunction(effect):

        @wraps(effect)
        async def later(*args: Any, **named: Any) -> Any:
            result = await effect(*args, **named)
            after(name)
            return result

        return later

    @wraps(effect)
    def now(*args: Any, **named: Any) -> Any:
        result = effect(*args, **named)
        after(name)
        return result

    return now


def main() -> None:
    config, families, number = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3])
    seen = 0

    def after(name: str) -> None:
        nonlocal seen
        seen += 1
        print(name, flush=True)
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    instrument(after)
    outcome = asyncio.run(
        rotate_now(
            load(config),
            families,  # type: ignore[arg-type]
            lambda text: None,
            compromised=False,
            drain=0.0,
            via=None,
            authorized_keys=None,
        )
    )
    print(outcome.step, flush=True)


if __name__ == "__main__":
    main()
