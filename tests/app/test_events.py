"""Following a job over server-sent events."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
import redis
from PIL import Image

from app.main import create_app
from app.routes.events import JobUpdate
from app.settings import AppSettings
from tests.app.conftest import WAIT, read_job, serving, settings_for, working
from tests.fake_engine import FakeEngine
from tests.waiting import wait_until
from workers.queue.records import events_key


@dataclass(frozen=True)
class Event:
    id: str
    kind: str
    update: JobUpdate


def follow(client, job_id, last_event_id=None) -> list[Event]:
    """Return the events up to the end of the stream."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    found = []
    with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        for block in "".join(response.iter_text()).split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "data" in fields:
                raw = json.loads(fields["data"])
                job = read_job(raw.pop("job")) if "job" in raw else None
                update = JobUpdate.model_validate({**raw, "job": job})
                found.append(Event(fields["id"], fields["event"], update))
    return found


def submit(client, **body) -> str:
    return client.post("/generate", json=body).json()["id"]


def test_a_running_job_is_followed_to_its_end(service):
    service.engine.is_held.set()
    job_id = submit(service.client, seed=4)
    release = threading.Timer(0.6, service.engine.is_held.clear)
    release.start()

    events = follow(service.client, job_id)

    assert [event.update.status for event in events if event.kind == "status"] == [
        "queued",
        "running",
        "succeeded",
    ]
    assert any(event.update.progress and event.update.progress.step == 2 for event in events)
    assert events[-1].update.job == read_job(service.client.get(f"/jobs/{job_id}").json())
    assert all(event.update.job is None for event in events[:-1])


def test_the_last_event_has_the_codes(service):
    job_id = submit(service.client, seed=9, return_codes=True)
    (*_, last) = follow(service.client, job_id)
    assert last.update.job.result.codes.codes == [[[9, 9], [9, 9]]]


def test_previews_are_told_while_the_job_runs_and_not_kept(service):
    service.engine.is_held.set()
    job_id = submit(service.client, preview=True)
    release = threading.Timer(0.6, service.engine.is_held.clear)
    release.start()

    shown = [event.update.preview for event in follow(service.client, job_id) if event.kind == "preview"]

    assert shown
    assert (shown[0].index, shown[0].step, shown[0].media_type) == (0, 2, "image/webp")
    picture = Image.open(io.BytesIO(base64.b64decode(shown[0].image)))
    assert (picture.format, picture.size) == ("WEBP", (85, 128)), "small"
    assert "preview" not in [event.kind for event in follow(service.client, job_id)]


def test_of_previews_only_the_latest_is_kept(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    engine = FakeEngine()
    engine.is_held.set()
    with (
        serving(create_app(settings)) as client,
        working(settings, engine),
        redis.Redis.from_url(redis_url) as server,
    ):
        job_id = submit(client, preview=True)

        def num_kept() -> int:
            return sum(fields[b"event"] == b"preview" for _, fields in server.xrange(events_key(job_id)))

        wait_until(num_kept)
        assert {num_kept() for _ in range(50)} == {1}
        engine.is_held.clear()
        wait_until(lambda: client.get(f"/jobs/{job_id}").json()["status"] == "succeeded")
        assert num_kept() == 0


def test_a_client_that_connects_again_goes_on_where_it_was(service):
    service.engine.is_held.set()
    job_id = submit(service.client)
    with service.client.stream("GET", f"/jobs/{job_id}/events") as response:
        ids = (line.removeprefix("id: ") for line in response.iter_lines() if line.startswith("id: "))
        queued, running = next(ids), next(ids)
    release = threading.Timer(0.3, service.engine.is_held.clear)
    release.start()

    events = follow(service.client, job_id, queued)

    assert events[0].id == running
    assert follow(service.client, job_id, running)[-1] == events[-1]
    heard_all = service.client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": events[-1].id})
    assert (heard_all.status_code, heard_all.content) == (204, b"")


def test_of_a_job_that_has_ended_the_end_is_told(service):
    job_id = service.client.post("/generate", json={}, headers=WAIT).json()["id"]
    [event] = follow(service.client, job_id)
    assert event.update.job == read_job(service.client.get(f"/jobs/{job_id}").json())


@pytest.mark.parametrize(
    "event_id",
    [
        "not-ours",
        "99999999999999999999-0",
        f"{2**64 - 1}-{2**64 - 1}",
        "",
        "-1-0",
        "9" * 5000,
        "(0-0",
        "0-1 +",
    ],
)
def test_an_event_id_that_is_none_of_ours_starts_at_the_beginning(service, event_id):
    job_id = service.client.post("/generate", json={}, headers=WAIT).json()["id"]
    assert follow(service.client, job_id, event_id) == follow(service.client, job_id)


def test_an_unknown_job_can_not_be_followed(service):
    response = service.client.get(f"/jobs/{'0' * 32}/events")
    assert (response.status_code, response.json()["code"]) == (404, "job_not_found")


def test_silence_is_broken_by_comments(service, monkeypatch):
    monkeypatch.setattr("app.event_stream.KEEP_ALIVE_S", 0.05)
    service.engine.is_held.set()
    job_id = submit(service.client)
    threading.Timer(0.5, service.engine.is_held.clear).start()
    with service.client.stream("GET", f"/jobs/{job_id}/events") as response:
        assert "\n\n: \n\n" in "".join(response.iter_text())


def test_the_end_of_the_api_ends_all_waiting_at_once(redis_url, tmp_path):
    answers = []

    def ask(url):
        with httpx.Client(base_url=url, timeout=20) as client:
            answers.append(client.post("/generate", json={}, headers={"Prefer": "wait=60"}))

    def listen(url, job_id):
        with httpx.Client(base_url=url, timeout=20) as client:
            answers.append(follow(client, job_id))

    with serving(create_app(settings_for(tmp_path, redis_url))) as client:
        job_id = submit(client)
        threads = [
            threading.Thread(target=ask, args=[client.base_url]),
            threading.Thread(target=listen, args=[client.base_url, job_id]),
        ]
        for thread in threads:
            thread.start()
        with redis.Redis.from_url(redis_url) as server:
            while server.llen("rq:queue:interactive") < 2:  # the first job, and the one that is waited for
                time.sleep(0.01)
        time.sleep(1)  # by when the other listens to the first
        ends_at = time.monotonic() + 5
    for thread in threads:
        thread.join()

    assert time.monotonic() < ends_at
    waited = next(answer for answer in answers if not isinstance(answer, list))
    assert (waited.status_code, json.loads(waited.content)["status"]) == (202, "queued")
    assert [event.update.status for event in next(each for each in answers if isinstance(each, list))] == [
        "queued"
    ]


@contextmanager
def api_process(settings: AppSettings, listener: socket.socket) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "app.cli.main", "serve", f"--fd={listener.fileno()}"],
        pass_fds=(listener.fileno(),),
        env={
            **os.environ,
            "REDIS_URL": settings.redis_url,
            "SMALTI_WEIGHTS_DIR": str(settings.weights_dir),
            "SMALTI_DATA_DIR": str(settings.data_dir),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: is_listening(listener.getsockname()[1]), 30)
        yield process
    finally:
        process.kill()
        process.wait()


def is_listening(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def test_a_client_finds_its_job_again_after_the_api_was_killed(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    engine = FakeEngine()
    engine.is_held.set()
    with socket.socket() as listener, working(settings, engine):
        listener.bind(("127.0.0.1", 0))
        client = httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=20)
        with api_process(settings, listener) as process:
            job_id = submit(client, seed=9)
            with client.stream("GET", f"/jobs/{job_id}/events") as response:
                lines = response.iter_lines()
                last_id = next(line for line in lines if line.startswith("id: ")).removeprefix("id: ")
                process.kill()
                with pytest.raises(httpx.RemoteProtocolError):
                    list(lines)
        engine.is_held.clear()
        with api_process(settings, listener):
            events = follow(client, job_id, last_id)
            assert events[-1].update.status == "succeeded"
            assert client.get(events[-1].update.job.result.outputs[0].url).status_code == 200
        client.close()


def test_a_follower_that_goes_away_leaves_nothing_behind(service):
    service.engine.is_held.set()
    job_id = submit(service.client)
    with service.client.stream("GET", f"/jobs/{job_id}/events") as response:
        assert next(response.iter_text())
    services = service.app.state.services
    wait_until(lambda: not services.queue._job_events._watchers)
