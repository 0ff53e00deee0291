"""Batches: rows as they are sent, and their results as they come, over connections that may break."""

import json
import os
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import httpx
from pydantic import TypeAdapter, ValidationError

from smalti.calls import Call, body_of, key_of
from smalti.connection import Connection, failure_of, read
from smalti.errors import AnswerUnreadable, BatchTimeout, UnusableSource
from smalti.fields import Operation
from smalti.following import MAX_EMPTY_STREAMS, SILENCE_S
from smalti.many import fields_of
from smalti.models import BatchInfo, BatchRow, File
from smalti.progress import Bar

Order = Literal["ended", "input"]
Rows = str | os.PathLike[str] | File | Iterable[Any]

_BATCH = TypeAdapter(BatchInfo)
_FIRST_LOOK_S, _MAX_LOOK_S = 0.1, 3.0


def batch_call(
    rows: Rows,
    operation: Operation,
    fields: Mapping[str, Any],
    idempotency_key: str | None,
    webhook_url: str | None = None,
) -> Call:
    """Return the request that makes a batch: of a file of JSON Lines, an upload of one, or of requests.

    Raises: UnusableSource; NoBytes; MissingPackage; ValueError.
    """
    headers = {"Accept": "application/json", "Idempotency-Key": key_of(idempotency_key)}
    if isinstance(rows, File):
        told = {} if webhook_url is None else {"webhook_url": webhook_url}
        return Call("POST", "batches", headers, json={"file": rows.id, **told})
    if isinstance(rows, (str, os.PathLike)):
        try:
            content = Path(rows).read_bytes()
        except OSError as error:
            raise UnusableSource(f"rows: can't read {os.fspath(rows)!r}: {error.strerror}") from error
    else:
        content = b"".join(_lines(rows, operation, fields))
    path = "batches" if webhook_url is None else f"batches?{urlencode({'webhook_url': webhook_url})}"
    return Call("POST", path, {**headers, "Content-Type": "application/jsonl"}, content=content)


def _lines(rows: Iterable[Any], operation: Operation, fields: Mapping[str, Any]) -> Iterator[bytes]:
    if isinstance(rows, (bytes, Mapping)):
        raise ValueError(f"rows: is a path, or a list of requests, got one {type(rows).__name__}")
    for number, row in enumerate(rows):
        if isinstance(row, Mapping) and "body" in row:
            line = {"id": str(number), "operation": operation, **row}
        else:
            given = {**fields, **fields_of(operation, row)}
            line = {"id": str(number), "operation": operation, "body": body_of(operation, given)}
        yield json.dumps(line, separators=(",", ":")).encode() + b"\n"


async def make_batch(connection: Connection, call: Call) -> BatchInfo:
    """Make a batch, or find the one that its key has made."""
    return read(await connection.request(call), _BATCH)


async def look_up_batch(connection: Connection, batch_id: str) -> BatchInfo:
    """Return a batch as it is. Raises: NotFound."""
    return read(await connection.request(Call("GET", f"batches/{batch_id}")), _BATCH)


async def cancel_batch(connection: Connection, batch_id: str) -> BatchInfo:
    """Cancel the rows that have not ended. Raises: NotFound."""
    return read(await connection.request(Call("DELETE", f"batches/{batch_id}")), _BATCH)


async def wait_for_batch(
    connection: Connection, batch: BatchInfo, timeout_s: float | None, *, progress: bool
) -> BatchInfo:
    """Return a batch once all its rows have ended. Raises: BatchTimeout."""
    ends_at = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
    pause_s = _FIRST_LOOK_S
    with Bar(f"batch {batch.id[:8]}", is_on=progress, total=batch.num_rows or None) as bar:
        while True:
            batch = await look_up_batch(connection, batch.id)
            bar.show_counts(batch.num_ended, batch.num_rows)
            if batch.has_ended:
                return batch
            if time.monotonic() >= ends_at:
                raise BatchTimeout(batch, timeout_s or 0)
            await connection.sleep(max(0.0, min(pause_s, ends_at - time.monotonic())))
            pause_s = min(_MAX_LOOK_S, 1.5 * pause_s)


async def follow_rows(
    connection: Connection, batch_id: str, *, order: Order, after: int, follow: bool
) -> AsyncGenerator[BatchRow]:
    """Yield rows that have ended: those there are, or until the last one where ``follow`` is.

    A stream that breaks is taken up behind the row that came last. Where a proxy holds a stream back, it is
    asked again and again for those there are.

    Raises: NotFound; ConnectionFailed; RequestFailed; AnswerUnreadable.
    """
    num_silent = 0
    while True:
        batch = await look_up_batch(connection, batch_id)
        num_rows, is_broken = 0, False
        is_open = follow and not batch.has_ended and num_silent < MAX_EMPTY_STREAMS
        query = urlencode({"order": order, "after": after, "follow": str(is_open).lower()})
        try:
            async with aclosing(_stream(connection, f"batches/{batch_id}/results?{query}")) as rows:
                async for row in rows:
                    after = row.seq if order == "ended" else row.line
                    num_rows += 1
                    yield row
        except httpx.TransportError:
            is_broken = True
        num_silent = 0 if num_rows else num_silent + is_open
        if not is_broken and not num_rows and (batch.has_ended or not follow):
            return  # looked at after its end, there was nothing more
        if is_broken or not num_rows:
            await connection.sleep(0.2 if is_open else 1.0)


async def _stream(connection: Connection, path: str) -> AsyncGenerator[BatchRow]:
    """Raises: httpx.TransportError; RequestFailed; AnswerUnreadable."""
    begun = bytearray()
    async with connection.stream(Call("GET", path, read_timeout_s=SILENCE_S)) as response:
        if response.status_code != 200:
            raise failure_of(response)
        async for chunk in connection.chunks(response):
            begun += chunk
            *lines, rest = begun.split(b"\n")
            begun = bytearray(rest)
            for line in filter(None, lines):
                yield _row(line, path)


def _row(line: bytearray, path: str) -> BatchRow:
    try:
        return BatchRow.model_validate_json(bytes(line))
    except ValidationError as error:
        raise AnswerUnreadable(f"{path}: a line is not a row's result: {error.errors()[0]['msg']}") from None
