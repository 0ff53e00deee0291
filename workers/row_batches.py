"""Computing rows in batches, so that neither a full memory nor one bad row costs the others anything."""

import logging
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from workers.errors import InternalError, OutOfMemory, ServiceError

logger = logging.getLogger(__name__)


class RowBatches:
    """Batches of at most ``max_rows`` rows; fewer once memory has run out."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows

    def compute(
        self, compute: Callable[[list[int]], Tensor], num_rows: int, fixed_rows: int | None = None
    ) -> tuple[Tensor | None, dict[int, ServiceError]]:
        """Return ``compute``'s results for rows 0, 1, …, and the errors of rows that failed alone.

        ``compute`` gets row numbers: ``fixed_rows`` at once, the last batch padded by repeating a row;
        or, without, as many as memory takes. When it fails, halves are tried, down to one row: so
        memory that runs out costs speed, and one bad row costs nobody else. Failed rows hold zeros; when
        all have failed, there are no results.
        """
        results: dict[int, Tensor] = {}
        failures: dict[int, ServiceError] = {}
        pending = deque([list(range(num_rows))])
        while pending:
            part = pending.popleft()
            limit = fixed_rows or self._max_rows
            if len(part) > limit:
                pending.extendleft([part[limit:], part[:limit]])
                continue
            padding = [part[-1]] * (fixed_rows - len(part)) if fixed_rows else []
            try:
                computed = compute(part + padding)
            except Exception as error:  # the job boundary: whatever it is, it ends no more than a job
                is_memory = _is_out_of_memory(error)
                if len(part) == 1:
                    logger.exception("a row failed alone")
                    failures[part[0]] = (
                        OutOfMemory("this worker has not enough memory for the request, even alone")
                        if is_memory
                        else InternalError("the model failed on this request")
                    )
                    continue
                half = -(-len(part) // 2)
                if is_memory:
                    if fixed_rows is None:
                        self._max_rows = max(1, min(self._max_rows, half))
                    logger.warning(
                        "out of memory with %d rows: at most %d from now on", len(part), self._max_rows
                    )
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                pending.extendleft([part[half:], part[:half]])
            else:
                if len(part) == num_rows:
                    return computed[:num_rows], failures
                results.update(zip(part, computed, strict=False))
        if not results:
            return None, failures
        blank = torch.zeros_like(next(iter(results.values())))
        return torch.stack([results.get(row, blank) for row in range(num_rows)]), failures


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)
