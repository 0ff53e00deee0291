"""What the client does when the network or the service fails."""

import json
import socket
import threading
import time

import httpx
import pytest
from fastapi import FastAPI

from app.keys import make_key
from app.main import create_app
from smalti import (
    AnswerLost,
    AnswerUnreadable,
    Client,
    ConnectionFailed,
    InvalidRequest,
    Job,
    JobFailed,
    NotAllowed,
    NotFound,
    Result,
    Unavailable,
    WaitTimeout,
)
from tests.app.conftest import serving, settings_for, working
from tests.client.conftest import running
from tests.client.faulty_network import FaultyNetwork
from tests.fake_engine import FakeEngine, pixels_of
from tests.waiting import wait_until


class KnowsNoKeys:
    """An older service: its /openapi.json does not list Idempotency-Key, and it makes a job of each request."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self.state = app.state

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and scope["path"] == "/openapi.json":
            text = json.dumps(self._app.openapi()).replace('"name": "Idempotency-Key"', '"name": "Other"')
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": text.encode()})
            return
        if scope["type"] == "http":
            scope["headers"] = [each for each in scope["headers"] if each[0] != b"idempotency-key"]
        await self._app(scope, receive, send)


def num_jobs(url: str) -> int:
    """Return how many jobs a service has made."""
    return len(httpx.get(f"{url}/jobs?limit=100").json()["jobs"])


def test_a_lost_answer_makes_no_second_job_where_keys_are_not_known(redis_url, tmp_path):
    with serving(KnowsNoKeys(create_app(settings_for(tmp_path, redis_url)))) as http:
        url = str(http.base_url)
        network = FaultyNetwork(url)
        network.num_to_lose = 1
        with Client(network.url, retry_s=5) as client, pytest.raises(AnswerLost, match="Idempotency-Key"):
            client.submit("generate", seed=1)
        network.close()
        assert num_jobs(url) == 1


def test_a_lost_answer_is_asked_for_again_and_makes_one_job(redis_url, tmp_path):
    with running(tmp_path, redis_url, FakeEngine()) as url:
        network = FaultyNetwork(url)
        network.num_to_lose = 2
        with Client(network.url, retry_s=10) as client:
            assert client.generate(seed=1).seed == 1
            assert network.num_to_lose == 0
            assert num_jobs(url) == 1
            network.num_to_lose = 1
            assert client.encode(pixels_of(4)).codes.codes == [[[4, 4], [4, 4]]]
            assert num_jobs(url) == 2
        network.close()


def test_the_same_key_finds_the_job_also_when_it_has_failed(client):
    jobs = [client.submit("generate", seed=666, idempotency_key="order-1")]
    with pytest.raises(JobFailed):
        jobs[0].wait()
    again = client.submit("generate", seed=666, idempotency_key="order-1")
    assert again.id == jobs[0].id
    with pytest.raises(JobFailed, match="NaN"):
        again.wait()
    with pytest.raises(InvalidRequest) as reused:
        client.submit("generate", seed=1, idempotency_key="order-1")
    assert reused.value.code == "idempotency_key_reused"


def test_a_service_with_keys_lets_in_who_has_one(redis_url, tmp_path):
    secret, line = make_key("ada", ["generate"])
    settings = settings_for(tmp_path, redis_url, api_keys=line)
    with serving(create_app(settings)) as http, working(settings, FakeEngine()):
        url = str(http.base_url)
        with Client(url, "wrong") as client, pytest.raises(NotAllowed) as refused:
            client.generate(seed=1)
        assert refused.value.status == 401
        with Client(url, secret) as client:
            wait_until(lambda: client.health().is_ready)
            assert client.generate(seed=1).outputs[0].bytes()


def test_another_try_has_the_same_bytes():
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append((request.read(), request.headers["content-type"], request.headers["idempotency-key"]))
        is_first = len(bodies) == 1
        return (
            httpx.Response(429, headers={"Retry-After": "0"}) if is_first else httpx.Response(202, json=job)
        )

    job = {"id": "1", "operation": "encode", "status": "queued"}
    http = httpx.Client(transport=httpx.MockTransport(answer))
    with http, Client(http=http) as client:
        client.submit("encode", source=[b"one", b"two"], effort=1)
    assert bodies[0] == bodies[1]
    assert bodies[0][0].count(b'; name="source"') == 2


def test_a_download_that_breaks_is_made_again(network):
    network.losing, network.num_to_lose = b"GET /jobs/", 2
    with Client(network.url, retry_s=5) as client:
        assert client.generate(seed=1).outputs[0].bytes()
    assert network.num_to_lose == 0


def test_a_wait_outlives_a_network_that_goes_away(service, network):
    service.engine.is_held.set()
    with Client(network.url, timeout_s=30, retry_s=10) as client:
        job = client.submit("generate", seed=6)
        events = job.events()
        next(events)
        network.go_away()
        threading.Timer(0.5, network.come_back).start()
        threading.Timer(0.6, service.engine.is_held.clear).start()
        told = [*events]
    assert told[-1].job.result.seed == 6
    statuses = [event.status for event in told if event.kind == "status"]
    assert len(statuses) == len(set(statuses)), "an event was told twice"


def test_a_wait_outlives_the_api(redis_url, tmp_path):
    """The API ends and another starts at its address; queue and worker go on."""
    engine = FakeEngine()
    engine.is_held.set()
    with running(tmp_path, redis_url, engine) as first:
        settings = settings_for(tmp_path, redis_url)
        network = FaultyNetwork(first)
        with Client(network.url, timeout_s=30) as client:
            job = client.submit("generate", seed=6)
            with serving(create_app(settings)) as second:
                network.hand_on_to(str(second.base_url))
                threading.Timer(0.3, engine.is_held.clear).start()
                threading.Timer(0.2, network.break_connections).start()
                assert job.wait().seed == 6
        network.close()


def test_where_events_do_not_come_through_the_job_is_looked_up(service, network):
    network.hides_events = True
    service.engine.is_held.set()
    threading.Timer(0.4, service.engine.is_held.clear).start()
    with Client(network.url) as client:
        started_at = time.monotonic()
        assert client.submit("generate", seed=2).wait().seed == 2
        assert time.monotonic() - started_at < 4
        service.engine.is_held.set()
        with pytest.raises(WaitTimeout):
            client.submit("generate", seed=2).wait(0.5)


def test_a_full_queue_is_waited_for(redis_url, tmp_path):
    engine = FakeEngine(num_slots=1)
    engine.is_held.set()
    with running(tmp_path, redis_url, engine, max_queue_length=1) as url, Client(url) as client:
        with Client(url, retry_s=0) as hasty:
            jobs = fill(hasty)
            with pytest.raises(Unavailable) as refused:
                hasty.submit("generate")
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        assert refused.value.retry_after_s >= 1
        threading.Timer(0.3, engine.is_held.clear).start()
        assert client.generate(seed=8).seed == 8
        assert all(client.job(job.id).wait().outputs for job in jobs)


def fill(client: Client) -> list[Job]:
    """Make jobs until the queue is full, and stays so."""
    jobs, num_refused = [], 0
    while num_refused < 3:
        try:
            jobs.append(client.submit("generate"))
        except Unavailable:
            num_refused += 1
            time.sleep(0.1)  # the worker may take one more
    return jobs


def test_a_service_that_is_not_ready_says_so(redis_url, tmp_path):
    with serving(create_app(settings_for(tmp_path, redis_url))) as http, Client(str(http.base_url)) as client:
        health = client.health()
    assert not health.is_ready
    assert "no worker is ready" in health.detail


def test_nothing_at_the_address_is_told_with_the_address():
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with Client(url, retry_s=0) as client:
        with pytest.raises(ConnectionFailed, match=f"{url}.*Does it run there"):
            client.generate()
        with pytest.raises(ConnectionFailed):
            client.health()


def test_a_service_that_starts_late_is_waited_for(service, network):
    network.go_away()
    threading.Timer(0.4, network.come_back).start()
    with Client(network.url, retry_s=10) as client:
        assert client.generate(seed=3).seed == 3


def test_another_program_at_the_address_is_told(service):
    with Client(f"{service.url}/elsewhere") as client, pytest.raises(NotFound, match="no such address"):
        client.pipelines()
    page = httpx.MockTransport(lambda request: httpx.Response(200, html="<p>Welcome</p>"))
    told = pytest.raises(AnswerUnreadable, match=r"text/html.*Is the base_url right")
    with httpx.Client(transport=page) as http, Client(http=http) as client, told:
        client.pipelines()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "", "http://", "http://x?a=b"])
def test_an_address_that_can_be_none_is_refused(url):
    with pytest.raises(ValueError, match="base_url"):
        Client(url)


@pytest.mark.parametrize("key", ["smalti-secret\n", "smalti-sécret", "two secrets", ""])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(key):
    with pytest.raises(ValueError, match="api_key: is printable ASCII") as raised:
        Client(api_key=key)
    assert "cret" not in str(raised.value)


def test_the_key_goes_to_the_service_and_nowhere_else():
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.headers.get("authorization")))
        return httpx.Response(200, content=b"bytes")

    outputs = [
        {"sample": 0, "medium": "image", "url": url} for url in ("/jobs/1/outputs/0", "http://store/0")
    ]
    result = Result.model_validate({"operation": "generate", "pipeline": "p", "outputs": outputs})
    http = httpx.Client(transport=httpx.MockTransport(answer))
    with http, Client("http://service:8000", "secret", http=http) as client:
        assert client.fetch(result).outputs[1].bytes() == b"bytes"
        assert "secret" not in repr(client.__dict__)
    assert seen == [("service", "Bearer secret"), ("store", None)]
