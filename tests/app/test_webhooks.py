"""The end of a job is told to the address that its client named, whatever happens."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from app.keys import make_key
from app.main import create_app
from app.queue import JobQueue
from app.settings import AppSettings
from tests.app.conftest import WAIT, Service, job_of, problem_of, serving, settings_for, working
from tests.app.queue_jobs import REQUEST, RESULT, run
from tests.app.webhook_receiver import SECRET, Receiver, receiving
from tests.fake_engine import FAILURES, FakeEngine
from tests.waiting import wait_until
from workers.compute import Slots
from workers.messages import JobView, WebhookState
from workers.queue import embedded_server
from workers.queue.consumer import Outcome
from workers.queue.records import job_key, webhook_told_key

ROOT = Path(__file__).parents[2]
WITHOUT_CODES = RESULT.model_copy(update={"codes": None})
DELAYS = {"webhook_secret": SECRET, "webhook_hosts": "127.0.0.1", "webhook_retries_s": "0.05,0.05"}


@pytest.fixture(scope="module")
def module_service(tmp_path_factory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    server = embedded_server.start(folder / "redis")
    engine = FakeEngine()
    try:
        app = create_app(settings_for(folder, server.url, **DELAYS))
        with serving(app) as client, working(app.state.settings, engine):
            wait_until(lambda: client.get("/health/ready").status_code == 200)
            yield Service(client, engine, app)
    finally:
        server.stop()


def generate(client: httpx.Client, receiver: Receiver, **fields) -> JobView:
    return job_of(client.post("/generate", json={"webhook_url": receiver.url, **fields}, headers=WAIT))


def settled(client: httpx.Client, job_id: str) -> WebhookState:
    """Return what came of a job's webhook, once nothing more is tried."""
    wait_until(lambda: job_of(client.get(f"/jobs/{job_id}")).webhook.status != "pending")
    return job_of(client.get(f"/jobs/{job_id}")).webhook


def test_the_end_of_a_job_is_told_and_signed(service):
    with receiving() as receiver:
        job = generate(service.client, receiver, seed=4, return_codes=True)
        assert settled(service.client, job.id) == WebhookState(status="delivered", attempts=1)
    told = receiver.told()
    assert (told["type"], told["data"]["id"]) == ("job.succeeded", job.id)
    assert told["data"]["result"]["outputs"][0]["url"] == f"/jobs/{job.id}/outputs/0"
    assert told["data"]["result"]["codes"]["codes"] is None, "they may be large"
    assert told["data"]["metrics"]["num_steps"] == 5
    headers = {name.lower(): value for name, value in receiver.headers[0].items()}
    assert (headers["webhook-id"], headers["content-type"]) == (job.id, "application/json")
    assert len(receiver.bodies) == 1


def test_every_way_to_end_is_told(service):
    with receiving() as receiver:
        address = {"webhook_url": receiver.url}
        failed = service.client.post(
            "/generate", json={"seed": next(iter(FAILURES)), **address}, headers=WAIT
        )
        service.engine.is_held.set()
        cancelled = job_of(service.client.post("/generate", json=address))
        assert cancelled.webhook == WebhookState(status="pending", attempts=0)
        service.client.delete(f"/jobs/{cancelled.id}")
        late = job_of(service.client.post("/generate", json={"deadline_s": 0.1, **address}))
        service.client.get(f"/jobs/{late.id}", headers=WAIT)
        service.engine.is_held.clear()
        retried = service.client.post(f"{failed.json()['instance']}/retry", json=address)
        wait_until(lambda: len(receiver.bodies) == 4)
    told = {each["data"]["id"]: each for each in map(receiver.told, range(4))}
    assert told[failed.json()["job_id"]]["data"]["error"]["code"] == "not_finite"
    assert told[cancelled.id]["type"] == "job.cancelled"
    assert told[late.id]["data"]["error"]["code"] == "deadline_exceeded"
    assert told[retried.json()["id"]]["type"] == "job.failed"


def test_encode_and_decode_tell_their_end_too(service):
    from models.media.image import encode_image
    from tests.fake_engine import pixels_of

    with receiving() as receiver:
        picture = {"source": encode_image(pixels_of(9), "png")}
        form = {"webhook_url": receiver.url}
        encoded = service.client.post("/encode", files=picture, data=form, headers=WAIT).json()
        body = {"codes": encoded["result"]["codes"], "webhook_url": receiver.url}
        decoded = service.client.post("/decode", json=body, headers=WAIT).json()
        wait_until(lambda: len(receiver.bodies) == 2)
    assert {receiver.told(i)["data"]["id"] for i in (0, 1)} == {encoded["id"], decoded["id"]}


def test_a_receiver_that_fails_twice_gets_the_same_message_again(service):
    with receiving(500, 503, 200) as receiver:
        job = generate(service.client, receiver)
        assert settled(service.client, job.id) == WebhookState(status="delivered", attempts=3)
    assert len(set(receiver.bodies)) == 1
    assert [receiver.told(i)["data"]["id"] for i in range(3)] == [job.id] * 3


def test_one_that_fails_always_is_given_up_and_the_job_says_so(service):
    with receiving(500) as receiver:
        job = generate(service.client, receiver)
        assert settled(service.client, job.id) == WebhookState(status="failed", attempts=3)
    assert job_of(service.client.get(f"/jobs/{job.id}")).status == "succeeded"
    assert 'smalti_webhook_attempts_total{status="failed"}' in service.client.get("/metrics").text
    with redis.Redis.from_url(service.app.state.settings.redis_url) as client:
        assert not [key for key in client.scan_iter() if b"webhook" in key], "nothing is left"


def test_gone_ends_it_at_once(service):
    with receiving(410) as receiver:
        job = generate(service.client, receiver)
        assert settled(service.client, job.id) == WebhookState(status="failed", attempts=1)


def test_redirects_are_not_followed(service):
    with receiving(302, 307, 308) as receiver:
        job = generate(service.client, receiver)
        assert settled(service.client, job.id) == WebhookState(status="failed", attempts=3)
    assert len(receiver.bodies) == 3


def test_dead_and_slow_receivers_hold_up_no_other(service):
    with socket.socket() as unused, receiving() as slow, receiving() as quick:
        unused.bind(("127.0.0.1", 0))  # and listens not
        slow.is_held.set()
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        for url in [dead, slow.url] * 12:
            service.client.post("/generate", json={"webhook_url": url})
        wait_until(lambda: len(slow.bodies) == 4)
        job = generate(service.client, quick)
        began = time.monotonic()
        assert settled(service.client, job.id).status == "delivered"
        assert time.monotonic() - began < 5
        assert len(slow.bodies) == 4, "at once to one host"
        slow.is_held.clear()


def test_where_it_goes_is_checked_before_the_job_is_made(service):
    for url, said in (
        ("http://example.com/", "must be https"),
        ("https://10.0.0.1/", "not a public address"),
        ("https://[::ffff:127.0.0.1]/", None),  # which 127.0.0.1 does not allow
        ("https://user:word@example.com/", "has no user"),
        ("ftp://example.com/", "is an address such as"),
        ("HTTPS://example.com/", "is an address such as"),
        ("https:example.com", "is an address such as"),
        ("https://example.com\\@127.0.0.1/", "has no user"),
        ("https://exämple.com/", "printable ASCII"),
        ("https://example.com:99999/", "is not an address"),
        ("https://example.com/" + "x" * 2048, "at most 2048"),
    ):
        problem = problem_of(
            service.client.post("/generate", json={"webhook_url": url}), 422, "invalid_request"
        )
        assert problem.errors[0].field == "webhook_url"
        assert said is None or said in problem.detail
    failed = service.client.post("/generate", json={"seed": next(iter(FAILURES))}, headers=WAIT).json()
    answer = service.client.post(f"{failed['instance']}/retry", json={"webhook_url": "http://example.com/"})
    problem_of(answer, 422, "invalid_request")


def test_without_a_secret_there_are_none(redis_url, tmp_path):
    with serving(create_app(settings_for(tmp_path, redis_url))) as client:
        answer = client.post("/generate", json={"webhook_url": "https://example.com/"})
        assert "SMALTI_WEBHOOK_SECRET" in problem_of(answer, 422, "invalid_request").detail


def test_outputs_are_signed_by_the_key_whose_job_it_is(redis_url, tmp_path):
    secret, line = make_key("ada", ["generate"])
    settings = settings_for(tmp_path, redis_url, api_keys=line, **DELAYS)
    with (
        receiving() as receiver,
        serving(create_app(settings)) as client,
        working(settings, FakeEngine()),
    ):
        body = {"webhook_url": receiver.url}
        client.post("/generate", json=body, headers={"Authorization": f"Bearer {secret}"})
        wait_until(lambda: receiver.bodies)
        url = receiver.told()["data"]["result"]["outputs"][0]["url"]
        assert client.get(url).status_code == 200
        assert client.get(url.partition("?")[0]).status_code == 401


def test_several_processes_send_each_once(redis_url, tmp_path, consumer):
    settings = settings_for(tmp_path, redis_url, **DELAYS)
    with receiving() as receiver:

        async def end_some(queue: JobQueue) -> list[str]:
            ids = [(await queue.submit(REQUEST, webhook_url=receiver.url)).id for _ in range(8)]
            consumer.finish(
                [Outcome(claim, WITHOUT_CODES) for claim in consumer.claim(Slots(64, 64), is_idle=True).jobs]
            )
            return ids

        ids = run(redis_url, end_some, max_length=64)
        with serving(create_app(settings)) as client, serving(create_app(settings)):
            assert {settled(client, job_id).status for job_id in ids} == {"delivered"}
        assert sorted(receiver.told(i)["data"]["id"] for i in range(len(receiver.bodies))) == sorted(ids)


def test_one_whose_job_has_expired_is_told_all_the_same(redis_url, tmp_path, consumer):
    with receiving() as receiver:

        async def end_one(queue: JobQueue) -> None:
            job = await queue.submit(REQUEST, webhook_url=receiver.url)
            await queue.cancel(job.id)
            with redis.Redis.from_url(redis_url) as client:
                client.delete(job_key(job.id))

        run(redis_url, end_one)
        with serving(create_app(settings_for(tmp_path, redis_url, **DELAYS))):
            wait_until(lambda: receiver.bodies)
    assert receiver.told()["type"] == "job.cancelled"


def test_other_things_than_jobs_tell_their_end(redis_url, tmp_path):
    with receiving(500, 200) as receiver, redis.Redis.from_url(redis_url) as client:

        async def enqueue(queue: JobQueue) -> None:
            await queue.webhooks.enqueue("b1", receiver.url, '{"type": "tea.ready"}', told_for_s=60)

        async def state(queue: JobQueue) -> None:
            delivered = WebhookState(status="delivered", attempts=2)
            assert await queue.webhooks.states(["b1", "b2"]) == {"b1": delivered}

        run(redis_url, enqueue)
        with serving(create_app(settings_for(tmp_path, redis_url, **DELAYS))):
            wait_until(lambda: client.hget(webhook_told_key("b1"), "webhook") == b"delivered 2")
        run(redis_url, state)
    assert receiver.told(1) == {"type": "tea.ready"}


def test_one_that_can_not_be_made_is_given_up_too(redis_url, tmp_path, consumer):
    async def enqueue(queue: JobQueue) -> None:
        await queue.webhooks.enqueue("b1", "http://127.0.0.1:1/", "", told_for_s=60)  # nor is there a job

    run(redis_url, enqueue)
    with (
        serving(create_app(settings_for(tmp_path, redis_url, **DELAYS))),
        redis.Redis.from_url(redis_url) as client,
    ):
        wait_until(lambda: client.hget(webhook_told_key("b1"), "webhook") == b"failed 3")


def test_only_jobs_with_a_webhook_need_a_new_worker(redis_url):
    async def versions(queue: JobQueue) -> list[str | None]:
        jobs = [await queue.submit(REQUEST, webhook_url=url) for url in (None, "https://example.com/")]
        return [await queue._redis.hget(job_key(job.id), "version") for job in jobs]

    assert run(redis_url, versions) == ["1", "2"]


def test_the_secret_is_in_no_message(monkeypatch):
    from app.settings import read_settings
    from workers.settings import SettingsError

    for wrong in ("whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_?"):
        monkeypatch.setenv("SMALTI_WEBHOOK_SECRET", wrong)
        with pytest.raises(SettingsError, match="24 to 64 random bytes") as refused:
            read_settings(AppSettings)
        assert wrong not in str(refused.value)
    monkeypatch.setenv("SMALTI_WEBHOOK_SECRET", SECRET)
    assert SECRET not in repr(read_settings(AppSettings))


def test_the_receiver_that_is_shown_works(service, tmp_path):
    [shown] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/webhooks.md").read_text(), re.S)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "SMALTI_WEBHOOK_SECRET": SECRET, "PORT": port}
    receiver = subprocess.Popen(
        [sys.executable, "-c", shown],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_until(lambda: listens(int(port)))
        url = f"http://127.0.0.1:{port}/"
        job = service.client.post("/generate", json={"webhook_url": url}, headers=WAIT).json()
        assert receiver.stdout.readline() == f"job.succeeded {job['id']}\n"
    finally:
        receiver.kill()
        receiver.wait()
        receiver.stdout.close()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def api(settings: AppSettings) -> Iterator[subprocess.Popen]:
    environment = {
        **os.environ,
        "REDIS_URL": settings.redis_url,
        "SMALTI_WEIGHTS_DIR": str(settings.weights_dir),
        "SMALTI_DATA_DIR": str(settings.data_dir),
        **{f"SMALTI_{name.upper()}": value for name, value in DELAYS.items()},
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli.main", "serve", "--port", "0"], env=environment, cwd=ROOT
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.ci
def test_one_that_was_being_sent_when_its_process_was_killed_is_sent_again(redis_url, tmp_path, consumer):
    settings = settings_for(tmp_path, redis_url)
    with receiving() as receiver, redis.Redis.from_url(redis_url) as client:

        async def end_one(queue: JobQueue) -> str:
            job = await queue.submit(REQUEST, webhook_url=receiver.url)
            consumer.finish(
                [Outcome(claim, WITHOUT_CODES) for claim in consumer.claim(Slots(4, 4), is_idle=True).jobs]
            )
            return job.id

        job_id = run(redis_url, end_one)
        receiver.is_held.set()
        with api(settings) as process:
            wait_until(lambda: receiver.bodies, 60)
            process.send_signal(signal.SIGKILL)
            process.wait()
        receiver.is_held.clear()
        assert client.hget(job_key(job_id), "webhook") == b"pending 0"
        webhooks = f"smalti:webhooks:{receiver.address}"
        assert client.zscore(webhooks, job_id) > time.time() + 30, "held for its lease"
        client.zadd(webhooks, {job_id: 0})  # which has run out
        client.zadd("smalti:webhook_hosts", {receiver.address: 0})
        with api(settings):
            wait_until(lambda: client.hget(job_key(job_id), "webhook") == b"delivered 1", 60)
    assert [receiver.told(i)["data"]["id"] for i in range(2)] == [job_id] * 2
