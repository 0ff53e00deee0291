"""A worker with the fake engine, as a process of its own: ``python -m tests.workers.toy_worker``."""

import logging
import sys
from pathlib import Path

from models.media.base import medium_of
from models.media.image import ImageSpec
from tests.fake_engine import SIDE_PX, FakeEngine
from workers.blobs import BlobStore
from workers.results import ResultStore
from workers.worker import Worker, WorkerConfig, stop_on_signals

PIPELINE = "tiny"
SPEC = ImageSpec(width_px=SIDE_PX, height_px=SIDE_PX, channels=1)


def new_worker(redis_url: str, engine: FakeEngine, data_dir: Path, config: WorkerConfig) -> Worker:
    """Return a worker that serves PIPELINE, with its files in ``data_dir``."""
    blobs = BlobStore(data_dir / "blobs")
    return Worker(
        redis_url,
        engine,
        ResultStore(data_dir / "results"),
        config,
        read_sources=lambda request: tuple(
            medium_of("image").load(blobs.read(source), SPEC) for source in request.sources
        ),
        pipelines=[PIPELINE],
    )


def main(redis_url: str, data_dir: str, lease_s: str, step_s: str, grace_s: str, max_tries: str) -> None:
    config = WorkerConfig(
        lease_s=float(lease_s), grace_s=float(grace_s), max_tries=int(max_tries), tells_provenance=False
    )
    logging.basicConfig(level="INFO", format="%(asctime)s %(process)d %(threadName)s %(message)s")
    engine = FakeEngine(num_slots=8, step_s=float(step_s))
    worker = new_worker(redis_url, engine, Path(data_dir), config)
    stop_on_signals(worker)
    worker.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
