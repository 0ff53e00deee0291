"""What the worker and the engine say to each other."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from workers.errors import ServiceError
from workers.images import Pixels
from workers.messages import CodesInfo, Progress, Request


@dataclass(frozen=True)
class Work:
    """A job for the engine."""

    job_id: str
    request: Request


@dataclass(frozen=True)
class Finished:
    """What the engine made of a job: images, codes or both; or why it could not."""

    job_id: str
    pipeline: str
    images: tuple[Pixels, ...] = ()
    codes: CodesInfo | None = None
    error: ServiceError | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preview:
    """What image ``index`` would be if it ended now, after ``step`` calls of the prior."""

    index: int
    step: int
    pixels: Pixels


class Engine(Protocol):
    """The running batch."""

    @property
    def free_slots(self) -> int:
        """How many images could start now."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""

    def admit(self, work: Sequence[Work]) -> None:
        """Take jobs in, also more than there are free slots."""

    def drop(self, job_ids: Collection[str]) -> None:
        """Forget jobs; of these nothing comes."""

    def step(self) -> Sequence[Finished]:
        """Do a little of everything that runs, and return the jobs that have ended."""

    def progress(self) -> Mapping[str, Progress]:
        """How far the jobs are that have steps."""

    def previews(self) -> Mapping[str, Preview]:
        """Pictures of running jobs that asked for them, made since the last call."""
