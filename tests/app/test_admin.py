"""Administrators hold the queue and let it go on, and see what the workers do."""

import time

import pytest

from app.keys import make_key
from app.main import create_app
from app.queue import JobQueue
from tests.app.conftest import WAIT, job_of, problem_of, serving, settings_for
from tests.app.queue_jobs import REQUEST, RESULT, run
from tests.waiting import wait_until
from workers.compute import Slots
from workers.errors import QueueFull
from workers.messages import Progress
from workers.queue import embedded_server
from workers.queue.consumer import Consumer, Outcome


def test_while_it_is_paused_jobs_wait_and_running_ones_end(service):
    service.engine.is_held.set()
    before = job_of(service.client.post("/generate", json={"seed": 1}))
    wait_until(lambda: service.engine.works)

    for _ in range(2):
        answer = service.client.post("/queue/pause")
        assert (answer.status_code, answer.json()["is_paused"]) == (200, True)
    waiting = job_of(service.client.post("/generate", json={"seed": 2}))
    service.engine.is_held.clear()
    assert job_of(service.client.get(f"/jobs/{before.id}", headers=WAIT)).status == "succeeded"
    time.sleep(1.2)  # a worker looks for jobs each second
    seen = job_of(service.client.get(f"/jobs/{waiting.id}"))
    assert (seen.status, seen.queue_position, seen.seconds_left) == ("queued", 0, None)
    ready = service.client.get("/health/ready")
    assert (ready.status_code, ready.json()["is_paused"], ready.json()["queue_length"]) == (200, True, 1)
    assert "smalti_queue_paused 1.0" in service.client.get("/metrics").text

    began = time.monotonic()
    for _ in range(2):
        assert service.client.post("/queue/resume").json()["is_paused"] is False
    assert job_of(service.client.get(f"/jobs/{waiting.id}", headers=WAIT)).status == "succeeded"
    assert time.monotonic() - began < 5
    assert "smalti_queue_paused 0.0" in service.client.get("/metrics").text


def test_a_paused_queue_is_no_longer_than_another_and_deadlines_hold(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        await queue.control.pause()
        late = await queue.submit(REQUEST.model_copy(update={"deadline_s": 0.01}))
        for _ in range(2):
            await queue.submit(REQUEST)
        with pytest.raises(QueueFull):
            await queue.submit(REQUEST)
        assert consumer.claim(Slots(4, 4), is_idle=True).jobs == ()
        time.sleep(0.02)
        assert (await queue.get(late.id)).error.code == "deadline_exceeded"
        await queue.control.resume()
        assert len(consumer.claim(Slots(4, 4), is_idle=True).jobs) == 2

    run(redis_url, use, max_length=3)


def test_a_pause_survives_a_restart_of_everything(tmp_path):
    async def pause(queue: JobQueue) -> None:
        await queue.control.pause()
        await queue.submit(REQUEST)

    async def look(queue: JobQueue) -> None:
        assert (await queue.checks.check()).is_paused

    server = embedded_server.start(tmp_path)
    run(server.url, pause)
    server.stop()
    server = embedded_server.start(tmp_path)
    try:
        run(server.url, look)
        worker = Consumer(server.url, ["tiny"], lease_s=1, max_tries=3, ageing_s=1)
        assert worker.claim(Slots(4, 4), is_idle=True).jobs == ()
        worker.close()
    finally:
        server.stop()


def test_workers_are_shown_with_their_jobs(redis_url, consumer, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    consumer.phase, consumer.device = "ready", "cuda:1"

    async def claim_one(queue: JobQueue) -> str:
        return (await queue.submit(REQUEST.model_copy(update={"num_samples": 2}))).id

    job_id = run(redis_url, claim_one)
    [claim] = consumer.claim(Slots(4, 4), is_idle=True).jobs
    consumer.heartbeat([claim])
    with serving(create_app(settings)) as client:
        [worker] = client.get("/workers").json()
        assert (worker["name"], worker["device"], worker["phase"]) == (consumer.name, "cuda:1", "ready")
        assert (worker["pipelines"], worker["num_running_samples"]) == (["tiny"], 2)
        assert worker["memory_bytes"] > 0
        about = {"job_id": job_id, "operation": "generate", "pipeline": "tiny", "num_samples": 2}
        assert worker["running"] == [{**about, "progress": None}]
        consumer.publish_progress([(claim, Progress(step=3, total=8))])
        [worker] = client.get("/workers").json()
        assert worker["running"] == [{**about, "progress": {"step": 3, "total": 8}}]
        consumer.finish([Outcome(claim, RESULT)])
        assert client.get("/workers").json()[0]["running"] == []


def test_only_administrators_hold_the_queue_and_see_the_workers(redis_url, tmp_path):
    secrets, lines = zip(*(make_key(name, [name]) for name in ("generate", "admin")), strict=True)
    settings = settings_for(tmp_path, redis_url, api_keys=";".join(lines))
    paths = (("POST", "/queue/pause"), ("POST", "/queue/resume"), ("GET", "/workers"), ("GET", "/workers/"))
    with serving(create_app(settings)) as client:
        for method, path in paths:
            problem_of(client.request(method, path), 401, "unauthorized")
            bearer = {"Authorization": f"Bearer {secrets[0]}"}
            problem_of(client.request(method, path, headers=bearer), 403, "forbidden")
        for method, path in paths[:3]:
            bearer = {"Authorization": f"Bearer {secrets[1]}"}
            assert client.request(method, path, headers=bearer).status_code == 200
