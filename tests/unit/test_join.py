"""What `enroll` makes of a droplet that it looks at."""

from pathlib import Path
from typing import Any, cast

import pytest

from tunnel.custody.account import Account, Done
from tunnel.custody.join import DIRECTORY, JoinError, Wanted, survey
from tunnel.settings import Address

CLIENTS = '{"clients": []}'
OPT = "/opt/catalyst/bin/catalyst-gateway"


class Login:
    """A droplet on which some commands can be run, and others are not there."""

    user = "me"

    def __init__(self, *known: tuple[str, ...]) -> None:
        self._known = known

    async def run(self, *words: str, stdin: str = "") -> Done:
        there = any(words[: len(one)] == one for one in self._known)
        return Done(0, CLIENTS, "") if there else Done(127, "", "not found")


async def look(home: Path, *known: tuple[str, ...]) -> Any:
    address = Address("127.0.0.1", 5000)
    wanted = Wanted(home / "config.toml", "desk", "operator", None, address, address, replace=False)
    return await survey(cast(Account, Login(*known)), wanted)


@pytest.mark.parametrize(
    "called",
    [("catalyst-gateway",), (OPT,), ("sudo", "-n", "catalyst-gateway"), ("sudo", "-n", OPT)],
)
async def test_a_gateway_is_found_where_it_is(tmp_path: Path, called: tuple[str, ...]) -> None:
    assert (await look(tmp_path, called)).gateway == called


async def test_nothing_leads_around_a_gateway_that_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(JoinError, match="me cannot run"):
        await look(tmp_path, ("test", "-e", DIRECTORY))
    assert (await look(tmp_path)).gateway is None
