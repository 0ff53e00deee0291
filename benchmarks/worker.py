"""A worker of the service with another engine: `python benchmarks/worker.py together|whole|empty`.

Everything but the engine's way to batch is Smalti's own: the queue, the claiming of jobs, the storing of
results.
"""

import sys
from collections import deque
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from app.settings import read_settings
from models.media.base import Array
from workers.blobs import BlobStore, source_reader
from workers.catalog import Catalog
from workers.compute import Engine, Finished, Preview, SampleOutput, Slots, Work
from workers.messages import Progress, SeedVerdict
from workers.results import ResultStore
from workers.settings import WorkerSettings
from workers.worker import Worker, WorkerConfig, stop_on_signals


class WholeRequests:
    """Smalti's engine with whole-request batching: a batch starts when the one before it has ended.

    With ``is_answered_together``, as servers of whole batches do it, all of a batch are answered at its end;
    otherwise each when its own steps are done.
    """

    def __init__(self, engine: Engine, max_batch_size: int, *, is_answered_together: bool) -> None:
        self._engine = engine
        self._max_batch_size = max_batch_size
        self._is_answered_together = is_answered_together
        self._ended: list[Finished] = []
        self._waiting: deque[Work] = deque()

    @property
    def free_slots(self) -> Slots:
        num_free = max(0, self._max_batch_size - sum(work.request.num_samples for work in self._waiting))
        return Slots(num_free, num_free)

    @property
    def is_idle(self) -> bool:
        return self._engine.is_idle and not self._waiting and not self._ended

    def admit(self, work: Sequence[Work]) -> None:
        self._waiting.extend(work)

    def drop(self, job_ids: Collection[str]) -> None:
        self._waiting = deque(work for work in self._waiting if work.job_id not in job_ids)
        self._ended = [finished for finished in self._ended if finished.job_id not in job_ids]
        self._engine.drop(job_ids)

    def step(self) -> Sequence[Finished]:
        if self._engine.is_idle:
            batch = [self._waiting.popleft()]
            num_free = self._max_batch_size - batch[0].request.num_samples
            while self._waiting and self._waiting[0].request.num_samples <= num_free:
                batch.append(self._waiting.popleft())
                num_free -= batch[-1].request.num_samples
            self._engine.admit(batch)
        self._ended += self._engine.step()
        if self._is_answered_together and not self._engine.is_idle:
            return []
        ended, self._ended = self._ended, []
        return ended

    def progress(self) -> Mapping[str, Progress]:
        return self._engine.progress()

    def previews(self) -> Mapping[str, Preview]:
        return self._engine.previews()

    @property
    def needs_check(self) -> bool:
        return self._engine.needs_check

    def check_seeds(self, budget_s: float) -> None:
        self._engine.check_seeds(budget_s)

    def seed_verdicts(self) -> Mapping[str, SeedVerdict]:
        return self._engine.seed_verdicts()


class Nothing:
    """Computes nothing: every image is black, after one step."""

    needs_check = False

    def __init__(self, side_px: int, max_batch_size: int) -> None:
        self._signal: Array = np.full((1, side_px, side_px), -1, np.float32)
        self._max_batch_size = max_batch_size
        self._work: dict[str, Work] = {}

    @property
    def free_slots(self) -> Slots:
        num_free = max(0, self._max_batch_size - len(self._work))
        return Slots(num_free, num_free)

    @property
    def is_idle(self) -> bool:
        return not self._work

    def admit(self, work: Sequence[Work]) -> None:
        self._work.update((each.job_id, each) for each in work)

    def drop(self, job_ids: Collection[str]) -> None:
        for job_id in job_ids:
            self._work.pop(job_id, None)

    def step(self) -> Sequence[Finished]:
        work, self._work = self._work, {}
        return [
            Finished(
                each.job_id,
                each.request.pipeline,
                (SampleOutput("image", self._signal),) * each.request.num_samples,
            )
            for each in work.values()
        ]

    def progress(self) -> Mapping[str, Progress]:
        return {}

    def previews(self) -> Mapping[str, Preview]:
        return {}

    def check_seeds(self, budget_s: float) -> None:
        """Check nothing."""

    def seed_verdicts(self) -> Mapping[str, SeedVerdict]:
        return {}


def main(kind: str) -> None:
    """Work until SIGTERM, with settings from the environment."""
    settings = read_settings(WorkerSettings)
    assert settings.redis_url is not None
    catalog = Catalog.load(settings.weights_dir, settings.pipelines)
    engine: Engine
    if kind == "empty":
        engine = Nothing(catalog.spec(None).latents[-1], settings.max_batch_size)
    else:
        from workers.engine.loading import load_engine  # with torch

        smalti = load_engine(settings, catalog)
        smalti.warm_up()
        while smalti.needs_check:
            smalti.check_seeds(60)
        engine = WholeRequests(smalti, settings.max_batch_size, is_answered_together=kind == "together")
    worker = Worker(
        settings.redis_url,
        engine,
        ResultStore(settings.results_dir),
        WorkerConfig(),
        read_sources=source_reader(catalog, BlobStore(settings.blobs_dir)),
        pipelines=catalog.names,
    )
    stop_on_signals(worker)
    worker.run()


if __name__ == "__main__":
    main(sys.argv[1])
