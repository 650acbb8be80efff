"""What is kept of the service, and what a file that is not as we wrote it comes to: nothing."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from tunnel.bridge.memory import Memory

HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "s"},
}
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes")


def tool(name: str) -> dict[str, object]:
    return {"name": name, "inputSchema": {"properties": {name: {}}}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "service.json"


def test_what_was_learnt_is_there_at_the_next_start(file: Path) -> None:
    memory = Memory(file)
    assert memory.recall("initialize") is None
    assert memory.describe() is None
    memory.learn("initialize", None, HELLO)
    memory.learn("tools/list", None, {"tools": [tool("a")], "nextCursor": "2"})
    memory.learn("tools/list", "2", {"tools": [tool("b")]})
    for one in (memory, Memory(file)):
        assert one.recall("initialize") == one.describe() == HELLO
        assert one.recall("tools/list") == {"tools": [tool("a"), tool("b")]}
        assert one.schema("b") == {"properties": {"b": {}}}
        assert one.schema("c") is None
    memory.learn("tools/list", None, {"tools": [tool("c")]})
    assert Memory(file).recall("tools/list") == {"tools": [tool("c")]}


def test_a_page_that_comes_twice_is_kept_once(file: Path) -> None:
    memory = Memory(file)
    memory.learn("tools/list", None, {"tools": [tool("a")]})
    for _ in range(3):
        memory.learn("tools/list", "2", {"tools": [tool("b")]})
    assert memory.recall("tools/list") == {"tools": [tool("a"), tool("b")]}


def test_what_a_stateless_service_says_describes_it_too(file: Path) -> None:
    memory = Memory(file)
    memory.learn("server/discover", None, {"capabilities": {"x": {}}, "instructions": "Ask."})
    described = memory.describe()
    assert described is not None
    assert described["capabilities"] == {"x": {}}
    assert described["instructions"] == "Ask."


@pytest.mark.parametrize(
    ("method", "result"),
    [
        ("tools/list", {}),
        ("tools/list", {"tools": 5}),
        ("tools/list", {"tools": None}),
        ("initialize", {"capabilities": None}),
        ("server/discover", {}),
    ],
)
def test_nonsense_is_not_learnt(file: Path, method: str, result: dict[str, object]) -> None:
    memory = Memory(file)
    memory.learn("tools/list", None, {"tools": [tool("a")]})
    before = file.read_bytes()
    memory.learn(method, None, result)
    assert file.read_bytes() == before


@POSIX
def test_the_file_is_the_owners_only(file: Path) -> None:
    before = os.umask(0)
    try:
        Memory(file).learn("initialize", None, HELLO)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@POSIX
def test_one_that_others_could_have_written_is_not_believed(file: Path) -> None:
    Memory(file).learn("initialize", None, HELLO)
    file.chmod(0o666)
    assert Memory(file).recall("initialize") is None


def test_what_is_known_is_not_written_again(file: Path) -> None:
    memory = Memory(file)
    memory.learn("initialize", None, HELLO)
    before = file.stat().st_mtime_ns, file.stat().st_ino
    memory.learn("initialize", None, dict(HELLO))
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before


def test_where_nothing_can_be_written_it_is_known_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file, where a directory should be")
    memory = Memory(tmp_path / "cache" / "service.json")
    memory.learn("initialize", None, HELLO)
    assert memory.recall("initialize") == HELLO
    assert "memory not written" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 1}',
        '{"version": 1, "said": []}',
        json.dumps({"version": 2, "said": {"initialize": HELLO}}),
        '{"version": 1, "said": {"initialize": {"capabilities": {"x": NaN}}}}',
        '{"version": 1, "said": {"initialize": {"capabilities": []}}}',
        '{"version": 1, "said": {"tools/list": {"tools": {}}, "initialize": 5}}',
        '{"version": 1, "said": {"\\ud800": 1}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_none(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    file.chmod(0o600)
    memory = Memory(file)
    assert memory.describe() is None
    assert memory.recall("tools/list") is None
    memory.learn("initialize", None, HELLO)
    assert Memory(file).describe() == HELLO


def test_of_a_file_that_is_damaged_in_part_the_rest_is_kept(file: Path) -> None:
    file.parent.mkdir()
    said = {"initialize": HELLO, "tools/list": {"tools": 5}, "no/such": {"x": 1}}
    file.write_text(json.dumps({"version": 1, "said": said}))
    file.chmod(0o600)
    memory = Memory(file)
    assert memory.describe() == HELLO
    assert memory.recall("tools/list") is None
    assert memory.recall("no/such") is None


def test_tools_that_are_no_tools_have_no_schema(file: Path) -> None:
    memory = Memory(file)
    memory.learn("tools/list", None, {"tools": [5, {"name": "a", "inputSchema": 5}, {}]})
    assert memory.schema("a") is None
