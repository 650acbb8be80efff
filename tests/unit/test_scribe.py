"""Lines of one turn go to the log together, and nobody goes on before his is there."""

import asyncio
import json
from pathlib import Path

import pytest

from gateway import audit as module
from gateway.audit import AuditError, AuditLog, Prepared
from gateway.scribe import Scribe
from gateway.verify import verify

ALLOW = Prepared({"decision": "allow"})


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    made = AuditLog(tmp_path / "audit.jsonl")
    made.open()
    return made


async def test_a_recorded_line_is_there_when_it_is_said_to_be(
    log: AuditLog, tmp_path: Path
) -> None:
    number = await Scribe(log).record(ALLOW)
    assert [line["seq"] for line in lines(tmp_path / "audit.jsonl")] == [number]


async def test_each_gets_the_number_of_its_own_line(log: AuditLog, tmp_path: Path) -> None:
    scribe = Scribe(log)
    scribe.note(Prepared({"code": "first"}), status=200)
    numbers = await asyncio.gather(
        *(scribe.record(Prepared({"client": f"c{number}"})) for number in range(20))
    )
    scribe.note(Prepared({"code": "last"}), outcome=numbers[3])
    scribe.flush()
    found = {line["seq"]: line for line in lines(tmp_path / "audit.jsonl")}
    assert [found[number]["client"] for number in numbers] == [f"c{n}" for n in range(20)]
    assert found[max(found)]["outcome"] == numbers[3]
    log.close()
    assert verify([tmp_path / "audit.jsonl"]).findings == ()


async def test_one_write_serves_all_who_ask_in_one_turn(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    write = module.os.write

    def counted(fd: int, data: bytes) -> int:
        writes.append(data)
        return write(fd, data)

    scribe = Scribe(log)
    monkeypatch.setattr(module.os, "write", counted)
    await asyncio.gather(*(scribe.record(ALLOW) for _ in range(50)))
    assert len(writes) == 1
    assert writes[0].count(b"\n") == 50


async def test_a_full_disk_is_told_to_everybody_and_leaves_no_half_batch(
    log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scribe = Scribe(log)
    await scribe.record(ALLOW)
    write, full = module.os.write, True

    def little(fd: int, data: bytes) -> int:
        if not full:
            return write(fd, data)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "write", little)
    told = await asyncio.gather(*(scribe.record(ALLOW) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(one, AuditError) for one in told)
    assert len(lines(tmp_path / "audit.jsonl")) == 1
    full = False
    assert await scribe.record(ALLOW) == 2
    log.close()
    assert verify([tmp_path / "audit.jsonl"]).findings == ()


async def test_who_left_meanwhile_does_not_disturb_the_others(log: AuditLog) -> None:
    scribe = Scribe(log)
    leaving = asyncio.ensure_future(scribe.record(ALLOW))
    staying = asyncio.ensure_future(scribe.record(ALLOW))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == 2
    with pytest.raises(asyncio.CancelledError):
        await leaving
