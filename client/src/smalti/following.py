"""What happens to a job: server-sent events where they come through, else looking again and again."""

import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx
from pydantic import TypeAdapter

from smalti.arguments import check_seconds, shown
from smalti.calls import Call
from smalti.connection import Connection, read
from smalti.errors import InvalidArgument
from smalti.models import Event, JobInfo
from smalti.server_sent_events import EventParser, ServerSentEvent

JOB = TypeAdapter(JobInfo)
SILENCE_S = 20.0  # the service says something every 15
POLL_S = 20.0  # how long one look may take, which ends when the job does
MAX_EMPTY_STREAMS = 3
_LEAST_READ_S = 0.1


class _NoStream(Exception):
    """Events don't come through to here."""


async def follow(connection: Connection, job_id: str, timeout_s: float | None) -> AsyncGenerator[Event]:
    """Yield what happens to a job until it has ended, or the time is over.

    A stream that breaks is taken up where it was; between two, and where there is none, the job is looked up,
    which tries for ``retry_s`` while the service is gone.

    Raises: NotFound; ConnectionFailed; RequestFailed; AnswerUnreadable.
    """
    if timeout_s is not None:
        check_seconds("timeout_s", timeout_s)
    ends_at = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
    last_id, num_empty = "", 0
    while True:
        if num_empty < MAX_EMPTY_STREAMS:
            num_empty += 1
            try:
                async with aclosing(_stream(connection, job_id, last_id, ends_at)) as events:
                    async for event in events:
                        last_id, num_empty = event.id, 0
                        yield event
                        if event.job is not None:
                            return
            except _NoStream:
                num_empty = MAX_EMPTY_STREAMS
        if (left_s := ends_at - time.monotonic()) <= 0:
            return
        has_stream = num_empty < MAX_EMPTY_STREAMS
        started_at = time.monotonic()
        job = await look_up(connection, job_id, 0 if has_stream else min(POLL_S, left_s))
        if job.has_ended:
            yield Event(kind="status", status=job.status, job=job)
            return
        if not has_stream:
            yield Event(kind="progress", status=job.status, progress=job.progress)
        if has_stream or time.monotonic() - started_at < 0.5:  # such as a service that doesn't know the wait
            await connection.sleep(max(0.0, min(0.2 * (1 + num_empty), ends_at - time.monotonic())))


async def look_up(connection: Connection, job_id: str, wait_s: float = 0) -> JobInfo:
    """Return a job as it is, or once it has ended if it does so in time.

    Raises: NotFound; ConnectionFailed; RequestFailed; AnswerUnreadable.
    """
    if not isinstance(job_id, str) or not re.fullmatch(r"[\w-]{1,128}", job_id, re.ASCII):
        raise InvalidArgument("job_id", f"is the id that a job was given, got {shown(job_id)}")
    call = Call("GET", f"jobs/{job_id}")
    if wait_s > 0:
        call = Call("GET", call.path, {"Prefer": f"wait={wait_s:.3f}"}, read_timeout_s=wait_s + 30)
    return read(await connection.request(call), JOB)


async def _stream(connection: Connection, job_id: str, last_id: str, ends_at: float) -> AsyncGenerator[Event]:
    """Yield events until the stream or the time ends.

    Raises: _NoStream; RequestFailed.
    """
    # Silence ends a read; short ones near the end of the time, so that it is kept to about a quarter.
    read_s = max(_LEAST_READ_S, min(SILENCE_S, (ends_at - time.monotonic()) / 4))
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
    parser = EventParser()
    try:
        async with connection.stream(
            Call("GET", f"jobs/{job_id}/events", headers, read_timeout_s=read_s)
        ) as response:
            if response.status_code == 204:
                return  # it has ended, and this was heard: looking it up tells how
            media_type = response.headers.get("content-type", "").partition(";")[0]
            if response.status_code != 200 or media_type != "text/event-stream":
                raise _NoStream
            async for chunk in connection.chunks(response):
                for sent in parser.feed(chunk):
                    if (event := _event(sent)) is not None:
                        yield event
                if time.monotonic() >= ends_at:
                    return
    except httpx.ReadTimeout:
        if read_s >= SILENCE_S:
            raise _NoStream from None  # a proxy holds it back
    except httpx.TransportError:
        return


def _event(sent: ServerSentEvent) -> Event | None:
    """Return an event; None for what this version can't read, which looking up the job makes good."""
    try:
        return Event.model_validate({**json.loads(sent.data), "id": sent.id, "kind": sent.kind})
    except (ValueError, TypeError):
        return None
