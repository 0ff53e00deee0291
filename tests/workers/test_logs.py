"""Lines of the log, as text and as JSON."""

import io
import json
import logging
import subprocess
import sys

import pytest

from workers.logs import JsonFormatter, TextFormatter, without_secrets
from workers.traces import Trace, new_trace, read_trace, working_for

TRACE = Trace("order-1", "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


def written(formatter: logging.Formatter, message: str, *args: object, **more: object) -> str:
    stream, logger = io.StringIO(), logging.Logger("workers.outbox")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    logger.warning(message, *args, **more)
    return stream.getvalue()


def test_a_line_of_json_has_the_ids_of_its_request_and_the_fields_of_its_message():
    with working_for(TRACE):
        text = written(JsonFormatter(), "job_id=%s try=%d succeeded", "5f", 2)
    line = json.loads(text)
    assert text.endswith("\n")
    assert line.pop("time").endswith("+00:00")
    assert line.pop("process")
    assert line == {
        "level": "WARNING",
        "logger": "workers.outbox",
        "message": "job_id=5f try=2 succeeded",
        "request_id": "order-1",
        "trace_id": TRACE.trace_id,
        "job_id": "5f",
        "try": "2",
    }
    assert "request_id" not in json.loads(written(JsonFormatter(), "idle"))


def test_an_exception_is_in_its_line_of_json():
    try:
        raise ValueError("no\nsuch thing")
    except ValueError:
        text = written(JsonFormatter(), "failed", exc_info=True)
    assert text.count("\n") == 1
    assert "ValueError: no\nsuch thing" in json.loads(text)["exception"]


def test_a_message_can_not_write_a_line_of_its_own():
    for formatter in (TextFormatter(), JsonFormatter()):
        assert written(formatter, "GET /a\nlevel=INFO all is well").count("\n") == 1


def test_a_message_can_not_steer_the_terminal_it_is_shown_in():
    text = written(TextFormatter(), "GET /\x1b[2J\x9b1A\u2028\r/é failed")
    assert "GET /\\x1b[2J\\x9b1A\\u2028\\r/é failed" in text


def test_a_message_can_not_give_itself_another_request():
    line = json.loads(written(JsonFormatter(), "level=INFO request_id=forged well"))
    assert (line["level"], line["logger"]) == ("WARNING", "workers.outbox")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_no_secret_gets_into_a_line(formatter):
    secrets = {
        "redis://user:pass:w@rd@queue:6379/0": "pass:w@rd",
        "unix:///redis.sock?password=hunter2&db=1": "hunter2",
        "/jobs/x/outputs/0?key=ada&expires=1&signature=abcdef0123": "abcdef0123",
        "Authorization: Bearer something": "something",
        f"got smalti-{'k' * 43}, which is unknown": "k" * 43,
    }
    for text, secret in secrets.items():
        try:
            raise RuntimeError(text)
        except RuntimeError:
            line = written(formatter, "address=%s failed", text, exc_info=True)
        assert secret not in line
    assert (
        without_secrets("redis://queue:6379/0 smalti-client 0.2") == "redis://queue:6379/0 smalti-client 0.2"
    )


def test_the_end_of_a_process_is_a_line_of_json():
    script = "from workers.logs import show_log; show_log('INFO', 'json'); import warnings; warnings.warn('old'); 1 / 0"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    warned, ends = map(json.loads, ended.stderr.splitlines())
    assert "old" in warned["message"]
    assert (ends["level"], "ZeroDivisionError" in ends["exception"]) == ("CRITICAL", True)


def test_what_a_job_keeps_of_a_trace_is_read_again():
    assert read_trace(str(TRACE)) == TRACE
    for other in (None, "", "order-1", f"{TRACE} more", str(TRACE).replace("order", "ö")):
        assert read_trace(other) is None


@pytest.mark.parametrize(
    ("parent", "is_taken"),
    [
        (f"00-{TRACE.trace_id}-{TRACE.span_id}-01", True),
        (f"cc-{TRACE.trace_id}-{TRACE.span_id}-01-what-comes-later", True),
        (f"00-{TRACE.trace_id}-{TRACE.span_id}-01-more", False),
        (f"ff-{TRACE.trace_id}-{TRACE.span_id}-01", False),
        (f"00-{TRACE.trace_id.upper()}-{TRACE.span_id}-01", False),
        (f"00-{'0' * 32}-{TRACE.span_id}-01", False),
        (f"00-{TRACE.trace_id}-{'0' * 16}-01", False),
        (f"00-{TRACE.trace_id}-01", False),
        (None, False),
    ],
)
def test_a_traceparent_is_taken_if_it_is_valid(parent, is_taken):
    trace = new_trace(None, parent)
    assert (trace.trace_id == TRACE.trace_id) == is_taken
    assert trace.span_id != TRACE.span_id
    assert read_trace(str(trace)) == trace
