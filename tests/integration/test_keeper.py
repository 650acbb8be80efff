"""What `up` does about keys by itself, and what the commands say."""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from keys import certs
from keys.files import write_private
from keys.pointer import read_pointer
from keys.rotation import Step
from tests.keystack import KeyStack, keystack
from tunnel.custody import care, keeper
from tunnel.custody.journal import StuckError, journal_file, read_journal
from tunnel.custody.keeper import Keeper
from tunnel.custody.keyfacts import key_facts
from tunnel.custody.notices import DAY
from tunnel.custody.rotate import Rotator
from tunnel.settings import load

__all__ = ["keystack"]


class Clock:
    def __init__(self) -> None:
        self.days = 0.0

    def __call__(self) -> float:
        return time.time() + self.days * DAY


def keeper_of(keystack: KeyStack, clock: Clock, changed: list[str]) -> Keeper:
    return Keeper(keystack.settings(), lambda: None, lambda: changed.append("changed"), clock)


async def test_a_certificate_is_renewed_when_it_is_due_and_not_before(keystack: KeyStack) -> None:
    clock, changed = Clock(), list[str]()
    mine = keeper_of(keystack, clock, changed)
    before = read_pointer(keystack.keys)
    await mine.look()
    assert (read_pointer(keystack.keys), mine.notices) == (before, [])
    clock.days = 300
    await mine.look()
    assert read_pointer(keystack.keys) == replace(before, tls="tls-2")
    assert changed == ["changed"]
    await keystack.is_tidy()


async def test_one_that_has_ended_is_renewed_by_the_ssh_path(
    keystack: KeyStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The https path refuses it, so nothing but the other path can help; `up` takes it at once."""
    settings = keystack.settings()
    assert settings.https is not None
    far = keystack.stack.gateway.directory
    authority = certs.load_authority(
        (far / "ca" / "ca.pem").read_bytes(), (far / "ca" / "ca.key").read_bytes()
    )
    key = certs.load_private(settings.https.key.read_bytes())
    ended = certs.issue(authority, certs.make_request(key), "mobile", time.time() - 9 * DAY, 3)
    write_private(settings.https.cert, ended, replace=True)
    monkeypatch.setattr(keeper, "FIRST", 0.5)
    run = await keystack.tunnel(up=1)
    await run.until(lambda: all(one.answered for one in run.tunnel.snapshot().paths), 40)
    assert read_pointer(keystack.keys).tls == "tls-2"
    await keystack.has_a_way_in()
    [fact] = [one for one in key_facts(keystack.settings()) if one.family == "cert"]
    assert fact.ends is not None
    assert fact.ends > time.time()


async def test_keys_are_rotated_by_age(keystack: KeyStack) -> None:
    text = keystack.config.read_text()
    keystack.config.write_text(f"{text}\n[keys]\nmax_age = 200\n")
    clock = Clock()
    clock.days = 201
    await keeper_of(keystack, clock, []).look()
    names = read_pointer(keystack.keys)
    assert (names.ssh, names.token) == ("ssh_ed25519-2", "token-2.key")
    await keystack.is_tidy()


async def test_up_goes_on_with_what_was_interrupted(
    keystack: KeyStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotator = keystack.rotator()
    journal = await rotator.plan(("token",), drain=0.0)
    keystack.stack.gateway.kill()
    with pytest.raises(StuckError):
        await rotator.carry_on(journal)
    keystack.stack.gateway.start()
    monkeypatch.setattr(keeper, "FIRST", 0.1)
    run = await keystack.tunnel()
    await run.until(lambda: read_journal(keystack.settings()) is None, 30)
    assert read_pointer(keystack.keys).token == "token-2.key"
    await keystack.is_tidy()


async def test_what_fails_is_tried_again_later_and_told(
    keystack: KeyStack, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    clock.days = 300
    mine = keeper_of(keystack, clock, [])
    keystack.registrar.kill()
    caplog.set_level("WARNING", "tunnel")
    for _ in range(3):
        await mine.look()
    assert [record.message for record in caplog.records].count("keys not rotated") == 1
    assert [notice.code for notice in mine.notices] == ["rotation_pending"]
    await keystack.has_a_way_in()


async def test_a_damaged_journal_does_not_stop_it(keystack: KeyStack) -> None:
    write_private(journal_file(keystack.settings()), b"{", replace=True)
    mine = keeper_of(keystack, Clock(), [])
    await mine.look()
    await keystack.has_a_way_in()


async def test_a_defect_costs_a_rotation_and_not_the_tunnel(
    keystack: KeyStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "FIRST", 0.0)
    monkeypatch.setattr(keeper, "EVERY", 0.01)
    looked: list[None] = []

    def breaks(_: object) -> None:
        looked.append(None)
        raise RuntimeError("broken")

    monkeypatch.setattr(keeper, "follow", breaks)
    run = await keystack.tunnel()
    await run.until(lambda: bool(looked))
    async with run.client.get(f"{run.url}/health") as answer:
        assert answer.status == 200
    assert "defect" in caplog.messages
    assert [one.answered for one in run.tunnel.snapshot().paths] == [True, True]


# The commands.


async def keys(keystack: KeyStack, *words: str, code: int = 0, stdin: str = "") -> Any:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tunnel", "keys", *words]
        return subprocess.run(
            [*command, "--config", str(keystack.config)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = await asyncio.to_thread(run)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


async def test_list_and_status(keystack: KeyStack) -> None:
    told = json.loads((await keys(keystack, "list", "--json")).stdout)
    assert [one["family"] for one in told] == ["ssh", "token", "cert"]
    assert all(one["name"] and one["fault"] is None for one in told)
    assert "days old" in (await keys(keystack, "list")).stdout
    # The certificate of the tests' NGINX is one of a day.
    status = json.loads((await keys(keystack, "status", "--json", code=5)).stdout)
    assert [one["accepted"] for one in status["keys"]] == [True, True, True]
    assert [one["code"] for one in status["notices"]] == ["site_certificate_ending"]
    assert (status["client"], status["also_accepted"]) == ("mobile", [])
    keystack.stack.gateway.kill()
    done = await keys(keystack, "status", code=4)
    assert "cannot be asked" in done.stderr


async def test_the_end_of_the_client_ca_is_told(
    keystack: KeyStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = SimpleNamespace(time=lambda: time.time() + 3640 * DAY)
    monkeypatch.setattr(care, "time", later)
    seen = await care.look(keystack.settings(), lambda _: None)
    assert "client_ca_ending" in [notice.code for notice in seen.notices]


async def test_status_tells_of_a_key_that_is_not_let_in(keystack: KeyStack) -> None:
    path = keystack.stack.gateway.directory / "registry.json"
    text = path.read_text()
    data = json.loads(text)
    [client] = [one for one in data["clients"] if one["name"] == "mobile"]
    client["ssh_keys"][0]["revoked"] = True
    data["generation"] += 1
    with keystack.stack.gateway.reloading():
        write_private(path, json.dumps(data).encode(), replace=True)
    status = json.loads((await keys(keystack, "status", "--json", code=5)).stdout)
    assert "key_not_accepted" in [one["code"] for one in status["notices"]]


async def test_rotate_says_what_it_does_and_the_dry_run_does_nothing(keystack: KeyStack) -> None:
    before = {file: file.read_bytes() for file in keystack.keys.iterdir()}
    dry = await keys(keystack, "rotate", "--dry-run")
    assert "token-2.key" in dry.stdout
    assert {file: file.read_bytes() for file in keystack.keys.iterdir()} == before
    done = await keys(keystack, "rotate", "token", "--drain", "0", "--json")
    told = json.loads(done.stdout)
    assert (told["step"], told["families"], told["warnings"]) == ("done", ["token"], [])
    for word in ("introduce", "prove", "switch", "drain", "retire"):
        assert word in done.stderr
    await keystack.is_tidy()


@pytest.mark.parametrize("line", ['identity = "keys/ssh_ed25519"', 'token_key = "keys/token.key"'])
async def test_keys_that_the_settings_name_are_left_to_their_owner(
    keystack: KeyStack, line: str
) -> None:
    table = "[ssh]" if "identity" in line else "[https]"
    text = keystack.config.read_text().replace(table, f"{table}\n{line}", 1)
    keystack.config.write_text(text)
    assert load(keystack.config)
    done = await keys(keystack, "rotate", code=2)
    assert "yours to replace" in done.stderr
    assert read_journal(keystack.settings()) is None


async def test_revoke_gives_up_everything(keystack: KeyStack) -> None:
    await keys(keystack, "revoke", code=130, stdin="n\n")
    await keystack.has_a_way_in()
    done = await keys(keystack, "revoke", "--yes")
    assert "revoked" in done.stdout
    status = await keys(keystack, "status", code=4)
    assert "token_refused" in status.stderr or "does not accept" in status.stderr
    told = json.loads(keystack.stack.gateway.run("client", "list", "--json").stdout)
    [client] = [one for one in told["clients"] if one["name"] == "mobile"]
    assert client["revoked"]


async def test_one_that_is_taken_back_says_why(keystack: KeyStack) -> None:
    (keystack.stack.gateway.directory / "ca" / "ca.key").unlink()
    done = await keys(keystack, "rotate", "cert", code=1)
    assert "not on the droplet" in done.stderr
    rotator = Rotator(keystack.settings(), lambda _: None)
    outcome = await rotator.carry_on(await rotator.plan(("token",), drain=0.0))
    assert outcome.step is Step.DONE
    await keystack.is_tidy()
