"""The errors that the OpenAPI document shows, held against those that the service sends."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.errors import PROBLEM_MEDIA_TYPE
from app.examples import FILE_ID, NEW_BATCH, PROBLEMS, QUEUED_JOB
from app.main import create_app
from app.settings import AppSettings
from tests.app.conftest import problem_of, serving
from tests.app.test_door import answer_of, connected, head
from tests.app.test_metrics import samples_of
from tests.waiting import wait_until
from workers.queue import embedded_server

ROOT = Path(__file__).parents[2]
WAIT = {"Prefer": "wait=10"}
SIZE = 604  # of the output in the examples
# Of these only a worker, or the disk, is the cause.
# Of a service with API keys, or a hook: test_keys.py, test_limits.py, test_moderation.py.
WITH_KEYS = {
    "unauthorized",
    "forbidden",
    "queue_share_exceeded",
    "rate_limit_exceeded",
    "moderation_refused",
}
NOT_OVER_HTTP = {
    "out_of_memory",
    "not_finite",
    "storage_full",
    "storage_unavailable",
    "pipeline_not_served",
    "worker_lost",
}


@dataclass(frozen=True)
class Service:
    """The API with the shipped fashion-mnist, a queue, and no worker."""

    client: httpx.Client
    app: FastAPI
    queue_server: embedded_server.EmbeddedServer

    def post(self, path: str, **request) -> httpx.Response:
        return self.client.post(path, **request)


@pytest.fixture
def service(own_redis, tmp_path) -> Iterator[Service]:
    settings = AppSettings(
        redis_url=own_redis.url,
        weights_dir=ROOT / "weights",
        pipelines=("fashion-mnist",),
        data_dir=tmp_path / "data",
        body_timeout_s=1.5,
        max_file_bytes_per_key=1024,
    )
    app = create_app(settings)
    with serving(app) as client:
        yield Service(client, app, own_redis)


def send_foreign_code(service: Service) -> httpx.Response:
    (pipeline,) = service.client.get("/pipelines").json()
    codes = {"codes": [[[1024] * 14] * 14], "tokenizer": pipeline["tokenizer"]}
    return service.post("/decode", json=codes)


def fill_queue(service: Service) -> httpx.Response:
    for _ in range(256):
        service.post("/generate", json={})
    return service.post("/generate", json={})


def stop_queue(service: Service) -> httpx.Response:
    service.queue_server.stop()
    return service.post("/generate", json={})


def read_beyond_end(service: Service) -> httpx.Response:
    service.app.state.services.results.put(QUEUED_JOB.id, 0, bytes(SIZE), "png")
    return service.client.get(f"/jobs/{QUEUED_JOB.id}/outputs/0", headers={"Range": f"bytes={SIZE}-"})


def exceed_the_quota(service: Service) -> httpx.Response:
    service.post("/files", files={"file": bytes(1000)})
    return service.post("/files", files={"file": bytes(64)})


def retry_a_queued_job(service: Service) -> httpx.Response:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.submit.new_job_id", lambda: QUEUED_JOB.id)
        service.post("/generate", json={})
    return service.post(f"/jobs/{QUEUED_JOB.id}/retry")


def cancel_while_waiting(service: Service) -> httpx.Response:
    watchers = service.app.state.services.queue._job_events._watchers
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(service.post, "/generate", json={}, headers=WAIT)
        wait_until(lambda: watchers)
        (job_id,) = watchers  # from before it is submitted
        wait_until(lambda: service.client.delete(f"/jobs/{job_id}").status_code != 404)
        return answer.result()


def fill_the_door(service: Service) -> httpx.Response:
    begun = head("/encode", "Content-Length: 67100000"), bytes(67_000_000)
    with connected(service.client, *begun), connected(service.client, *begun):
        wait_until(lambda: samples_of(service.client)["smalti_http_body_bytes",] == 134_000_000)
        return service.post("/encode", json={"source": "A" * 300_000})


def send_half_a_body(service: Service) -> httpx.Response:
    with connected(service.client, head("/generate", "Content-Length: 100"), b"{") as connection:
        status, problem = answer_of(connection)
    return httpx.Response(status, json=problem, headers={"content-type": PROBLEM_MEDIA_TYPE})


def reuse_a_key(service: Service) -> httpx.Response:
    headers = {"Idempotency-Key": "order-1234"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.submit.new_job_id", lambda: QUEUED_JOB.id)
        service.post("/generate", json={}, headers=headers)
    return service.post("/generate", json={"seed": 7}, headers=headers)


def fail_unexpectedly(service: Service) -> httpx.Response:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.submit.parse_prefer", None)
        return service.post("/generate", json={})


PROVOKE: dict[str, Callable[[Service], httpx.Response]] = {
    "bad_request": lambda service: service.post(
        "/encode", content=b"--x", headers={"content-type": "multipart/form-data"}
    ),
    "forbidden_origin": lambda service: service.post(
        "/generate", json={}, headers={"Origin": "https://other.example"}
    ),
    "misdirected_host": lambda service: service.client.get("/docs", headers={"Host": "other.example"}),
    "request_timeout": send_half_a_body,
    "too_busy": fill_the_door,
    "not_acceptable": lambda service: service.post(
        "/encode", json={"source": "AAAA"}, headers={"Accept": "text/csv"}
    ),
    "body_too_large": lambda service: service.post(
        "/jobs/x/retry", content=b" " * 70000, headers={"content-type": "application/json"}
    ),
    "unsupported_media_type": lambda service: service.post(
        "/decode", content=b"{}", headers={"content-type": "text/plain"}
    ),
    "invalid_request": lambda service: service.post("/generate", json={"num_outputs": 65}),
    "unknown_pipeline": lambda service: service.post("/generate", json={"pipeline": "mnist"}),
    "invalid_image": lambda service: service.post("/encode", json={"source": "AAAA"}),
    "invalid_codes": send_foreign_code,
    "invalid_latents": lambda service: service.post(
        "/decode?tokenizer=0123456789abcdef", content=b"x", headers={"content-type": "application/x-npy"}
    ),
    "idempotency_key_reused": reuse_a_key,
    "queue_full": fill_queue,
    "queue_unavailable": stop_queue,
    "not_ready": lambda service: service.client.get("/health/ready"),
    "batch_not_found": lambda service: service.client.get(f"/batches/{NEW_BATCH.id}"),
    "job_not_found": lambda service: service.client.get(f"/jobs/{QUEUED_JOB.id}"),
    "range_not_satisfiable": read_beyond_end,
    "file_not_found": lambda service: service.client.get(f"/files/{FILE_ID}"),
    "file_quota_exceeded": exceed_the_quota,
    "job_not_retryable": retry_a_queued_job,
    "job_cancelled": cancel_while_waiting,
    "deadline_exceeded": lambda service: service.post(
        "/generate", json={"deadline_s": 0.05}, headers={"Prefer": "wait=0.2"}
    ),
    "internal_error": fail_unexpectedly,
}


@pytest.mark.parametrize("code", PROVOKE)
def test_the_example_of_an_error_is_what_is_sent(service, code):
    example = PROBLEMS[code]
    assert problem_of(PROVOKE[code](service), example.status, code).detail == example.detail


def test_every_error_is_provoked_or_a_workers_own():
    assert set(PROBLEMS) == set(PROVOKE) | WITH_KEYS | NOT_OVER_HTTP


@pytest.mark.parametrize("code", sorted(NOT_OVER_HTTP))
def test_the_example_of_a_workers_error_is_in_its_source(code):
    """What stands between the names, numbers and reasons of the message is looked for."""
    source = "\n".join(
        path.read_text()
        for folder in ("workers", "models")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".lua")
    )
    for text in re.split(r"\d+|'[a-z-]+'|/data/\w+ \(\w+\)|Read-only file system", PROBLEMS[code].detail):
        assert text.strip() in source
