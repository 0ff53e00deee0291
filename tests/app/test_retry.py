"""A job that has failed is tried again by its id."""

import asyncio

import numpy as np
import pytest
from redis import Redis

from app.main import sweep
from app.queue import JobQueue
from models.media.image import IMAGE
from tests.app.conftest import WAIT, job_of, problem_of
from tests.app.queue_jobs import DECODE, run
from tests.fake_engine import FAILURES, FINGERPRINT, codes_of
from workers.errors import JobNotRetryable, NotFinite
from workers.queue.records import job_key

GREY = 7
PNG = IMAGE.save(np.full((8, 8, 1), GREY, np.uint8), "png")
UNSEEDED = None  # the seed of requests to encode and decode
SEED = 700


@pytest.fixture
def fails(monkeypatch):
    """Jobs of this seed fail, until the test ends that."""
    for seed in (UNSEEDED, SEED):
        monkeypatch.setitem(FAILURES, seed, NotFinite("for a while"))
    return monkeypatch


def failed_job(response) -> str:
    return problem_of(response, 500, "not_finite").job_id


def test_a_retried_job_is_a_new_one_with_the_same_request(service, fails):
    body = {"seed": SEED, "num_outputs": 2, "num_steps": 3, "format": "webp"}
    job_id = failed_job(service.client.post("/generate", json=body, headers=WAIT))
    again = failed_job(service.client.post(f"/jobs/{job_id}/retry", headers=WAIT))
    fails.undo()
    retried = service.client.post(f"/jobs/{again}/retry", headers=WAIT)
    whole = service.client.post("/generate", json=body, headers=WAIT)

    assert len({job_id, again, job_of(retried).id}) == 3
    sha256s = [[each["sha256"] for each in answer.json()["result"]["outputs"]] for answer in (retried, whole)]
    assert sha256s[0] == sha256s[1]
    assert retried.json()["result"]["seed"] == SEED
    assert service.client.get(f"/jobs/{job_id}").json()["status"] == "failed"


def test_without_a_wait_it_is_queued_and_a_key_makes_one_job(service, fails):
    job_id = failed_job(service.client.post("/generate", json={"seed": SEED}, headers=WAIT))
    service.engine.is_held.set()
    key = {"Idempotency-Key": "again"}
    first, second = (service.client.post(f"/jobs/{job_id}/retry", headers=key) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.headers["location"] == second.headers["location"] == f"/jobs/{first.json()['id']}"
    assert second.headers["idempotency-replayed"] == "true"


def test_the_files_of_a_failed_job_are_kept_for_it(service, fails):
    files = [("source", (f"{index}.png", PNG)) for index in range(64)]
    job_id = failed_job(service.client.post("/encode", files=files, headers=WAIT))
    services = service.app.state.services
    loop = services.queue._job_events._task.get_loop()  # to which the queue's connections belong
    asyncio.run_coroutine_threadsafe(sweep(services, margin_s=-1), loop).result(10)
    fails.undo()
    retried = service.client.post(f"/jobs/{job_id}/retry", headers=WAIT)
    assert retried.json()["result"]["codes"]["codes"] == [codes_of(GREY)] * 64


def test_codes_are_decoded_at_the_second_try(service, fails):
    body = {"codes": [codes_of(GREY)], "tokenizer": FINGERPRINT}
    job_id = failed_job(service.client.post("/decode", json=body, headers=WAIT))
    fails.undo()
    assert job_of(service.client.post(f"/jobs/{job_id}/retry", headers=WAIT)).status == "succeeded"


def test_a_large_request_is_not_kept_and_that_is_told(redis_url):
    large = DECODE.model_copy(update={"codes": [[[100] * 3000]], "deadline_s": 0.01})

    async def fail_and_retry(queue: JobQueue) -> None:
        job = await queue.submit(large)
        assert (await queue.wait(job.id, 5)).status == "failed"
        with pytest.raises(JobNotRetryable, match="too large"):
            await queue.request_of(job.id)
        with Redis.from_url(redis_url) as server:
            assert server.memory_usage(job_key(job.id)) < 2000

    run(redis_url, fail_and_retry)


def test_only_a_failed_job_is_tried_again(service):
    done = job_of(service.client.post("/generate", json={}, headers=WAIT))
    assert (
        "succeeded"
        in problem_of(service.client.post(f"/jobs/{done.id}/retry"), 409, "job_not_retryable").detail
    )
    problem_of(service.client.post(f"/jobs/{'0' * 32}/retry"), 404, "job_not_found")
    problem_of(service.client.post("/jobs/x/retry"), 404, "job_not_found")
