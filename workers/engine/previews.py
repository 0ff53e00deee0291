"""When to show what running jobs are on the way to, so that it costs the others little."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from models.stage import Sample

PREVIEW_EVERY_S = 0.5  # of one job
PREVIEW_SHARE = 0.1  # of the engine's time, at most
MAX_PREVIEWS = 4  # at once


@dataclass
class PreviewTimer:
    """Chooses samples to show: of jobs in need of it, the sample that was shown least."""

    clock: Callable[[], float] = time.monotonic
    every_s: float = PREVIEW_EVERY_S
    share: float = PREVIEW_SHARE
    _due_s: dict[str, float] = field(default_factory=dict)  # by job
    _num_shown: dict[Sample, int] = field(default_factory=dict)
    _rests_until_s: float = 0.0

    def choose(self, candidates: Iterable[tuple[str, Sample]]) -> Sequence[tuple[str, Sample]]:
        """Return the (job id, sample) pairs to show now."""
        now = self.clock()
        if now < self._rests_until_s:
            return []
        chosen: dict[str, Sample] = {}
        for job_id, sample in candidates:
            if self._due_s.get(job_id, 0.0) <= now:
                other = chosen.get(job_id)
                if other is None or self._num_shown.get(sample, 0) < self._num_shown.get(other, 0):
                    chosen[job_id] = sample
        pairs = sorted(chosen.items(), key=lambda pair: self._due_s.get(pair[0], 0.0))[:MAX_PREVIEWS]
        for job_id, sample in pairs:
            self._due_s[job_id] = now + self.every_s
            self._num_shown[sample] = self._num_shown.get(sample, 0) + 1
        return pairs

    def spent(self, seconds: float) -> None:
        """Rest after making previews, so that they keep their share of the time."""
        self._rests_until_s = self.clock() + seconds * (1 / self.share - 1)

    def forget(self, job_id: str, samples: Iterable[Sample]) -> None:
        """Forget a job that has ended."""
        self._due_s.pop(job_id, None)
        for sample in samples:
            self._num_shown.pop(sample, None)
