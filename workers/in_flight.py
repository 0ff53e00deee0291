"""The jobs that a worker has in flight, and how many more it may take; shared by its threads."""

import threading
from collections import Counter
from collections.abc import Sequence

from workers.compute import Slots
from workers.messages import Priority
from workers.queue.consumer import Claim


class InFlight:
    """Every job of the worker, from its claim until its end is told, and the engine's free slots."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.claiming = threading.Lock()  # held from a claim until its jobs are in flight
        self._claims: dict[str, Claim] = {}
        self._free = Slots(0, 0)
        self._expected: Counter[Priority] = Counter()

    def add(self, claims: Sequence[Claim]) -> list[Claim]:
        """Add jobs that are on their way to the engine; return older claims on the same jobs."""
        with self._changed:
            older = [self._claims[claim.job_id] for claim in claims if claim.job_id in self._claims]
            self._claims.update((claim.job_id, claim) for claim in claims)
            for claim in claims:
                self._expected[claim.request.priority] += claim.num_slots
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

    def arrived(self, claims: Sequence[Claim], free: Slots) -> None:
        """Expect these jobs no longer: the engine has them, or never will; it has these free slots now."""
        with self._changed:
            for claim in claims:
                self._expected[claim.request.priority] -= claim.num_slots
            self._free = free
            self._changed.notify_all()

    def wait_for_slots(self, *, until_idle: bool, timeout_s: float) -> Slots:
        """Return the free slots once there is one, or once nothing is in flight; none when time is up."""
        with self._changed:
            self._changed.wait_for(lambda: any(self._open(until_idle)), timeout_s)
            return self._open(until_idle)

    def wait_for_more(self, slots: Slots, timeout_s: float) -> None:
        """Return when more slots are free than these, of either kind, or when time is up."""
        with self._changed:
            self._changed.wait_for(
                lambda: any(now > before for now, before in zip(self._open(), slots, strict=True)), timeout_s
            )

    def _open(self, until_idle: bool = False) -> Slots:
        if until_idle and self._claims:
            return Slots(0, 0)
        return Slots(
            max(0, self._free.interactive - self._expected["interactive"]),
            max(0, self._free.batch - self._expected["batch"]),
        )
