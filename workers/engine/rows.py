"""Computing rows in batches, so that neither a full memory nor one bad row costs the others anything."""

import logging
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.stage import Rows
from workers.engine.lanes import Lanes

logger = logging.getLogger(__name__)


class RowBatches:
    """A ``models.stage.Run``: batches of at most ``max_rows`` rows a lane; fewer once memory has run out."""

    def __init__(self, max_rows: int, lanes: Lanes) -> None:
        self._max_rows = max_rows
        self._lanes = lanes

    def __call__(
        self, call: Callable[[list[int]], Tensor], num_rows: int, fixed_rows: Sequence[int] | None
    ) -> Rows:
        """Return what ``call`` makes of rows 0, 1, …, and the errors of rows that failed alone.

        ``call`` gets row numbers, in several lanes at once: a lane's share of them, in as many batches as
        memory wants, each padded to the next of ``fixed_rows`` by repeating a row. When it fails, halves are
        tried, down to one row: so memory that runs out costs speed, and one bad row costs nobody else.
        """

        def attempt(part: list[int]) -> Tensor | Exception:
            padding = [part[-1]] * (_padded(len(part), fixed_rows) - len(part))
            try:
                return call(part + padding)[: len(part)]
            except Exception as error:  # the job boundary: whatever it is, it ends no more than a job
                return error

        results: list[tuple[int, Tensor]] = []  # the first row, and what came of it and those after
        failures: dict[int, Exception] = {}
        share = -(-num_rows // self._lanes.count)
        at_once = self._lanes.count
        pending = deque([list(range(num_rows))])
        while pending:
            limit = min(share, self._max_rows, max(fixed_rows or (share,)))
            parts: list[list[int]] = []
            while pending and len(parts) < at_once:
                part = pending.popleft()
                if part[limit:]:
                    pending.appendleft(part[limit:])
                parts.append(part[:limit])

            for part, outcome in zip(parts, self._lanes.map(attempt, parts), strict=True):
                if isinstance(outcome, Tensor):
                    results.append((part[0], outcome))
                    continue
                half = -(-len(part) // 2)
                if is_out_of_memory(outcome):
                    if fixed_rows is None or min(fixed_rows) < _padded(len(part), fixed_rows):
                        self._make_room(len(part), half)
                    at_once = 1  # the other lanes took memory, too
                if len(part) == 1 and (len(parts) == 1 or not is_out_of_memory(outcome)):
                    logger.error("a row failed alone", exc_info=outcome)
                    failures[part[0]] = outcome
                else:
                    pending.extendleft(filter(None, [part[half:], part[:half]]))
        if not results:
            return Rows(None, failures)
        blank = torch.zeros_like(results[0][1][:1])
        results += [(row, blank) for row in failures]
        return Rows(torch.cat([result for _, result in sorted(results, key=lambda each: each[0])]), failures)

    def _make_room(self, num_rows: int, half: int) -> None:
        self._max_rows = max(1, min(self._max_rows, half))
        logger.warning("out of memory with %d rows: at most %d from now on", num_rows, self._max_rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether a call failed for want of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)


def _padded(num_rows: int, fixed_rows: Sequence[int] | None) -> int:
    """Return how many rows a call of ``num_rows`` has: the next of the numbers it may have."""
    return num_rows if fixed_rows is None else min(each for each in fixed_rows if each >= num_rows)
