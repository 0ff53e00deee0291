"""The life of a job over HTTP; the engine draws flat squares."""

import threading
import time

import httpx
import pytest

from tests.app.conftest import WAIT, job_of, problem_of
from tests.fake_engine import FAILS_SAMPLE_1, FAILURES
from tests.waiting import wait_until


def test_a_request_is_accepted_and_its_job_can_be_followed(service):
    service.engine.is_held.set()
    response = service.client.post("/generate", json={"class_label": "sneaker", "seed": 7})
    job = job_of(response)

    assert response.status_code == 202
    assert response.headers["location"] == f"/jobs/{job.id}"
    assert (job.operation, job.status) == ("generate", "queued")

    wait_until(lambda: job_of(service.client.get(f"/jobs/{job.id}")).status == "running")
    service.engine.is_held.clear()
    done = job_of(service.client.get(f"/jobs/{job.id}", headers=WAIT))

    assert done.status == "succeeded"
    assert (done.result.operation, done.result.pipeline, done.result.seed) == ("generate", "tiny", 7)
    assert done.created_at <= done.started_at <= done.ended_at


def test_waiting_gives_the_finished_job(service):
    response = service.client.post("/generate", json={"seed": 3, "num_outputs": 2}, headers=WAIT)
    job = job_of(response)

    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=10"
    assert response.headers["content-location"] == f"/jobs/{job.id}"
    assert [each.url for each in job.result.outputs] == [f"/jobs/{job.id}/outputs/{i}" for i in (0, 1)]


def test_waiting_ends_when_its_time_is_up(service):
    service.engine.is_held.set()
    response = service.client.post("/generate", json={}, headers={"Prefer": "wait=0.1"})

    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=0.1"
    assert response.headers["location"] == f"/jobs/{job_of(response).id}"


def test_waiting_is_bounded_by_the_server(service):
    response = service.client.post("/generate", json={}, headers={"Prefer": "wait=9999"})
    assert response.headers["preference-applied"] == "wait=15"


def test_a_drawn_seed_is_told_and_gives_the_same_bytes_again(service):
    first = job_of(service.client.post("/generate", json={}, headers=WAIT)).result
    again = job_of(service.client.post("/generate", json={"seed": first.seed}, headers=WAIT)).result

    assert again.outputs[0].sha256 == first.outputs[0].sha256


def test_a_cancelled_job_stays_cancelled(service):
    service.engine.is_held.set()
    job = job_of(service.client.post("/generate", json={}))

    cancelled = service.client.delete(f"/jobs/{job.id}")
    service.engine.is_held.clear()

    assert cancelled.status_code == 200
    assert job_of(cancelled).status == "cancelled"
    time.sleep(0.1)
    assert job_of(service.client.get(f"/jobs/{job.id}")).status == "cancelled"
    assert job_of(service.client.delete(f"/jobs/{job.id}")).status == "cancelled"


def test_a_finished_job_can_not_be_cancelled(service):
    job = job_of(service.client.post("/generate", json={}, headers=WAIT))
    assert job_of(service.client.delete(f"/jobs/{job.id}")) == job


def test_cancelling_answers_the_client_that_waits(service):
    service.engine.is_held.set()
    job_ids = []

    def cancel_the_first_job():
        wait_until(lambda: service.engine.works)
        job_ids.extend(service.engine.works)
        service.client.delete(f"/jobs/{job_ids[0]}")

    thread = threading.Thread(target=cancel_the_first_job)
    thread.start()
    response = service.client.post("/generate", json={}, headers=WAIT)
    thread.join()

    problem = problem_of(response, 409, "job_cancelled")
    assert (problem.job_id, problem.instance) == (job_ids[0], f"/jobs/{job_ids[0]}")


def post_and_hang_up(service, headers):
    """Post, leave once the job runs, and return its id."""
    service.engine.is_held.set()

    def post():
        with (
            httpx.Client(base_url=service.client.base_url, timeout=0.5) as client,
            pytest.raises(httpx.ReadTimeout),
        ):
            client.post("/generate", json={}, headers=headers)

    thread = threading.Thread(target=post)
    thread.start()
    wait_until(lambda: service.engine.works)
    (job_id,) = service.engine.works
    thread.join()
    return job_id


def test_a_client_that_goes_away_cancels_its_job_if_it_asked_for_that(service):
    job_id = post_and_hang_up(service, {"Prefer": "wait=10, cancel-on-disconnect"})
    wait_until(lambda: job_of(service.client.get(f"/jobs/{job_id}")).status == "cancelled")
    wait_until(lambda: not service.engine.works)


def test_a_client_that_goes_away_leaves_its_job(service):
    job_id = post_and_hang_up(service, WAIT)
    service.engine.is_held.clear()
    assert job_of(service.client.get(f"/jobs/{job_id}", headers=WAIT)).status == "succeeded"


def test_an_onlooker_that_goes_away_leaves_the_job(service):
    service.engine.is_held.set()
    job = job_of(service.client.post("/generate", json={}))
    with (
        httpx.Client(base_url=service.client.base_url, timeout=0.3) as onlooker,
        pytest.raises(httpx.ReadTimeout),
    ):
        onlooker.get(f"/jobs/{job.id}", headers={"Prefer": "wait=10, cancel-on-disconnect"})
    watchers = service.app.state.services.queue._job_events._watchers
    wait_until(lambda: not watchers)  # the server knows that the client has gone
    service.engine.is_held.clear()
    assert job_of(service.client.get(f"/jobs/{job.id}", headers=WAIT)).status == "succeeded"


def test_a_deadline_is_answered_as_such(service):
    service.engine.is_held.set()
    response = service.client.post("/generate", json={"deadline_s": 0.1}, headers=WAIT)
    problem_of(response, 504, "deadline_exceeded")


@pytest.mark.parametrize(("seed", "status"), [*zip(FAILURES, [500, 422, 507, 500], strict=True)])
def test_a_failed_job_is_answered_by_its_error_when_waited_for(service, seed, status):
    code = FAILURES[seed].code
    problem = problem_of(service.client.post("/generate", json={"seed": seed}, headers=WAIT), status, code)
    job = job_of(service.client.get(problem.instance))

    assert (job.id, job.status, job.error.code) == (problem.job_id, "failed", code)
    assert job.error.message == problem.detail


def test_a_sample_that_fails_leaves_the_others(service):
    body = {"seed": FAILS_SAMPLE_1, "num_outputs": 3}
    result = job_of(service.client.post("/generate", json=body, headers=WAIT)).result

    assert [each.error and each.error.code for each in result.outputs] == [None, "not_finite", None]
    assert [service.client.get(each.url).status_code for each in (result.outputs[0], result.outputs[2])] == [
        200,
        200,
    ]
