"""A service for tests of the API: a real server and a real queue, with an engine that draws flat squares."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.errors import PROBLEM_MEDIA_TYPE, Problem
from app.main import create_app
from app.processes.server import Server
from app.settings import AppSettings
from models.media.image import ImageSpec
from models.options import FlowOptions
from models.spec import CodesSpec, PipelineSpec
from tests.fake_engine import CODEBOOK_SIZE, FINGERPRINT, GRID, SIDE_PX, FakeEngine
from tests.waiting import wait_until
from workers.blobs import BlobStore, source_reader
from workers.catalog import Catalog
from workers.compute import Engine, Finished
from workers.files import encode_output
from workers.messages import JobView, Resolved
from workers.moderation import load_moderation
from workers.queue import embedded_server
from workers.queue.consumer import Consumer
from workers.results import open_results
from workers.worker import Worker, WorkerConfig

TINY_IMAGE = ImageSpec(width_px=SIDE_PX, height_px=SIDE_PX, channels=1)
SPEC = PipelineSpec(
    name="tiny",
    makes=(TINY_IMAGE,),
    takes={"source": TINY_IMAGE},
    latents=(4, *GRID),
    codes=CodesSpec(grid=GRID, size=CODEBOOK_SIZE, fingerprint=FINGERPRINT),
    labels={"class": ("T-shirt/top", "Sneaker")},
    autoencoders={"image": "vq"},
    prior="flow",
    defaults=FlowOptions(num_steps=5, sampler="heun", guidance_scale=1.5),
)
WAIT = {"Prefer": "wait=10"}


def job_of(response: httpx.Response) -> JobView:
    """Return the job that an answer is."""
    assert response.headers["content-type"] == "application/json", response.text
    return read_job(response.json())


def read_job(raw: dict) -> JobView:
    """Return a job from its JSON, in which ``images`` repeats some of the outputs."""
    if raw.get("result"):
        raw["result"].pop("images")
    return JobView.model_validate_json(json.dumps(raw))


def png_of(request: Resolved, finished: Finished) -> bytes:
    """Return the PNG of what an engine made of a job's first sample."""
    return encode_output(request, finished, 0, tells_provenance=True)


def problem_of(response: httpx.Response, status: int, code: str) -> Problem:
    """Check everything that is promised of any problem, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM_MEDIA_TYPE
    problem = Problem.model_validate_json(response.content)
    assert (problem.status, problem.code, problem.type) == (status, code, f"urn:smalti:error:{code}")
    assert problem.title
    assert problem.detail
    assert "Traceback" not in response.text
    assert not re.search(r"/(home|root|tmp|usr|work)/|\.py\b", response.text)
    return problem


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
def working(settings: AppSettings, engine: Engine, **config) -> Iterator[Worker]:
    """Run a worker."""
    catalog = Catalog.load(settings.weights_dir, settings.pipelines)
    worker = Worker(
        settings.redis_url,
        engine,
        open_results(settings),
        WorkerConfig(
            grace_s=0,
            moderation=load_moderation(settings.moderation, settings.moderation_timeout_s),
            **config,
        ),
        read_sources=source_reader(catalog, BlobStore(settings.blobs_dir)),
        pipelines=catalog.names,
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.request_stop()
        thread.join()


def settings_for(folder: Path, redis_url: str, **changes) -> AppSettings:
    """Return settings of a service with one pipeline, SPEC."""
    (folder / "weights" / SPEC.name).mkdir(parents=True, exist_ok=True)
    SPEC.save(folder / "weights" / SPEC.name / "pipeline.json")
    return AppSettings(
        redis_url=redis_url, weights_dir=folder / "weights", data_dir=folder / "data", **changes
    )


@dataclass(frozen=True)
class Service:
    client: httpx.Client
    engine: FakeEngine
    app: FastAPI


@pytest.fixture(scope="module")
def module_service(tmp_path_factory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    server = embedded_server.start(folder / "redis")
    settings = settings_for(folder, server.url, default_wait_s=10, max_wait_s=15)
    engine = FakeEngine()
    try:
        app = create_app(settings)
        with serving(app) as client, working(settings, engine):
            wait_until(lambda: client.get("/health/ready").status_code == 200)
            yield Service(client, engine, app)
    finally:
        server.stop()


@pytest.fixture
def service(module_service: Service) -> Iterator[Service]:
    """The API, a queue and a worker; shared by a module's tests."""
    yield module_service
    module_service.engine.is_held.clear()


@contextmanager
def serving_weights(redis_url: str, weights: Path, data_dir: Path, **changes) -> Iterator[httpx.Client]:
    """The API, ready, with a worker that computes with all pipelines in ``weights``.

    ``changes`` are other settings.
    """
    # Here, as this brings PyTorch, which other tests of the API do without.
    from workers.engine.loading import load_engine
    from workers.settings import WorkerSettings

    settings = AppSettings(redis_url=redis_url, weights_dir=weights, data_dir=data_dir, **changes)
    catalog = Catalog.load(weights, ())
    for_worker = WorkerSettings(weights_dir=weights, data_dir=data_dir, max_batch_size=8, device="cpu")
    engine = load_engine(for_worker, catalog)
    with serving(create_app(settings)) as client, working(settings, engine):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client


@pytest.fixture
def consumer(redis_url: str) -> Iterator[Consumer]:
    consumer = Consumer(redis_url, ["tiny"], lease_s=1, max_tries=3, ageing_s=0.2)
    yield consumer
    consumer.close()
