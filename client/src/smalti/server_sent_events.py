"""Server-sent events out of bytes (WHATWG's HTML standard, section 9.2.6).

Unlike there, a carriage return alone does not end a line.
"""

from dataclasses import dataclass

from smalti.errors import AnswerUnreadable

MAX_EVENT_BYTES = 64 * 2**20  # the last one holds the codes of a job


@dataclass(frozen=True)
class ServerSentEvent:
    """One event: its id, its kind and its data."""

    id: str
    kind: str
    data: str


class EventParser:
    """Reads events from chunks of bytes, however they are cut.

    ``str.splitlines`` and httpx's ``iter_lines`` would also cut JSON at U+2028, which it may hold unescaped.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._id = ""
        self._kind = "message"
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Return the events that are whole with this chunk.

        Raises: AnswerUnreadable for an event without end.
        """
        self._rest += chunk
        lines: list[bytearray] = []
        if b"\n" in chunk:
            *lines, self._rest = self._rest.split(b"\n")
        found = [self._line(line.removesuffix(b"\r").decode("utf-8", "replace")) for line in lines]
        self._check_size()
        return [event for event in found if event is not None]

    def _line(self, line: str) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "id":
                self._id = value
            case "event":
                self._kind = value
            case "data":
                self._data.append(value)
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        event = ServerSentEvent(self._id, self._kind, "\n".join(self._data)) if self._data else None
        self._kind, self._data = "message", []
        return event

    def _check_size(self) -> None:
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise AnswerUnreadable(f"an event is larger than {MAX_EVENT_BYTES} bytes")
