"""Batches while processes die, the queue forgets and disks fill: nothing is lost, and no row done twice."""

import asyncio
import logging
import os
import re
import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import redis

from app.batches.rows import seed_of
from app.batches.store import BatchStore
from app.main import create_app, sweep
from tests.app.conftest import SPEC, serving, settings_for, working
from tests.app.test_batches import LINES, ended, lines, results, row, send
from tests.app.test_up import processes_of, service
from tests.fake_engine import FakeEngine
from tests.waiting import wait_until
from workers.queue import embedded_server

logger = logging.getLogger(__name__)

NUM_ROWS = 100_000
needs_proc = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="reads /proc")


def counts(client: httpx.Client, batch_id: str) -> dict:
    return client.get(f"/batches/{batch_id}").json()["counts"]


def test_another_api_process_goes_on_where_one_has_ended(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    engine = FakeEngine()
    engine.is_held.set()
    rows = [row(f"r{n}", seed=n) for n in range(100)]
    with working(settings, engine), ExitStack() as processes:
        processes.enter_context(serving(create_app(settings)))  # this one feeds
        lock = BatchStore(settings.batches_dir, 1)
        wait_until(lambda: not is_free(lock))
        with serving(create_app(settings)) as other:
            batch_id = send(other, rows)["id"]
            wait_until(lambda: counts(other, batch_id)["running"] >= 8)
            processes.close()
            engine.is_held.clear()
            assert ended(other, batch_id)["counts"]["succeeded"] == 100
            told = results(other, batch_id, order="input")
            assert [each["id"] for each in told] == [each["id"] for each in rows]
            metrics = other.get("/metrics").text
            submitted = re.findall(r"^smalti_jobs_submitted_total\{.*\} (.*)$", metrics, re.M)
            assert sum(map(float, submitted)) == 100


def test_what_was_cancelled_while_no_process_fed_runs_no_more(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    engine = FakeEngine(num_slots=4)
    engine.is_held.set()
    with working(settings, engine):
        with serving(create_app(settings)) as client:
            batch_id = send(client, [row(f"r{n}", seed=n) for n in range(40)])["id"]
            wait_until(lambda: counts(client, batch_id)["running"] >= 8 and len(engine.works) == 4)
        BatchStore(settings.batches_dir, 60).cancel(batch_id)
        with serving(create_app(settings)) as other:
            assert ended(other, batch_id)["counts"]["cancelled"] == 40
            wait_until(lambda: not engine.works)
            assert 'smalti_queue_length{queue="batch"} 0.0' in other.get("/metrics").text


def is_free(store: BatchStore) -> bool:
    lock = store.try_lock()
    if lock is not None:
        os.close(lock)
    return lock is not None


def test_jobs_that_the_queue_has_lost_are_computed_again_to_the_same_bytes(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    engine = FakeEngine()
    app = create_app(settings)
    with working(settings, engine), serving(app) as client:
        engine.is_held.set()
        batch_id = send(client, [row(f"r{n}") for n in range(20)])["id"]
        wait_until(lambda: counts(client, batch_id)["running"] >= 8)
        with redis.Redis.from_url(redis_url) as server:
            server.flushall()
        engine.is_held.clear()
        assert ended(client, batch_id)["counts"]["succeeded"] == 20
        for each in results(client, batch_id):
            job_id = app.state.services.batches.get(batch_id).job_id(each["line"])
            assert each["result"]["seed"] == seed_of(job_id)


def test_a_full_queue_makes_a_batch_wait(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url, max_queue_length=2)
    with serving(create_app(settings)) as client:
        batch_id = send(client, [row(f"r{n}", seed=n) for n in range(20)])["id"]
        full = r'smalti_queue_length\{queue="batch"\} [23].0'  # one may be beyond
        wait_until(lambda: re.search(full, client.get("/metrics").text))
        assert client.post("/generate", json={}).status_code == 429
        with working(settings, FakeEngine()):
            assert ended(client, batch_id)["counts"]["succeeded"] == 20


def test_a_queue_that_others_keep_full_lets_some_rows_in(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url, max_queue_length=64)
    with serving(create_app(settings)) as client:
        while client.post("/generate", json={}).status_code == 202:
            pass
        batch_id = send(client, [row(f"r{n}", seed=n) for n in range(20)])["id"]
        assured = 'smalti_queue_length{queue="batch"} 2.0'
        wait_until(lambda: assured in client.get("/metrics").text)
        time.sleep(0.5)
        assert assured in client.get("/metrics").text
        assert client.post("/generate", json={}).status_code == 429
        with working(settings, FakeEngine()):
            assert ended(client, batch_id)["counts"]["succeeded"] == 20


def test_rows_of_a_pipeline_without_a_worker_hold_up_no_others(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    (settings.weights_dir / "other").mkdir()
    replace(SPEC, name="other").save(settings.weights_dir / "other" / "pipeline.json")
    only_tiny = settings.model_copy(update={"pipelines": ("tiny",)})
    rows = [row(f"r{n}", seed=n, pipeline="other" if n < 12 else "tiny") for n in range(20)]
    with serving(create_app(settings)) as client, working(only_tiny, FakeEngine()):
        wait_until(lambda: client.get("/workers").json())
        batch_id = send(client, rows)["id"]
        wait_until(lambda: counts(client, batch_id)["succeeded"] == 8)
        told = client.get(f"/batches/{batch_id}").json()["waiting"]
        assert told == "12 rows: no worker has 'other'"
        with working(settings, FakeEngine()):
            done = ended(client, batch_id)
            assert (done["counts"]["succeeded"], done["waiting"]) == (20, None)


def test_a_worker_that_can_not_store_makes_a_batch_wait(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    settings.results_dir.parent.mkdir(parents=True)
    settings.results_dir.write_bytes(b"")  # a file where the folder should be
    with working(settings, FakeEngine()), serving(create_app(settings)) as client:
        batch_id = send(client, [row(f"r{n}", seed=n) for n in range(40)])["id"]
        wait_until(lambda: 'code="storage_unavailable"' in client.get("/metrics").text)
        assert counts(client, batch_id)["failed"] == 0
        settings.results_dir.unlink()
        assert ended(client, batch_id)["counts"]["succeeded"] == 40


def test_a_file_that_is_broken_stops_no_other_batch(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    with working(settings, FakeEngine()), serving(create_app(settings)) as client:
        broken, whole = (send(client, [row("a", seed=1)])["id"] for _ in range(2))
        ended(client, broken)
        ended(client, whole)
        for name, content in (
            ("0" * 20, b"no database" * 1000),
            ("1" * 20, b"SQLite format 3\0" + bytes(4096)),
        ):
            (settings.batches_dir / f"{name}.db").write_bytes(content)
        assert ended(client, send(client, [row("b", seed=2)])["id"])["counts"]["succeeded"] == 1
        assert client.get(f"/batches/{'0' * 20}").status_code == 404
        assert {each["id"] for each in client.get("/batches").json()["batches"]} >= {broken, whole}


def test_a_batch_that_can_not_be_read_for_a_reason_nobody_foresaw_fails_in_the_end(
    redis_url, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("app.batches.reading._AFTER_FAILURE_S", 0.1)
    app = create_app(settings_for(tmp_path, redis_url))
    with serving(app) as client:
        upload = client.post("/files", files={"file": ("rows", lines([row("a", seed=1)]))}).json()["id"]
        content = app.state.services.files.find(upload, "").path
        content.unlink()
        content.mkdir()  # which is no file
        done = ended(client, client.post("/batches", json={"file": upload}).json()["id"])
        assert done["status"] == "failed"
        assert "could not be read, in 3 tries" in done["error"]["message"]
        assert caplog.text.count("IsADirectoryError") == 3


def test_a_batch_outlives_a_queue_server_that_is_away(own_redis, tmp_path):
    settings = settings_for(tmp_path, own_redis.url)
    engine = FakeEngine()
    with working(settings, engine), serving(create_app(settings)) as client:
        engine.is_held.set()
        batch_id = send(client, [row(f"r{n}", seed=n) for n in range(40)])["id"]
        wait_until(lambda: counts(client, batch_id)["running"] >= 8)
        own_redis.stop()
        assert client.get(f"/batches/{batch_id}").json()["status"] == "running"
        assert client.delete(f"/batches/{send(client, [row('a')])['id']}").status_code in (200, 202)
        server = embedded_server.start(tmp_path / "redis")
        engine.is_held.clear()
        assert ended(client, batch_id)["counts"]["succeeded"] == 40
    server.stop()


def test_outputs_go_with_their_batch_and_not_before(redis_url, tmp_path):
    app = create_app(settings_for(tmp_path, redis_url, result_ttl_s=1, batch_ttl_s=2))
    with working(app.state.settings, FakeEngine()), serving(app) as client:

        def sweep_now() -> None:
            # In the server's thread: the queue's connections belong to its event loop.
            loop = services.queue._job_events._task.get_loop()
            asyncio.run_coroutine_threadsafe(sweep(services, margin_s=-1), loop).result(10)

        services = app.state.services
        alone = client.post("/generate", json={"seed": 2}, headers={"Prefer": "wait=10"}).json()
        batch_id = send(client, [row("a", seed=1, return_codes=True)])["id"]
        ended(client, batch_id)
        url = results(client, batch_id)[0]["result"]["outputs"][0]["url"]
        time.sleep(0.1)
        sweep_now()
        assert client.get(alone["result"]["outputs"][0]["url"]).status_code == 404
        assert client.get(url).status_code == 200
        assert results(client, batch_id)[0]["result"]["codes"]["codes"]
        wait_until(lambda: (sweep_now(), client.get(f"/batches/{batch_id}").status_code == 404)[1])
        sweep_now()
        assert client.get(url).status_code == 404


@pytest.mark.ci
@needs_proc
def test_no_row_is_lost_or_done_twice_whichever_process_is_killed(tmp_path, tiny_weights):
    rows = [row(f"r{n}", seed=n, num_steps=10) for n in range(240)]
    with service(tmp_path, tiny_weights) as (_, url, _), httpx.Client(base_url=url, timeout=60) as client:
        wait_until(lambda: is_ready(client), 60)
        alone = client.post("/generate", json=rows[3]["body"], headers={"Prefer": "wait=30"}).json()
        batch_id = send(client, rows)["id"]
        for round_, part in enumerate(("--supervised serve", "--supervised worker", "--supervised serve")):
            wait_until(lambda: num_ended(client, batch_id) > 40 * (round_ + 1), 60)  # noqa: B023
            kill(tmp_path, part)
        wait_until(lambda: num_ended(client, batch_id) == 240, 90)
        told = results(client, batch_id, order="input")
        assert [(each["id"], each["status"]) for each in told] == [(each["id"], "succeeded") for each in rows]
        assert sorted(each["seq"] for each in told) == list(range(1, 241))
        digests = [each["result"]["outputs"][0]["sha256"] for each in told]
        assert digests[3] == alone["result"]["outputs"][0]["sha256"]
        assert len(set(digests)) > 230
        metrics = client.get("/metrics").text
        for name in ("jobs_submitted_total", "jobs_ended_total"):  # kept in the queue server
            found = re.findall(rf"^smalti_{name}\{{.*\}} (.*)$", metrics, re.M)
            assert sum(map(float, found)) == 241, name


@pytest.mark.ci
@needs_proc
def test_a_hundred_thousand_rows_are_taken_in_seconds_and_little_memory(tmp_path, tiny_weights):
    body = lines(row(f"row-{n:06d}", class_label="cat", seed=n, num_steps=12) for n in range(NUM_ROWS))
    with service(tmp_path, tiny_weights) as (_, url, _), httpx.Client(base_url=url, timeout=60) as client:
        wait_until(lambda: is_ready(client), 60)
        (api,) = (pid for pid, command in processes_of(tmp_path).items() if "--supervised serve" in command)
        before_bytes = peak_bytes(api)
        began_s = time.monotonic()
        batch_id = client.post("/batches", content=body, headers=LINES).json()["id"]
        answered_s, slowest_s = time.monotonic() - began_s, 0.0
        while client.get(f"/batches/{batch_id}").json()["num_rows"] != NUM_ROWS:
            assert time.monotonic() - began_s < 60
            asked_s = time.monotonic()
            client.get("/health/live")
            slowest_s = max(slowest_s, time.monotonic() - asked_s)
            time.sleep(0.1)
        taken_s, used_bytes = time.monotonic() - began_s, peak_bytes(api) - before_bytes
        logger.info(
            "%d bytes: answered in %.2f s, read in %.1f s, live in %.3f s, %.0f MiB more",
            len(body),
            answered_s,
            taken_s,
            slowest_s,
            used_bytes / 2**20,
        )
        assert used_bytes < 5 * len(body)
        assert slowest_s < 2
        wait_until(lambda: num_ended(client, batch_id) > 20, 60)
        assert client.delete(f"/batches/{batch_id}").status_code == 202
        assert ended(client, batch_id)["counts"]["cancelled"] > NUM_ROWS // 2
        with client.stream("GET", f"/batches/{batch_id}/results") as answer:
            assert sum(1 for _ in answer.iter_lines()) == NUM_ROWS
        assert peak_bytes(api) - before_bytes < 5 * len(body)


def is_ready(client: httpx.Client) -> bool:
    return client.get("/health/ready").status_code == 200


def num_ended(client: httpx.Client, batch_id: str) -> int:
    """Return how many rows have ended; 0 while the API starts again."""
    try:
        found = client.get(f"/batches/{batch_id}").json()["counts"]
    except httpx.HTTPError:
        return 0
    return found["succeeded"] + found["failed"]


def kill(folder: Path, part: str) -> None:
    for pid, command in processes_of(folder).items():
        if part in command:
            os.kill(pid, signal.SIGKILL)


def peak_bytes(pid: int) -> int:
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(kib) * 2**10
