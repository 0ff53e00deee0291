"""Stages: all that an engine needs to know of a model. A job is samples, each on a path of stages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from models.conditioning import Conditions
from models.options import Options


class NotFinite(ArithmeticError):
    """A model made NaN or infinity for a sample."""


@dataclass(frozen=True)
class SampleSpec:
    """What one sample is asked for: nothing optional is open.

    conditions and null: a row each, of what is asked for and of what guidance leads away from; None where
    nothing is sampled. effort: sweeps of a search for codes. samples_posterior: whether latents are drawn, by
    the seed, from the distribution that an encoder gives; else they are its mean. mask: (1, *size) bool, the
    places of the sample's source that are drawn anew; None for all.
    """

    seed: int = 0
    options: Options | None = None
    conditions: Conditions | None = None
    null: Conditions | None = None
    effort: int = 0
    samples_posterior: bool = False
    mask: Tensor | None = None


@dataclass(eq=False)
class Sample:
    """One sample on its path.

    index: which of its request's samples it is. value: what the stage before left: a signal (C, *size),
    latents (d, *grid) or codes (*grid). codes: those that the value was decoded from, where it was. source:
    the signal (C, *size) that came in, where what is made starts from it, or is to be compared with it:
    ``psnr_db`` says how near that comes. state is of the stage alone that has the sample. A stage that fails
    a sample sets ``error``.
    """

    spec: SampleSpec
    index: int = 0
    value: Tensor | None = None
    codes: Tensor | None = None
    source: Tensor | None = None
    psnr_db: float | None = None
    calls_done: int = 0
    state: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Rows:
    """What a call gave: values (B, …), with zeros in rows that failed, or None when all did; and why."""

    values: Tensor | None
    failures: Mapping[int, Exception]


class Run(Protocol):
    """Calls a function over items 0 … num_items − 1: padded, in lanes, halved when memory runs out.

    ``call`` gets item numbers. It may get an item twice, so it must be idempotent. ``fixed_rows`` are the
    numbers of rows that a call may have: it is padded to the next of them. None allows any. An item is a row,
    or as many as ``sizes`` says; then ``call`` pads by itself (``padded``).
    """

    def __call__(
        self,
        call: Callable[[list[int]], Tensor],
        num_items: int,
        fixed_rows: Sequence[int] | None,
        sizes: Sequence[int] | None = None,
    ) -> Rows: ...


class Stage(Protocol):
    """One step of a path, shared by all samples of a pipeline that are at it.

    fixed_rows: see ``Run``. max_samples: how many share a call at most. reports_progress: whether its
    calls are worth telling people of.
    """

    fixed_rows: Sequence[int] | None
    max_samples: int
    reports_progress: bool

    def start(self, sample: Sample) -> None:
        """Take a sample in, whose ``value`` is what the stage before left."""

    def num_calls(self, sample: Sample) -> int:
        """Return how many calls a sample takes here."""

    def step(self, samples: Sequence[Sample], run: Run) -> None:
        """Make one call for each sample, and count it in ``calls_done``; the last one sets ``value``."""

    def preview(self, samples: Sequence[Sample]) -> Tensor | None:
        """Return what the samples are on the way to (B, …), for the next stage; None where nothing can be."""

    def release(self, sample: Sample) -> None:
        """Give back what the stage keeps for a sample; called once, also for one that is dropped."""


@runtime_checkable
class Capturing(Protocol):
    """What a stage adds whose calls are captured as graphs on a GPU."""

    def capture(self) -> None:
        """Capture the calls of all ``fixed_rows``, so that no request waits for it."""


@runtime_checkable
class Pretending(Protocol):
    """What a stage adds whose calls depend on what the calls before have left."""

    def pretend(self, sample: Sample, calls_done: int) -> None:
        """Let a started sample be as if it had had so many calls, with random outcomes: for checks."""


@runtime_checkable
class Caching(Protocol):
    """What a stage adds that keeps much for each running sample."""

    @property
    def bytes_per_sample(self) -> int:
        """The most memory that it keeps for a sample."""


def padded(num_rows: int, fixed_rows: Sequence[int] | None) -> int:
    """Return how many rows a call of ``num_rows`` has: the next of the numbers it may have."""
    return num_rows if fixed_rows is None else min(each for each in fixed_rows if each >= num_rows)


def run_directly(
    call: Callable[[list[int]], Tensor],
    num_items: int,
    fixed_rows: Sequence[int] | None,
    sizes: Sequence[int] | None = None,
) -> Rows:
    """Be a ``Run`` that makes one call; what fails is raised."""
    return Rows(call(list(range(num_items))), {})


@torch.inference_mode()
def run_path(stages: Sequence[Stage], samples: Sequence[Sample], run: Run = run_directly) -> None:
    """Take samples through a path of stages, in step; ``value`` is then what the last stage left.

    Raises: what a stage or a call raises.
    """
    for stage in stages:
        for sample in samples:
            sample.calls_done = 0
            stage.start(sample)
        try:
            while pending := [each for each in samples if each.calls_done < stage.num_calls(each)]:
                for first in range(0, len(pending), stage.max_samples):
                    stage.step(pending[first : first + stage.max_samples], run)
                for sample in pending:
                    if sample.error is not None:
                        raise sample.error
        finally:
            for sample in samples:
                stage.release(sample)
