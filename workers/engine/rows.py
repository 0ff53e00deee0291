"""Computing rows in batches, so that neither a full memory nor one bad row costs the others anything."""

import logging
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.stage import Rows, padded
from workers.engine.lanes import Lanes

logger = logging.getLogger(__name__)


MIN_ROWS_PER_LANE = 4  # fewer cost a lane more in Python's lock than they take to compute


class RowBatches:
    """A ``models.stage.Run``: batches of at most ``max_rows`` rows a lane; fewer once memory has run out."""

    def __init__(self, max_rows: int, lanes: Lanes) -> None:
        self._max_rows = max_rows
        self._lanes = lanes

    def __call__(
        self,
        call: Callable[[list[int]], Tensor],
        num_items: int,
        fixed_rows: Sequence[int] | None,
        sizes: Sequence[int] | None = None,
    ) -> Rows:
        """Return what ``call`` makes of items 0, 1, …, and the errors of items that failed alone.

        ``call`` gets item numbers, in several lanes at once: a lane's share of them, in as many batches as
        memory wants, each padded to the next of ``fixed_rows``. When it fails, halves are tried, down to one
        item: so memory that runs out costs speed, and one bad item costs nobody else.
        """
        rows_of = [1] * num_items if sizes is None else sizes

        def attempt(part: list[int]) -> Tensor | Exception:
            padding = [] if sizes else [part[-1]] * (padded(len(part), fixed_rows) - len(part))
            try:
                return call(part + padding)[: len(part)]
            except Exception as error:  # the job boundary: whatever it is, it ends no more than a job
                return error

        results: list[tuple[int, Tensor]] = []  # the first item, and what came of it and those after
        failures: dict[int, Exception] = {}
        num_rows = sum(rows_of)
        least = max(MIN_ROWS_PER_LANE, min(fixed_rows or (1,)))
        at_once = min(self._lanes.count, -(-num_rows // least))
        share = -(-num_rows // at_once)
        pending = deque([list(range(num_items))])
        while pending:
            limit = min(self._max_rows, max(fixed_rows or (num_rows,)))
            parts: list[list[int]] = []
            while pending and len(parts) < at_once:
                part = pending.popleft()
                end = _end_of_share(part, rows_of, share, limit)
                if part[end:]:
                    pending.appendleft(part[end:])
                parts.append(part[:end])

            for part, outcome in zip(parts, self._lanes.map(attempt, parts), strict=True):
                if isinstance(outcome, Tensor):
                    results.append((part[0], outcome))
                    continue
                half = -(-len(part) // 2)
                if is_out_of_memory(outcome):
                    tried = sum(rows_of[item] for item in part)
                    if fixed_rows is None or min(fixed_rows) < padded(tried, fixed_rows):
                        self._make_room(tried, sum(rows_of[item] for item in part[:half]))
                    at_once = 1  # the other lanes took memory, too
                if len(part) == 1 and (len(parts) == 1 or not is_out_of_memory(outcome)):
                    logger.error("a row failed alone", exc_info=outcome)
                    failures[part[0]] = outcome
                else:
                    pending.extendleft(filter(None, [part[half:], part[:half]]))
        if not results:
            return Rows(None, failures)
        blank = torch.zeros_like(results[0][1][:1])
        results += [(item, blank) for item in failures]
        results.sort(key=lambda each: each[0])
        whole = results[0][1] if len(results) == 1 else torch.cat([result for _, result in results])
        return Rows(whole, failures)

    def _make_room(self, num_rows: int, half: int) -> None:
        self._max_rows = max(1, min(self._max_rows, half))
        logger.warning("out of memory with %d rows: at most %d from now on", num_rows, self._max_rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether a call failed for want of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)


def _end_of_share(items: Sequence[int], rows_of: Sequence[int], share: int, limit: int) -> int:
    """Return how many of ``items`` make up a share of rows, or as much of it as the limit leaves."""
    num_rows = 0
    for end, item in enumerate(items):
        if num_rows >= share or (end and num_rows + rows_of[item] > limit):
            return end
        num_rows += rows_of[item]
    return len(items)
