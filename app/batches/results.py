"""The rows of a batch that have ended, as a stream of lines."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Literal

from app.batches.records import BatchRecord, EndedRow
from app.batches.store import BatchNotFound
from app.batches.views import row_line
from app.services import Services

Order = Literal["ended", "input"]

SIGN_OF_LIFE = "\n"  # proxies close a silent connection, often after 30 or 60 seconds
_SIGN_OF_LIFE_S = 15.0
_ROWS_AT_A_TIME = 100
_LOOK_AGAIN_S = 0.5


async def stream_results(
    batch_id: str, services: Services, *, order: Order, after: int, follows: bool
) -> AsyncIterator[str]:
    """Yield lines of rows that have ended, and empty ones while there are none.

    after: the sequence of the last row that is known, or its line where ``order`` is that of the input.
    follows: whether to wait for those that have not ended. Ends early where this process goes away, or the
    batch expires.
    """
    silent_s = 0.0
    while not services.is_ending.is_set():
        try:
            rows, text, record = await asyncio.to_thread(_read, batch_id, services, order, after)
        except BatchNotFound:
            return
        if rows:
            after = _place(rows[-1], order)
            silent_s = 0.0
            yield text
        if len(rows) == _ROWS_AT_A_TIME:
            continue
        if not follows or record.status.is_terminal:
            return
        await _wait(services)
        silent_s += _LOOK_AGAIN_S
        if silent_s >= _SIGN_OF_LIFE_S:
            silent_s = 0.0
            yield SIGN_OF_LIFE


def _read(
    batch_id: str, services: Services, order: Order, after: int
) -> tuple[list[EndedRow], str, BatchRecord]:
    """Return the next rows, their lines, and the batch as it was before: so an ended one has no more."""
    with services.batches.opened(batch_id) as file:
        record = file.record()
        read = file.ended_rows if order == "ended" else file.ended_rows_in_order
        rows = read(after, _ROWS_AT_A_TIME)
    return rows, "".join(f"{row_line(row, record, services)}\n" for row in rows), record


def _place(row: EndedRow, order: Order) -> int:
    return row.sequence if order == "ended" else row.number


async def _wait(services: Services) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_LOOK_AGAIN_S):
            await services.is_ending.wait()
