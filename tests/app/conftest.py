"""A service for tests of the API: a real server and a real queue, with an engine that draws flat squares."""

import base64
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app.main import create_app
from app.server import Server
from app.settings import AppSettings
from models.config import PipelineConfig, PriorConfig, Sampling, TokenizerConfig
from workers import redis_server
from workers.artifacts import ArtifactStore
from workers.errors import InternalError, NotFinite, OutOfMemory, ServiceError, StorageFull
from workers.images import load_image
from workers.messages import CodesInfo, DecodeRequest, EncodeRequest, GenerateRequest, Progress
from workers.work import Finished, Preview, Work
from workers.worker import Worker, WorkerConfig

CONFIG = PipelineConfig(
    name="tiny",
    class_names=("T-shirt/top", "Sneaker"),
    tokenizer=TokenizerConfig(image_size_px=8, downsample_factor=4, codebook_size=256),
    tokenizer_fingerprint="0123456789abcdef",
    prior=PriorConfig(grid=(2, 2), hidden_size=16, num_heads=2, num_classes=2),
    defaults=Sampling(num_steps=5, sampler="heun", guidance_scale=1.5),
)
FAILURES: dict[int, ServiceError] = {  # by the seed that brings them about
    666: NotFinite("the model made NaN for image 0"),
    667: OutOfMemory("too large, even alone"),
    668: StorageFull("the disk for results is full"),
    669: InternalError("the job could not be computed"),
}


@dataclass
class Sketcher:
    """An engine without models: a seed is a grey value, a code is a grey value. One step does all."""

    is_held: threading.Event = field(default_factory=threading.Event)  # while set, nothing is finished
    works: dict[str, Work] = field(default_factory=dict)

    @property
    def free_slots(self) -> int:
        return 64 - len(self.works)

    @property
    def is_idle(self) -> bool:
        return not self.works

    def admit(self, work: Sequence[Work]) -> None:
        self.works |= {each.job_id: each for each in work}

    def drop(self, job_ids: Collection[str]) -> None:
        for job_id in job_ids:
            self.works.pop(job_id, None)

    def progress(self) -> dict[str, Progress]:
        return {job_id: Progress(step=2, total=5) for job_id in self.works}

    def previews(self) -> dict[str, Preview]:
        asked = [work.job_id for work in self.works.values() if getattr(work.request, "preview", False)]
        return {job_id: Preview(0, 2, np.full((300, 200, 1), 7, np.uint8)) for job_id in asked}

    def step(self) -> list[Finished]:
        if self.is_held.is_set():
            time.sleep(0.005)
            return []
        drawings = [self._draw(work) for work in self.works.values()]
        self.works.clear()
        return drawings

    def _draw(self, work: Work) -> Finished:
        match work.request:
            case GenerateRequest(seed=seed) if seed in FAILURES:
                return Finished(work.job_id, CONFIG.name, error=FAILURES[seed])
            case GenerateRequest() as request:
                greys = [(request.seed + index) % 256 for index in range(request.num_images)]
                codes = _codes(greys) if request.return_codes else None
                return Finished(work.job_id, CONFIG.name, images=_flat(greys), codes=codes)
            case EncodeRequest() as request:
                pixels = load_image(base64.b64decode(request.image), 8, 1)
                return Finished(work.job_id, CONFIG.name, codes=_codes([int(pixels[0, 0, 0])]))
            case DecodeRequest() as request:
                return Finished(
                    work.job_id, CONFIG.name, images=_flat([grid[0][0] for grid in request.codes])
                )


def _flat(greys: list[int]) -> tuple[np.ndarray, ...]:
    return tuple(np.full((8, 8, 1), grey, np.uint8) for grey in greys)


def _codes(greys: list[int]) -> CodesInfo:
    return CodesInfo(
        codes=[[[grey] * 2] * 2 for grey in greys],
        grid=CONFIG.tokenizer.grid,
        codebook_size=CONFIG.tokenizer.codebook_size,
        tokenizer=CONFIG.tokenizer_fingerprint,
    )


@contextmanager
def serving(app: FastAPI) -> Iterator[httpx.Client]:
    """Run the API on a free port."""
    server = Server(app, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def working(settings: AppSettings, engine: Sketcher) -> Iterator[Worker]:
    """Run a worker."""
    worker = Worker(
        settings.redis_url, engine, ArtifactStore(settings.artifacts_dir), WorkerConfig(grace_s=0)
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.request_stop()
        thread.join()


def settings_for(folder: Path, redis_url: str, **changes) -> AppSettings:
    """Return settings of a service with one pipeline, CONFIG."""
    (folder / "weights" / CONFIG.name).mkdir(parents=True, exist_ok=True)
    CONFIG.save(folder / "weights" / CONFIG.name / "pipeline.json")
    return AppSettings(
        redis_url=redis_url, weights_dir=folder / "weights", data_dir=folder / "data", **changes
    )


@dataclass(frozen=True)
class Service:
    client: httpx.Client
    engine: Sketcher
    app: FastAPI


@pytest.fixture(scope="module")
def module_service(tmp_path_factory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    server = redis_server.start(folder / "redis")
    settings = settings_for(folder, server.url, default_wait_s=10, max_wait_s=15)
    engine = Sketcher()
    try:
        app = create_app(settings)
        with serving(app) as client, working(settings, engine):
            until(lambda: client.get("/health/ready").status_code == 200)
            yield Service(client, engine, app)
    finally:
        server.stop()


@pytest.fixture
def service(module_service: Service) -> Iterator[Service]:
    """The API, a queue and a worker; shared by a module's tests."""
    yield module_service
    module_service.engine.is_held.clear()


def until(is_true, timeout_s: float = 10) -> None:
    """Wait for something to become true."""
    ends_at = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


@contextmanager
def serving_weights(redis_url: str, weights: Path, data_dir: Path) -> Iterator[httpx.Client]:
    """The API, ready, with a worker that computes with all pipelines in ``weights``."""
    # Here, as these bring PyTorch, which other tests of the API do without.
    from models.pipeline import Pipeline
    from workers.engine import Engine

    settings = AppSettings(redis_url=redis_url, weights_dir=weights, data_dir=data_dir)
    engine = Engine({each.name: Pipeline.load(each) for each in weights.iterdir()}, max_batch_size=8)
    with serving(create_app(settings)) as client, working(settings, engine):
        until(lambda: client.get("/health/ready").status_code == 200)
        yield client
