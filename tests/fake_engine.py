"""An engine without models: a seed is a grey, a code is a grey, and some seeds do harm."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import numpy.typing as npt

from models.media.base import Array
from workers.compute import Finished, Preview, SampleOutput, Slots, Work
from workers.errors import InternalError, NotFinite, OutOfMemory, ServiceError, StorageFull
from workers.messages import CodesInfo, Priority, Progress, Resolved, SeedVerdict

SIDE_PX = 8
GRID = (2, 2)
CODEBOOK_SIZE = 256
FINGERPRINT = "0123456789abcdef"

FAILURES: dict[int, ServiceError] = {  # the whole job, by its seed
    666: NotFinite("the model made NaN for image 0"),
    667: OutOfMemory("too large, even alone"),
    668: StorageFull("the disk for results is full"),
    669: InternalError("the job could not be computed"),
}
FAILS_SAMPLE_1 = 670  # and no other sample
FAILS_SAMPLES = 671  # every one, by itself
KILLS, RAISES, BAD_SIGNAL = 672, 673, 674  # the process; in step; a signal that no file can hold

NOT_FINITE = "the model made NaN for this sample"


def grey_of(seed: int, index: int) -> int:
    """Return the grey of a generated sample."""
    return (seed + index) % 256


def pixels_of(grey: int) -> npt.NDArray[np.uint8]:
    """Return (SIDE_PX, SIDE_PX, 1) pixels of one grey."""
    return np.full((SIDE_PX, SIDE_PX, 1), grey, np.uint8)


def codes_of(grey: int) -> list[list[int]]:
    """Return the codes (*GRID) of a grey."""
    return [[grey] * GRID[1] for _ in range(GRID[0])]


@dataclass
class FakeEngine:
    """One step ends everything; or, with step_s, each step takes so long and a job has its num_steps of them.

    While ``is_held`` is set, nothing ends. Remembers which jobs ran together, the step at which a job was
    dropped, and the budgets of the checks of seeds. ``num_checks``: how many such checks are still needed.
    """

    num_slots: int = 64
    step_s: float | None = None
    num_checks: int = 0
    is_held: threading.Event = field(default_factory=threading.Event)
    works: dict[str, Work] = field(default_factory=dict)
    steps_done: dict[str, int] = field(default_factory=dict)
    companies: list[set[str]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    check_budgets_s: list[float] = field(default_factory=list)

    @property
    def free_slots(self) -> Slots:
        taken = Counter[Priority]()
        for work in self.works.values():
            taken[work.request.priority] += work.request.num_samples
        return Slots(*(max(0, self.num_slots - taken[priority]) for priority in get_args(Priority)))

    @property
    def is_idle(self) -> bool:
        return not self.works

    @property
    def needs_check(self) -> bool:
        return self.num_checks > 0

    def admit(self, work: Sequence[Work]) -> None:
        for each in work:
            assert each.job_id not in self.works
            self.works[each.job_id] = each
            self.steps_done[each.job_id] = 0

    def drop(self, job_ids: Collection[str]) -> None:
        for job_id in job_ids:
            if self.works.pop(job_id, None):
                self.dropped[job_id] = self.steps_done.pop(job_id)

    def step(self) -> list[Finished]:
        time.sleep(self.step_s or 0)
        if not self.companies or self.companies[-1] != set(self.works):
            self.companies.append(set(self.works))
        if self.is_held.is_set():
            time.sleep(0.005)
            return []
        finished = []
        works = list(self.works.values())
        for work in works:
            if work.request.seed == KILLS:
                os.kill(os.getpid(), signal.SIGKILL)
            if work.request.seed == RAISES:
                raise RuntimeError("a secret path: /etc/secret")
            self.steps_done[work.job_id] += 1
            if self.step_s is None or self.steps_done[work.job_id] >= _num_steps(work):
                del self.works[work.job_id], self.steps_done[work.job_id]
                finished.append(_finished(work, sum(each.request.num_samples for each in works)))
        return finished

    def progress(self) -> dict[str, Progress]:
        if self.step_s is None:
            return {job_id: Progress(step=2, total=5) for job_id in self.works}
        return {
            job_id: Progress(step=self.steps_done[job_id], total=_num_steps(work))
            for job_id, work in self.works.items()
        }

    def previews(self) -> dict[str, Preview]:
        asked = [work.job_id for work in self.works.values() if work.request.preview]
        return {job_id: Preview(0, 2, "image", np.full((300, 200, 1), 7, np.uint8)) for job_id in asked}

    def check_seeds(self, budget_s: float) -> None:
        if self.num_checks:
            self.check_budgets_s.append(budget_s)
            self.num_checks -= 1
            time.sleep(min(budget_s, 0.01))

    def seed_verdicts(self) -> Mapping[str, SeedVerdict]:
        how = "full_batches" if self.needs_check else "checked"
        return {"tiny": SeedVerdict(worker="", is_kept=True, how=how, rows=(1, 2))}


def _num_steps(work: Work) -> int:
    return int(work.request.options.get("num_steps", 1))


def _finished(work: Work, company: int) -> Finished:
    request = work.request
    told = {"progress": Progress(step=_num_steps(work), total=_num_steps(work)), "batch_size": float(company)}
    if request.seed in FAILURES:
        return Finished(work.job_id, request.pipeline, error=FAILURES[request.seed], **told)
    samples = tuple(_sample(request, index, grey) for index, grey in enumerate(_greys(work)))
    codes = None
    if request.return_codes:
        codes = CodesInfo(
            codes=[sample.codes for sample in samples],
            grid=GRID,
            codebook_size=CODEBOOK_SIZE,
            tokenizer=FINGERPRINT,
        )
    return Finished(work.job_id, request.pipeline, samples, codes, **told)


def _greys(work: Work) -> list[int]:
    request = work.request
    if request.operation == "encode":
        return [int(source[0, 0, 0]) for source in work.sources]
    if request.operation == "decode":
        return [grid[0][0] for grid in request.codes or ()]
    return [grey_of(request.seed or 0, index) for index in range(request.num_samples)]


def _sample(request: Resolved, index: int, grey: int) -> SampleOutput:
    if request.seed == FAILS_SAMPLES or (request.seed == FAILS_SAMPLE_1 and index == 1):
        return SampleOutput("image", error=NotFinite(NOT_FINITE))
    codes = codes_of(grey) if request.return_codes else None
    if request.operation == "encode":
        return SampleOutput("image", codes=codes)
    signal: Array = np.full((1, SIDE_PX, SIDE_PX), grey / 127.5 - 1, np.float32)
    if request.seed == BAD_SIGNAL:
        signal = signal.reshape(-1)
    return SampleOutput("image", signal, codes)
