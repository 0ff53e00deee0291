"""What the worker and the engine say to each other. Without torch."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from models.media.base import Array
from workers.catalog import CatalogEntry
from workers.errors import ServiceError
from workers.messages import CodesInfo, LatentsInfo, Progress, Resolved, SeedVerdict


@dataclass(frozen=True)
class Work:
    """A job for the engine. sources: the arrays of what came in, one a sample; to decode, latents."""

    job_id: str
    request: Resolved
    sources: tuple[Array, ...] = ()


@dataclass(frozen=True)
class SampleOutput:
    """What the engine made of one sample: a signal, codes, or both; or latents; or why it could not.

    signal: (C, *size) float32. codes: nested lists (*grid). latents: (d, *grid) float32. psnr_db: of
    their decoding, where asked for.
    """

    medium: str
    signal: Array | None = None
    codes: list[Any] | None = None
    latents: Array | None = None
    psnr_db: float | None = None
    error: ServiceError | None = None


@dataclass(frozen=True)
class Finished:
    """What the engine made of a job.

    codes: where its client wants them; null for a sample that failed. latents: what is to be known of
    those of the samples, where they have some. tokenizer: the fingerprint. progress: calls of the model,
    where it has told some. batch_size: how many samples shared each call, in the mean.
    """

    job_id: str
    pipeline: str
    samples: tuple[SampleOutput, ...] = ()
    codes: CodesInfo | None = None
    latents: LatentsInfo | None = None
    error: ServiceError | None = None
    warnings: tuple[str, ...] = ()
    tokenizer: str | None = None
    progress: Progress | None = None
    batch_size: float | None = None


@dataclass(frozen=True)
class Preview:
    """What sample ``index`` would be if it ended now, after ``step`` calls of the model."""

    index: int
    step: int
    medium: str
    array: Array


class Slots(NamedTuple):
    """Numbers of samples of interactive and of batch jobs: neither kind takes the other's."""

    interactive: int
    batch: int


class Models(Protocol):
    """Pipelines on disk, and those of them that an engine has. ``read`` gives what ``add`` takes."""

    def read(self, entry: CatalogEntry) -> Any:
        """Return a pipeline from its folder; called on any thread. Raises: ConfigError."""

    def add(self, name: str, pipeline: Any) -> Iterator[None]:
        """Take a pipeline into the engine, in slices for the compute thread."""

    def remove(self, name: str) -> Iterator[None]:
        """Take a pipeline out of the engine, likewise."""

    def estimated_bytes(self, entry: CatalogEntry) -> int:
        """Return about how much memory a pipeline will take."""

    def free_bytes(self) -> int | None:
        """Return how much memory may be filled; None where nobody knows."""


class Engine(Protocol):
    """The running batch."""

    @property
    def free_slots(self) -> Slots:
        """How many samples could start now."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""

    @property
    def needs_check(self) -> bool:
        """Whether the seed promise is still to be checked for a pipeline."""

    def admit(self, work: Sequence[Work]) -> None:
        """Take jobs in, also more than there are free slots."""

    def drop(self, job_ids: Collection[str]) -> None:
        """Forget jobs; of these nothing comes."""

    def step(self) -> Sequence[Finished]:
        """Do a little of everything that runs, and return the jobs that have ended."""

    def progress(self) -> Mapping[str, Progress]:
        """How far the jobs are whose progress is worth telling."""

    def previews(self) -> Mapping[str, Preview]:
        """What running jobs that asked for it are on the way to, as made since the last call."""

    def check_seeds(self, budget_s: float) -> None:
        """Go on with the check of the seed promise, for about so long."""

    def seed_verdicts(self) -> Mapping[str, SeedVerdict]:
        """What the check has found, by pipeline."""
