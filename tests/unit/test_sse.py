import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel import sse
from tunnel.sse import KEPT, EventReader, StreamTail


def event(end: str, **members: object) -> bytes:
    return f"event: message{end}data: {json.dumps(members)}{end}{end}".encode()


ENDS = pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])


def stream(end: str) -> bytes:
    """A comment, a notification and the answer to 1."""
    progress = event(end, method="notifications/progress")
    return b": ping" + end.encode() * 2 + progress + event(end, id=1, result={"a": 1})


@ENDS
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_in_pieces_of_any_size(end: str, size: int) -> None:
    tail = StreamTail([1])
    whole = stream(end)
    for start in range(0, len(whole), size):
        tail.feed(whole[start : start + size])
    tail.feed(b": next")  # a CR at the very end may be half of a line end
    assert not tail.unanswered


@ENDS
def test_split_at_every_byte(end: str) -> None:
    whole = stream(end) + stream(end).replace(b'"id": 1', b'"id": 2')
    for cut in range(len(whole) + 1):
        tail = StreamTail([1, 2])
        tail.feed(whole[:cut])
        early = tail.unanswered
        tail.feed(whole[cut:])
        tail.feed(b": next")
        assert not tail.unanswered
        assert early or cut >= len(whole) - 1


@ENDS
def test_a_stream_stands_between_events_only_at_their_ends(end: str) -> None:
    whole = event(end, id=1, result={})
    for cut in range(len(whole) + 1):
        tail = StreamTail([1])
        tail.feed(whole[:cut])
        if tail.between_events:
            assert cut in (0, len(whole), len(whole) - 1)


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_after_an_event_another_may_begin(end: str) -> None:
    tail = StreamTail([1])
    assert tail.between_events
    for _ in range(3):
        whole = event(end, method="notifications/progress")
        for start in range(len(whole)):
            assert tail.between_events is (start == 0)
            tail.feed(whole[start : start + 1])
        assert tail.between_events
    assert tail.unanswered


@pytest.mark.parametrize(
    ("line", "empty"),
    [(b"\n", b"\r\n"), (b"\r\n", b"\n"), (b"\r", b"\r\n")],
    ids=["LF CRLF", "CRLF LF", "CR CRLF"],
)
def test_line_ends_may_be_mixed(line: bytes, empty: bytes) -> None:
    tail = StreamTail([1])
    tail.feed(b": hello\n\n")
    tail.feed(b"event: message" + line + b'data: {"id": 1, "result": {}}' + line + empty)
    assert not tail.unanswered
    assert tail.between_events


def test_one_line_end_is_no_end_of_an_event() -> None:
    tail = StreamTail([1])
    tail.feed(b'data: {"id": 1, "result": {}}\r')
    tail.feed(b"\n")
    assert tail.unanswered
    assert not tail.between_events


@pytest.mark.parametrize(
    "other",
    [
        {"id": 2, "result": {}},
        {"id": "1", "result": {}},
        {"id": None, "error": {}},
        {"id": [1], "result": {}},
        {"id": 1, "method": "ping"},
        {"result": {}},
        {"method": "x", "params": {"id": 1, "result": {}}},
    ],
)
def test_what_does_not_answer(other: dict[str, object]) -> None:
    tail = StreamTail([1])
    tail.feed(event("\n", **other))
    assert tail.unanswered
    assert tail.between_events


def test_each_id_is_answered_by_its_own_answer() -> None:
    tail = StreamTail([1, "b"])
    tail.feed(event("\n", id=1, error={"code": 1, "message": "no"}))
    assert tail.unanswered
    tail.feed(event("\n", id=1, result={}))
    assert tail.unanswered
    tail.feed(event("\n", id="b", result=None))
    assert not tail.unanswered


def test_a_batch_answers_all_that_is_in_it() -> None:
    """MCP 2025-03-26 lets a server put several answers into one event."""
    answers = [{"jsonrpc": "2.0", "id": caller, "result": {}} for caller in (1, "b")]
    tail = StreamTail([1, "b", 3])
    tail.feed(b"data: " + json.dumps(answers).encode() + b"\n\n")
    assert tail.unanswered
    tail.feed(event("\n", id=3, result={}))
    assert not tail.unanswered


def test_data_over_several_lines() -> None:
    tail = StreamTail([1])
    tail.feed(b'id: 7\ndata:{"id": 1,\ndata: "result":\ndata:{}}\nretry: 5\n\n')
    assert not tail.unanswered


def test_other_fields_are_not_data() -> None:
    tail = StreamTail([1])
    answer = b'{"id": 1, "result": {}}'
    tail.feed(b": " + answer + b"\n\nevent: " + answer + b"\n\nx-data: " + answer + b"\n\n")
    assert tail.unanswered


def test_noise_is_passed_over() -> None:
    tail = StreamTail([1])
    tail.feed(b"data: not json\n\ndata\n\n:\n\n\xff\xfe\n\ndata: [1]\n\ndata: 1\n\n\n\n\n")
    tail.feed(b"data: \xff\n\n")
    tail.feed(b"")
    assert tail.unanswered
    assert tail.between_events


def test_an_event_nested_too_deeply_to_read_does_not_end_the_stream() -> None:
    tail = StreamTail([1, 2])
    deep = b"[" * 20_000 + b"]" * 20_000
    tail.feed(b'data: {"jsonrpc": "2.0", "id": 1, "result": ' + deep + b"}\n\n")
    assert tail.between_events


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("split", [1, 2, 3])
def test_an_answer_too_long_to_keep_counts_as_one(end: bytes, split: int) -> None:
    tail = StreamTail([1])
    tail.feed(b'data: {"id": 1, "result": "')
    for _ in range(KEPT // 1000 + 10):
        tail.feed(b"x" * 1000)
    assert not tail.between_events
    closing = b'"}' + end + end
    for start in range(0, len(closing), split):
        assert tail.unanswered
        tail.feed(closing[start : start + split])
    assert tail.between_events
    assert not tail.unanswered


def test_an_overlong_answer_that_is_cut_inside_of_its_last_line_end() -> None:
    tail = StreamTail([1])
    tail.feed(b"data: " + b"x" * (2 * KEPT) + b"\r\n\r")
    assert not tail.between_events
    tail.feed(b"\n")
    assert tail.between_events
    assert not tail.unanswered


def test_what_follows_an_overlong_event_is_read_again() -> None:
    tail = StreamTail([1])
    tail.feed(b"data: " + b"x" * (2 * KEPT))
    tail.feed(b"x" * (2 * KEPT) + b"\n\n: ping")
    assert not tail.between_events
    tail.feed(b"\n\n")
    assert tail.between_events


def test_a_long_answer_in_one_piece_is_read() -> None:
    tail = StreamTail([1, 2])
    tail.feed(event("\n", id=1, result="x" * (3 * KEPT)))
    assert tail.unanswered
    tail.feed(event("\n", id=2, result="x" * (3 * KEPT)))
    assert not tail.unanswered


def test_no_ids_need_no_answer() -> None:
    tail = StreamTail([])
    assert not tail.unanswered
    tail.feed(b"data: x")
    assert not tail.unanswered
    assert not tail.between_events


# EventReader

LINES = st.lists(
    st.one_of(
        st.builds(lambda text: b"data:" + text, st.sampled_from([b"", b" a", b"  b", b"{}"])),
        st.sampled_from([b"data", b"id: 7", b"id", b"id: \0", b"retry: 250", b"retry: x"]),
        st.sampled_from([b": comment", b"event: message", b"odd: x", b"", b""]),
    ),
    max_size=30,
)


def plainly(lines: list[bytes]) -> list[tuple[bytes, str, float | None]]:
    """Return the events in whole lines, as section 9.2.6 of the standard describes it.

    One that has no data counts, too, where it says when or where to go on.
    """
    events, data, last, retry, moved = [], [], "", None, False
    for line in lines:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if any(data) or len(data) > 1 or retry is not None or moved:
                events.append((b"\n".join(data), last, retry))
            data, retry, moved = [], None, False
        elif name == b"data":
            data.append(value)
        elif name == b"id" and b"\0" not in value:
            last, moved = value.decode(), True
        elif name == b"retry" and value.isdigit():
            retry = int(value) / 1000
    return events


@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(1, 9)))
def test_events_are_the_same_however_they_are_cut(
    lines: list[bytes], end: bytes, sizes: list[int]
) -> None:
    whole = b"".join(line + end for line in lines)
    reader = EventReader()
    events = []
    start = 0
    for size in [*sizes, len(whole)]:
        events += reader.feed(whole[start : start + size])
        start += size
    events += reader.feed(b"")
    assert [(one.data, one.id, one.retry) for one in events] == plainly(lines)


def test_half_an_event_is_none() -> None:
    assert EventReader().feed(b'data: {"id": 1}\n') == []


@pytest.mark.parametrize("lines", [1, 5000], ids=["one line", "many lines"])
def test_twenty_megabytes_in_small_pieces_cost_linear_time(lines: int) -> None:
    size = 20 << 20
    line = b"data: " + b"x" * (size // lines) + b"\n"
    reader = EventReader()
    whole = line * lines
    began = time.process_time()
    for start in range(0, len(whole), 64 << 10):
        assert reader.feed(whole[start : start + (64 << 10)]) == []
    [event] = reader.feed(b"\n")
    assert len(event.data) >= size
    assert time.process_time() - began < 5  # 0.1 s; quadratic, it is a minute


def test_an_event_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "EVENT_LIMIT", 1000)
    for piece in (b"x" * 100, b"data: " + b"x" * 93 + b"\n"):
        reader = EventReader()
        with pytest.raises(ValueError, match="an event of more than"):
            for _ in range(20):
                reader.feed(piece)
    reader = EventReader()
    for _ in range(20):
        assert len(reader.feed(b"data: " + b"x" * 900 + b"\n\n")) == 1
