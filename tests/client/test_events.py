"""Reading server-sent events."""

import pytest

from smalti import server_sent_events
from smalti.errors import AnswerUnreadable
from smalti.server_sent_events import EventParser, ServerSentEvent

STREAM = (
    'retry: 1000\n\n: \n\nid: 1-0\nevent: status\ndata: {"a": "one\u2028line"}\n\n'
    "id: 2-0\r\nevent:progress\r\ndata: first\r\ndata: second\r\n\r\ndata: plain\n\nevent: status\n\n"
).encode()
EVENTS = [
    ServerSentEvent("1-0", "status", '{"a": "one\u2028line"}'),
    ServerSentEvent("2-0", "progress", "first\nsecond"),
    ServerSentEvent("2-0", "message", "plain"),
]


@pytest.mark.parametrize("num_bytes", [1, 2, 7, 1000])
def test_events_are_the_same_however_the_bytes_are_cut(num_bytes):
    parser = EventParser()
    chunks = [STREAM[at : at + num_bytes] for at in range(0, len(STREAM), num_bytes)]
    assert [event for chunk in chunks for event in parser.feed(chunk)] == EVENTS


def test_an_event_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(server_sent_events, "MAX_EVENT_BYTES", 100)
    for chunk in (b"x" * 101, b"data: x\n" * 101):
        with pytest.raises(AnswerUnreadable, match="larger than 100 bytes"):
            EventParser().feed(chunk)
