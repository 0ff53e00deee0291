"""The log: one line an event, on standard error, as text or as JSON, with the ids of the request.

A message begins with its fields, `job_id=… try=1 succeeded`; in JSON they are fields beside it, too.
"""

import json
import logging
import re
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, TextIO

from workers.traces import current_trace

LogFormat = Literal["text", "json"]

_FIELD = re.compile(r"([a-z_]+)=(\S+) ")
# Nothing of this should get into a log; where an exception's text holds it all the same, it is left out.
_SECRETS = re.compile(
    r"(?P<login>\b(?:rediss?|unix)://[^\s:@/]*:)\S+(?=@)"
    r"|(?P<option>\b(?:password|signature)=)[^\s&'\"]+"
    r"|(?P<scheme>\bBearer )[^\s'\",]+"
    r"|(?P<key>\bsmalti-)[A-Za-z0-9_-]{40,}"
)
_MARKS = ("redis", "unix:", "password=", "signature=", "Bearer ", "smalti-")


def without_secrets(text: str) -> str:
    """Return a text without keys, signatures and passwords."""
    if not any(mark in text for mark in _MARKS):  # ten times as quick, and so it is nearly always
        return text
    return _SECRETS.sub(lambda found: f"{found[found.lastgroup or 0]}…", text)


class TextFormatter(logging.Formatter):
    """A line for people; a traceback follows on lines of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        if not line.isprintable():  # or a client's path moves the cursor of who reads it
            line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        ids = "".join(f" {name}={value}" for name, value in _ids().items())
        return line + ids

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class JsonFormatter(logging.Formatter):
    """A line for programs, a traceback in it."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(message),
            "process": record.process,
            **_ids(),
        }
        for name, value in _fields(message).items():
            line.setdefault(name, without_secrets(value))
        if record.exc_info:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def show_log(level: str, format: LogFormat = "text", stream: TextIO | None = None) -> None:
    """Write the log from ``level`` on to standard error; in JSON, also warnings and what ends a thread."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    if format == "json":
        logging.captureWarnings(True)
        sys.excepthook = _log_exception
        threading.excepthook = _log_thread


def is_json() -> bool:
    """Say whether this process writes its log as JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def _ids() -> dict[str, str]:
    trace = current_trace.get()
    return {"request_id": trace.request_id, "trace_id": trace.trace_id} if trace else {}


def _fields(message: str) -> dict[str, str]:
    fields, at = {}, 0
    while found := _FIELD.match(message, at):
        fields[found[1]] = found[2]
        at = found.end()
    return fields


def _log_exception(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    logging.getLogger("smalti").critical("the process ends", exc_info=(kind, error, traceback))


def _log_thread(ended: threading.ExceptHookArgs) -> None:
    error = ended.exc_value
    if error is not None:
        name = ended.thread.name if ended.thread else "a thread"
        told = (ended.exc_type, error, ended.exc_traceback)
        logging.getLogger("smalti").critical("thread=%s ends", name, exc_info=told)
