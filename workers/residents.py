"""What a worker knows of each pipeline: where it is, whether it is in memory, and which may go."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from workers.catalog import CatalogEntry
from workers.messages import PipelineLoad

MAX_TRIES = 3  # to load a pipeline, until its files change or an administrator asks for it
_FIRST_PAUSE_S = 0.5


@dataclass(eq=False)
class Resident:
    """A pipeline. loaded: the entry that is in memory, of which ``entry`` may be a later state.

    is_closed: takes no jobs, so that it can go. is_gone: its folder is.
    """

    entry: CatalogEntry
    loaded: CatalogEntry | None = None
    num_bytes: int = 0
    used_at: float = field(default_factory=time.monotonic)
    is_pinned: bool = False
    is_closed: bool = False
    is_gone: bool = False
    is_loading: bool = False
    error: str | None = None
    num_tries: int = 0
    try_at: float = 0.0

    @property
    def name(self) -> str:
        return self.entry.spec.name

    @property
    def is_stale(self) -> bool:
        """Whether its files have changed since they were read."""
        return self.loaded is not None and self.loaded.stamp != self.entry.stamp

    @property
    def has_failed(self) -> bool:
        """Whether this worker has given up loading it."""
        return self.loaded is None and self.num_tries >= MAX_TRIES

    @property
    def is_open(self) -> bool:
        """Whether jobs may be taken for it now."""
        return self.loaded is not None and not (self.is_closed or self.is_stale or self.is_gone)

    @property
    def load(self) -> PipelineLoad:
        """What clients are told."""
        state = "loading" if self.is_loading else "failed" if self.has_failed else "not_loaded"
        return PipelineLoad.model_validate(
            {
                "worker": "",
                "state": "loaded" if self.loaded is not None and not self.is_loading else state,
                "num_bytes": self.num_bytes,
                "error": self.error,
            }
        )

    def forget_failures(self) -> None:
        """Let it be tried as if it had never failed."""
        self.num_tries, self.try_at, self.error = 0, 0.0, None

    def failed(self, reason: str, *, for_good: bool = False) -> None:
        """Note that it could not be loaded; it is tried again after a pause, a few times."""
        self.num_tries = MAX_TRIES if for_good else self.num_tries + 1
        self.try_at = time.monotonic() + _FIRST_PAUSE_S * 2**self.num_tries
        self.error = reason


def next_to_go(
    residents: Iterable[Resident], busy: Iterable[str], *, may_close_busy: bool
) -> Resident | None:
    """Return the least recently used that may go; an idle one before one with jobs, which must end first."""
    names = set(busy)
    free = [each for each in residents if each.loaded is not None and not each.is_pinned]
    idle = [each for each in free if each.name not in names]
    candidates = idle or (free if may_close_busy else [])
    return min(candidates, key=lambda each: (not each.is_closed, each.used_at), default=None)
