"""The jobs that a worker has in flight, and how many more it may take; shared by its threads."""

import threading
from collections.abc import Sequence

from workers.queue.consumer import Claim


class InFlight:
    """Every job of the worker, from its claim until its end is told, and the engine's free slots."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._claims: dict[str, Claim] = {}
        self._num_free = 0
        self._num_expected = 0

    def add(self, claims: Sequence[Claim]) -> list[Claim]:
        """Add jobs that are on their way to the engine; return older claims on the same jobs."""
        with self._changed:
            older = [self._claims[claim.job_id] for claim in claims if claim.job_id in self._claims]
            self._claims.update((claim.job_id, claim) for claim in claims)
            self._num_expected += sum(claim.num_slots for claim in claims)
            return older

    def remove(self, claim: Claim) -> None:
        """Remove a job that has ended, or that this worker has lost."""
        with self._changed:
            if self._claims.get(claim.job_id) == claim:
                del self._claims[claim.job_id]
                self._changed.notify_all()

    def has(self, claim: Claim) -> bool:
        with self._changed:
            return self._claims.get(claim.job_id) == claim

    def find(self, job_id: str, execution: str) -> Claim | None:
        """Return the claim of this number, if it is in flight."""
        with self._changed:
            claim = self._claims.get(job_id)
            return claim if claim is not None and claim.execution == execution else None

    def all(self) -> list[Claim]:
        with self._changed:
            return list(self._claims.values())

    def arrived(self, claims: Sequence[Claim], num_free: int) -> None:
        """Expect these jobs no longer: the engine has them, or never will; it has so many free slots now."""
        with self._changed:
            self._num_expected -= sum(claim.num_slots for claim in claims)
            self._num_free = num_free
            self._changed.notify_all()

    def wait_for_slots(self, *, until_idle: bool, timeout_s: float) -> int:
        """Return how many slots are free once one is, or once nothing is in flight; 0 when time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_open(until_idle), timeout_s)
            return self._num_open(until_idle)

    def _num_open(self, until_idle: bool) -> int:
        if until_idle and self._claims:
            return 0
        return max(0, self._num_free - self._num_expected)
