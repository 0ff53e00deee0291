"""Computing rows in batches, so that neither a full memory nor one bad row costs the others anything."""

import logging
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from workers.errors import InternalError, OutOfMemory, ServiceError
from workers.lanes import Lanes

logger = logging.getLogger(__name__)

TOKENIZER_ROWS = 4  # in every call of a tokenizer: see workers/engine.py


class RowBatches:
    """Batches of at most ``max_rows`` rows a lane; fewer once memory has run out."""

    def __init__(self, max_rows: int, lanes: Lanes) -> None:
        self._max_rows = max_rows
        self._lanes = lanes

    def compute(
        self, compute: Callable[[list[int]], Tensor], num_rows: int, fixed_rows: int | None = None
    ) -> tuple[Tensor | None, dict[int, ServiceError]]:
        """Return ``compute``'s results for rows 0, 1, …, and the errors of rows that failed alone.

        ``compute`` gets row numbers, in several lanes at once: ``fixed_rows`` of them, the last batch padded
        by repeating a row; or, without, a lane's share, in as many batches as memory wants. When it fails,
        halves are tried, down to one row: so memory that runs out costs speed, and one bad row costs nobody
        else. Failed rows hold zeros; when all have failed, there are no results.
        """

        def attempt(part: list[int]) -> Tensor | Exception:
            padding = [part[-1]] * (fixed_rows - len(part)) if fixed_rows else []
            try:
                return compute(part + padding)[: len(part)]
            except Exception as error:  # the job boundary: whatever it is, it ends no more than a job
                return error

        results: list[tuple[int, Tensor]] = []  # the first row, and what came of it and those after
        failures: dict[int, ServiceError] = {}
        share = -(-num_rows // self._lanes.count)
        at_once = self._lanes.count
        pending = deque([list(range(num_rows))])
        while pending:
            limit = fixed_rows or min(share, self._max_rows)
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
                if _is_out_of_memory(outcome):
                    self._make_room(len(part), half, fixed_rows)
                    at_once = 1  # the other lanes took memory, too
                if len(part) == 1 and (len(parts) == 1 or not _is_out_of_memory(outcome)):
                    logger.error("a row failed alone", exc_info=outcome)
                    failures[part[0]] = _why(outcome)
                else:
                    pending.extendleft(filter(None, [part[half:], part[:half]]))
        if not results:
            return None, failures
        blank = torch.zeros_like(results[0][1][:1])
        results += [(row, blank) for row in failures]
        return torch.cat([result for _, result in sorted(results, key=lambda each: each[0])]), failures

    def _make_room(self, num_rows: int, half: int, fixed_rows: int | None) -> None:
        if fixed_rows is None:
            self._max_rows = max(1, min(self._max_rows, half))
        logger.warning("out of memory with %d rows: at most %d from now on", num_rows, self._max_rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _why(error: Exception) -> ServiceError:
    if _is_out_of_memory(error):
        return OutOfMemory("this worker has not enough memory for the request, even alone")
    return InternalError("the model failed on this request")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)
