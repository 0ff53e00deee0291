"""A batch that is worked on: which of its rows are jobs, which are to become some, and which must wait."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from app.batches.file import BatchFile
from app.batches.pace import Backoff
from app.batches.records import BatchRecord

MAX_HELD = 256  # rows that wait for something, while those behind them go on
MAX_UNCHECKED = 32  # rows that the moderation hook could not check; then no others are taken
MAX_CHECKS = 24  # of one row, in a quarter of an hour or more
_MAX_CHECK_WAIT_S = 60.0


@dataclass
class _Hold:
    """Why rows wait, and until when they do."""

    why: str
    backoff: Backoff = field(default_factory=Backoff)
    num_checks: int = 0


class Worked:
    """A batch that is worked on. to_submit: rows that were taken; outstanding: those that became jobs."""

    def __init__(self, record: BatchRecord, file: BatchFile, taken: Sequence[int]) -> None:
        self.record, self.file = record, file
        self.to_submit: list[int] = []
        self.outstanding = set(taken)
        self._held: dict[int, _Hold] = {}
        self._by_pipeline: dict[str, _Hold] = {}

    def job_id(self, number: int) -> str:
        return self.record.job_id(number)

    @property
    def num_to_take(self) -> int:
        """How many more rows may be taken: none while too many of them wait for something."""
        if sum(hold.num_checks > 0 for hold in self._held.values()) >= MAX_UNCHECKED:
            return 0
        return max(0, min(self.record.num_queued, MAX_HELD - len(self._held)))

    @property
    def waiting(self) -> str | None:
        """Why some rows wait; None where none does."""
        reasons = Counter(hold.why for hold in self._held.values())
        return "; ".join(f"{number} rows: {why}" for why, number in sorted(reasons.items())) or None

    def ready(self) -> list[int]:
        """Return the rows that were taken and may be tried now."""
        return [number for number in self.to_submit if self.may_try(number)]

    def may_try(self, number: int) -> bool:
        hold = self._held.get(number)
        return hold is None or hold.backoff.is_over

    def hold_for_pipeline(self, number: int, pipeline: str, why: str) -> None:
        """Try a row again later, with all others of this pipeline."""
        self._held[number] = self._by_pipeline.setdefault(pipeline, _Hold(why))
        self._held[number].backoff.failed()

    def hold_unchecked(self, number: int) -> bool:
        """Try a row again that the moderation hook could not check; False once that was often enough."""
        hold = self._held.get(number)
        if hold is None or not hold.num_checks:
            hold = _Hold("the moderation hook fails", Backoff(_MAX_CHECK_WAIT_S))
            self._held[number] = hold
        hold.num_checks += 1
        hold.backoff.failed()
        return hold.num_checks < MAX_CHECKS

    def became_job(self, number: int) -> None:
        self.to_submit.remove(number)
        self.outstanding.add(number)
        if number in self._held and not self._held[number].num_checks:  # its outputs are still to be checked
            self._let_go(number)

    def ended(self, numbers: Collection[int]) -> None:
        """Forget rows that are written down."""
        self.outstanding.difference_update(numbers)
        self.to_submit = [number for number in self.to_submit if number not in numbers]
        for number in numbers:
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        hold = self._held.pop(number, None)
        if hold is not None:
            hold.backoff.succeeded()
