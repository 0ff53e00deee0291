"""The jobs in a worker's hands, and how many more it may take; shared by its threads."""

import threading
from collections.abc import Sequence

from workers.rq_worker import Claim


class Holdings:
    """Every job of the worker, from its claim until its end is told, and the engine's free slots."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: dict[str, Claim] = {}
        self._num_free = 0
        self._num_expected = 0

    def add(self, claims: Sequence[Claim]) -> list[Claim]:
        """Hold jobs that are on their way to the engine; return older claims on the same jobs."""
        with self._changed:
            older = [self._held[claim.job_id] for claim in claims if claim.job_id in self._held]
            self._held.update((claim.job_id, claim) for claim in claims)
            self._num_expected += sum(claim.num_slots for claim in claims)
            return older

    def remove(self, claim: Claim) -> None:
        """Hold a job no more."""
        with self._changed:
            if self._held.get(claim.job_id) == claim:
                del self._held[claim.job_id]
                self._changed.notify_all()

    def has(self, claim: Claim) -> bool:
        with self._changed:
            return self._held.get(claim.job_id) == claim

    def find(self, job_id: str, execution: str) -> Claim | None:
        """Return the claim of this number, if it is held."""
        with self._changed:
            claim = self._held.get(job_id)
            return claim if claim is not None and claim.execution == execution else None

    def all(self) -> list[Claim]:
        with self._changed:
            return list(self._held.values())

    def arrived(self, claims: Sequence[Claim], num_free: int) -> None:
        """Count no more as on their way jobs that the engine has, which now has so many free slots."""
        with self._changed:
            self._num_expected -= sum(claim.num_slots for claim in claims)
            self._num_free = num_free
            self._changed.notify_all()

    def wait_for_slots(self, *, until_idle: bool, timeout_s: float) -> int:
        """Return how many slots are free once one is, or once nothing is held; 0 when the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_open(until_idle), timeout_s)
            return self._num_open(until_idle)

    def _num_open(self, until_idle: bool) -> int:
        if until_idle and self._held:
            return 0
        return max(0, self._num_free - self._num_expected)
