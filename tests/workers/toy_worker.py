"""A real worker with an engine that draws noise instead of computing, also as a process of its own.

A job of seed s and image i gives noise of (s, i), whoever computes it. Some class labels do harm.
"""

import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from workers.artifacts import ArtifactStore
from workers.messages import CodesInfo, GenerateRequest, Progress
from workers.work import Finished, Preview, Work
from workers.worker import Worker, WorkerConfig, stop_on_signals

POISON, RAISES, BAD_PIXELS = 600, 601, 602
SIDE_PX = 8


def toy_images(request: GenerateRequest) -> tuple[np.ndarray, ...]:
    return tuple(
        np.random.default_rng((request.seed or 0, index)).integers(0, 256, (SIDE_PX, SIDE_PX, 1), np.uint8)
        for index in range(request.num_images)
    )


class ToyEngine:
    """Steps every job at once, ``step_s`` for all together.

    Remembers the company of each job, and the step at which a job was dropped.
    """

    def __init__(self, num_slots: int = 8, step_s: float = 0.002) -> None:
        self._num_slots = num_slots
        self._step_s = step_s
        self._jobs: dict[str, tuple[GenerateRequest, int]] = {}
        self.company: deque[set[str]] = deque(maxlen=1000)
        self.dropped: dict[str, int] = {}

    @property
    def free_slots(self) -> int:
        return max(0, self._num_slots - sum(request.num_images for request, _ in self._jobs.values()))

    @property
    def is_idle(self) -> bool:
        return not self._jobs

    def admit(self, work: Sequence[Work]) -> None:
        for each in work:
            assert each.job_id not in self._jobs
            request = each.request
            if not isinstance(request, GenerateRequest):
                request = GenerateRequest(seed=0, num_images=1)
            self._jobs[each.job_id] = request, 0

    def drop(self, job_ids: Collection[str]) -> None:
        for job_id in job_ids:
            self.dropped[job_id] = self._jobs.pop(job_id)[1]

    def step(self) -> list[Finished]:
        time.sleep(self._step_s)
        if not self.company or self.company[-1] != set(self._jobs):
            self.company.append(set(self._jobs))
        finished = []
        for job_id, (request, step) in list(self._jobs.items()):
            if request.class_label == POISON:
                os.kill(os.getpid(), signal.SIGKILL)
            if request.class_label == RAISES:
                raise RuntimeError("a secret path: /etc/toy")
            self._jobs[job_id] = request, step + 1
            if step + 1 >= (request.num_steps or 1):
                del self._jobs[job_id]
                images = toy_images(request)
                if request.class_label == BAD_PIXELS:
                    images = tuple(image.astype(np.float32).reshape(-1) for image in images)
                codes = CodesInfo(codes=[[[1]]], grid=(1, 1), codebook_size=2, tokenizer="0" * 16)
                finished.append(Finished(job_id, "toy", images, codes if request.return_codes else None))
        return finished

    def previews(self) -> Mapping[str, Preview]:
        return {}

    def progress(self) -> Mapping[str, Progress]:
        return {
            job_id: Progress(step=step, total=request.num_steps or 1)
            for job_id, (request, step) in self._jobs.items()
        }


def main(redis_url: str, artifacts: str, lease_s: str, step_s: str, grace_s: str, max_tries: str) -> None:
    config = WorkerConfig(lease_s=float(lease_s), grace_s=float(grace_s), max_tries=int(max_tries))
    logging.basicConfig(level="INFO", format="%(asctime)s %(process)d %(threadName)s %(message)s")
    worker = Worker(redis_url, ToyEngine(step_s=float(step_s)), ArtifactStore(Path(artifacts)), config)
    stop_on_signals(worker)
    worker.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
