"""What /metrics shows of requests, the queue and workers."""

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from app.main import create_app
from tests.app.conftest import WAIT, serving, settings_for, working
from tests.fake_engine import FINGERPRINT, FakeEngine
from tests.waiting import wait_until
from workers.metrics import BATCH_SIZE, IMAGES, Meter, memory_bytes
from workers.queue.records import TOTALS


def samples_of(client) -> dict[tuple[str, ...], float]:
    """Return the value of each sample, by its name and its label values in the order of label names."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_work_is_counted_over_all_workers_and_outlives_them(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    with serving(create_app(settings)) as client:
        for _ in range(2):  # one worker after the other
            with working(settings, FakeEngine()):
                client.post("/generate", json={"num_images": 3, "num_steps": 4}, headers=WAIT)
                client.post("/generate", json={"seed": 666, "priority": "batch"}, headers=WAIT)
                codes = {"codes": [[[1, 2], [3, 4]]] * 2, "tokenizer": FINGERPRINT}
                client.post("/decode", json=codes, headers=WAIT)
        job_id = client.post("/generate", json={}).json()["id"]
        client.delete(f"/jobs/{job_id}")
        client.post("/generate", json={})
        samples = samples_of(client)

    assert samples["smalti_jobs_submitted_total", "generate", "interactive"] == 4
    assert samples["smalti_jobs_submitted_total", "generate", "batch"] == 2
    assert samples["smalti_jobs_ended_total", "succeeded", "generate"] == 2
    assert samples["smalti_jobs_ended_total", "not_finite", "generate"] == 2
    assert samples["smalti_jobs_ended_total", "cancelled", "generate"] == 1
    assert samples["smalti_jobs_ended_total", "succeeded", "decode"] == 2
    assert samples["smalti_tries_total", "generate"] == 4
    assert samples["smalti_images_total", "generate"] == 6
    assert samples["smalti_images_total", "decode"] == 4
    assert samples["smalti_denoising_steps_total",] == 24
    assert samples["smalti_codes_total", "decode"] == 16
    assert samples["smalti_queue_length", "interactive"] == 1
    assert samples["smalti_queue_wait_seconds_count", "interactive"] == 4
    assert samples["smalti_queue_wait_seconds_bucket", "+Inf", "interactive"] == 4
    assert 0 < samples["smalti_queue_wait_seconds_sum", "interactive"] < 20
    assert samples["smalti_engine_step_seconds_count",] == samples["smalti_engine_batch_size_count",] >= 6
    assert (
        samples["smalti_engine_batch_size_bucket", "2.0"] < samples["smalti_engine_batch_size_bucket", "4.0"]
    )


def test_living_workers_are_shown_with_what_they_have(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    engine = FakeEngine()
    engine.is_held.set()
    with serving(create_app(settings)) as client:
        with working(settings, engine) as worker:
            client.post("/generate", json={"num_images": 5})
            wait_until(lambda: samples_of(client).get(("smalti_worker_running_samples", worker.name)) == 5)
            samples = samples_of(client)
            assert samples["smalti_workers", "ready"] == 1
            assert samples["smalti_seed_promise", "checked", "tiny", worker.name] == 1
            assert samples["smalti_worker_memory_bytes", worker.name] > 10 * 2**20
        samples = samples_of(client)

    assert samples["smalti_workers", "ready"] == 0
    assert not [key for key in samples if worker.name in key]


def test_requests_are_counted_by_route_and_never_by_job(service):
    job_id = service.client.post("/generate", json={}, headers=WAIT).json()["id"]
    for _ in range(2):
        service.client.get(f"/jobs/{job_id}")
    service.client.get("/nothing/here")
    service.client.get("/generate")
    samples = samples_of(service.client)

    assert samples["smalti_http_requests_total", "GET", "/jobs/{job_id}", "200"] == 2
    assert samples["smalti_http_requests_total", "POST", "/generate", "200"] == 1
    assert samples["smalti_http_request_seconds_count", "POST", "/generate"] == 1
    assert samples["smalti_http_requests_total", "any", "none", "404"] == 1
    assert not [key for key in samples if job_id in str(key)]
    assert samples["process_resident_memory_bytes",] > 0


def test_nothing_that_a_client_makes_up_becomes_a_series(service):
    client = service.client
    methods = ("PROPFIND", "MKCOL", "LOCK", "PURGE", "REPORT")  # which httptools lets through; h11 lets any
    client.request("TRACE", "/health/live")
    client.request("TRACE", "/nothing")
    before = samples_of(client)
    for method in methods:
        client.request(method, "/health/live")
    for number in range(1, 10):
        client.request(f"MADEUP{number}", "/health/live")
        client.request(f"MADEUP{number}", f"/nothing/{number}")
        client.get("/health/live", headers={"Host": f"evil{number}.example"})
        client.post("/generate", json={"class_label": f"made-up-{number}", "pipeline": f"made-up-{number}"})
    samples = samples_of(client)

    key = ("smalti_http_requests_total", "other", "/health/live", "405")
    assert samples[key] >= before[key] + len(methods)
    new = {key for key in samples if key not in before}
    assert {key[-2:] for key in new if key[0] == "smalti_http_requests_total"} <= {
        ("/generate", "422"),
        ("none", "421"),
        ("/metrics", "200"),
    }
    assert not [key for key in samples if "made-up" in str(key) or "MADEUP" in str(key) or "evil" in str(key)]


def test_what_is_not_known_of_the_totals_is_summed_up_as_other(redis_url, tmp_path):
    with redis.Redis.from_url(redis_url) as queue:
        for code in ("succeeded", "invalid_image", "made up", "x" * 500, "cosmic_ray"):
            queue.hincrby(TOTALS, f"jobs_ended|generate|{code}", 1)
        queue.hincrby(TOTALS, "jobs_ended|made up|succeeded", 1)
        queue.hincrby(TOTALS, "queue_wait_seconds|made up|0.1", 2)
        queue.hincrby(TOTALS, "queue_wait_seconds|x|0.1", 3)
    with serving(create_app(settings_for(tmp_path, redis_url))) as client:
        samples = samples_of(client)

    ended = {key[1:]: value for key, value in samples.items() if key[0] == "smalti_jobs_ended_total"}
    assert ended == {
        ("succeeded", "generate"): 1,
        ("invalid_image", "generate"): 1,
        ("other", "generate"): 3,
        ("succeeded", "other"): 1,
    }
    assert samples["smalti_queue_wait_seconds_count", "other"] == 5


def test_without_a_queue_what_is_left_is_shown(own_redis, tmp_path):
    with serving(create_app(settings_for(tmp_path, own_redis.url))) as client:
        assert samples_of(client)["smalti_queue_up",] == 1
        own_redis.stop()
        samples = samples_of(client)

    assert samples["smalti_queue_up",] == 0
    assert samples["smalti_http_requests_total", "GET", "/metrics", "200"] == 1
    assert not [key for key in samples if key[0].startswith("smalti_jobs")]


def test_what_could_not_be_sent_is_kept():
    meter = Meter()
    meter.count(IMAGES, 2, "generate")
    meter.observe(BATCH_SIZE, 3)
    taken = meter.take()
    assert taken == {"images|generate": 2, "engine_batch_size|4": 1, "engine_batch_size|sum": 3}
    assert meter.take() == {}

    meter.count(IMAGES, 1, "generate")
    meter.add(taken)

    assert meter.take() == taken | {"images|generate": 3}


@pytest.mark.parametrize(("value", "bucket"), [(1, "1"), (1.5, "2"), (128, "128"), (129, "inf")])
def test_a_value_is_in_the_bucket_that_it_does_not_exceed(value, bucket):
    meter = Meter()
    meter.observe(BATCH_SIZE, value)
    assert meter.take()[f"engine_batch_size|{bucket}"] == 1


def test_memory_is_that_of_this_process():
    before = memory_bytes()
    block = bytearray(64 * 2**20)
    assert memory_bytes() - before > 48 * 2**20
    del block
