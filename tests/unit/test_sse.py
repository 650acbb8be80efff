import json

import pytest

from tunnel.sse import KEPT, StreamTail


def event(end: str, **members: object) -> bytes:
    return f"event: message{end}data: {json.dumps(members)}{end}{end}".encode()


ENDS = pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])


@ENDS
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_in_pieces_of_any_size(end: str, size: int) -> None:
    progress = event(end, method="notifications/progress")
    answer = event(end, id=1, result={"a": 1})
    stream = b": ping" + end.encode() * 2 + progress + answer
    tail = StreamTail([1])
    for start in range(0, len(stream), size):
        tail.feed(stream[start : start + size])
    tail.feed(b": next")  # a CR at the very end may be half of a line end
    assert not tail.unanswered


@ENDS
def test_a_stream_stands_between_events_only_at_their_ends(end: str) -> None:
    stream = event(end, id=1, result={})
    for cut in range(len(stream) + 1):
        tail = StreamTail([1])
        tail.feed(stream[:cut])
        if tail.between_events:
            assert cut in (0, len(stream), len(stream) - 1)
    tail = StreamTail([1])
    tail.feed(event("\n", id=1, result={}))
    assert tail.between_events


def test_only_an_answer_with_the_id_answers() -> None:
    tail = StreamTail([1, "b"])
    for other in ({"id": 2, "result": {}}, {"id": 1, "method": "ping"}, {"method": "x"}):
        tail.feed(event("\n", **other))
    assert tail.unanswered
    tail.feed(event("\n", id=1, error={}))
    assert tail.unanswered
    tail.feed(event("\n", id="b", result=None))
    assert not tail.unanswered


def test_noise_is_passed_over() -> None:
    tail = StreamTail([1])
    tail.feed(b"data: not json\n\ndata\n\n:\n\n\xff\xfe\n\ndata: [1]\n\n")
    assert tail.unanswered
    assert tail.between_events


def test_an_answer_too_long_to_keep_counts_as_one() -> None:
    tail = StreamTail([1])
    tail.feed(b'data: {"id": 1, "result": "')
    for _ in range(KEPT // 1000 + 10):
        tail.feed(b"x" * 1000)
    assert not tail.between_events
    tail.feed(b'"}\n')
    tail.feed(b"\n")
    assert tail.between_events
    assert not tail.unanswered


def test_no_ids_need_no_answer() -> None:
    assert not StreamTail([]).unanswered
