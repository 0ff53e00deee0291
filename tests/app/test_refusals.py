"""What is refused, and in what words."""

import contextlib
import dataclasses
import http.client
import json
import shutil
import time

import httpx
import pytest

from app.errors import problem_of as describe
from app.main import create_app
from app.settings import AppSettings
from models.options import ConfigError
from tests.app.conftest import SPEC, WAIT, job_of, problem_of, serving, settings_for, working
from tests.fake_engine import FakeEngine
from tests.waiting import wait_until
from workers.errors import InvalidSource, ServiceError
from workers.settings import SettingsError

NO_JOB = "0" * 32


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"num_images": 65}, "num_images", "should be less than or equal to 64, got 65"),
        ({"num_images": 0}, "num_images", "should be greater than or equal to 1, got 0"),
        ({"num_steps": 251}, "num_steps", "should be less than or equal to 250, got 251"),
        ({"seed": -1}, "seed", "should be greater than or equal to 0, got -1"),
        ({"seed": 2**53}, "seed", f"should be less than {2**53}, got {2**53}"),
        ({"guidance_scale": 21}, "guidance_scale", "should be less than or equal to 20, got 21"),
        ({"class_label": -1}, "class_label", "should be greater than or equal to 0, got -1"),
        ({"class_label": "x" * 65}, "class_label", "should have at most 64 characters, got 65 characters"),
        (
            {"sampler": "dpm"},
            "sampler",
            "should be 'euler', 'heun', 'dpmpp_2m', 'ddim', 'ddpm', 'confidence' or 'ancestral', got 'dpm'",
        ),
        ({"sampler": "ddim"}, "sampler", "this pipeline has euler, heun, dpmpp_2m, got 'ddim'"),
        ({"labels": {"class": -1}}, "labels.class", "should be greater than or equal to 0, got -1"),
        ({"labels": [1]}, "labels", "should be an object, got 1 of them"),
        ({"deadline_s": 0}, "deadline_s", "should be greater than 0, got 0"),
        ({"class_lable": "coat"}, "class_lable", "unknown field; did you mean class_label?"),
        ([], "body", "should be an object"),
    ],
)
def test_a_bad_field_is_named_with_its_limit_and_value(service, body, field, message):
    problem = problem_of(service.client.post("/generate", json=body), 422, "invalid_request")

    assert problem.detail == f"{field}: {message}"
    assert [(error.field, error.message) for error in problem.errors] == [(field, message)]


def test_another_format_is_refused_with_those_of_the_medium(service):
    problem = problem_of(service.client.post("/generate", json={"format": "gif"}), 422, "invalid_request")
    assert problem.detail == "format: image files are png, webp, jpeg, got 'gif'"


def test_of_many_bad_fields_ten_are_told_and_three_in_the_detail(service):
    response = service.client.post("/generate", json={f"x{number}": 1 for number in range(12)})
    problem = problem_of(response, 422, "invalid_request")
    assert (len(problem.errors), problem.num_errors) == (10, 12)
    assert problem.detail == "x0: unknown field; x1: unknown field; x2: unknown field; and 9 more"


def test_every_refusal_has_a_list_of_errors(service):
    post = service.client.post
    by_field = {
        "pipeline": post("/generate", json={"pipeline": "huge"}),
        "class_label": post("/generate", json={"class_label": "boot"}),
        "codes[0]": post("/decode", json={"codes": [[1]], "tokenizer": "0123456789abcdef"}),
        "source": post("/encode", json={"source": "AAAA"}),
    }
    for field, response in by_field.items():
        (error,) = response.json()["errors"]
        assert (error["field"], response.json()["num_errors"]) == (field, 1)
        assert response.json()["detail"] == f"{field}: {error['message']}"
    for response in (
        service.client.get("/nothing"),
        service.client.put("/generate"),
        post("/generate", content=b""),
    ):
        assert response.json()["errors"] == []
        assert response.json()["num_errors"] == 0


@pytest.mark.parametrize(
    ("codes", "details"),
    [
        (5, ["codes: should be an object or should be a valid list, got 5"]),
        ([], ["codes: should have at least 1 item, got 0 of them"]),
        ([1], ["codes[0]: should be a valid list, got 1"]),
        ({"codes": []}, [f"codes.{name}: is required" for name in ("grid", "codebook_size", "tokenizer")]),
    ],
)
def test_what_may_be_several_things_is_refused_by_the_nearest(service, codes, details):
    response = service.client.post("/decode", json={"codes": codes})
    assert problem_of(response, 422, "invalid_request").detail == "; ".join(details)


def test_all_bad_fields_are_told_at_once(service):
    response = service.client.post("/generate", json={"num_images": 65, "seed": "x", "what": 1})
    problem = problem_of(response, 422, "invalid_request")
    assert [error.field for error in problem.errors] == ["num_images", "seed", "what"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"{'seed': 1}", 422),
        (b'{"seed": NaN}', 422),
        (b'{"guidance_scale": Infinity}', 422),
        (b"\xff", 400),
        (b"[" * 60_000, 400),
    ],
)
def test_what_is_not_json_is_refused(service, body, status):
    response = service.client.post("/generate", content=body, headers={"content-type": "application/json"})
    problem_of(response, status, "invalid_request" if status == 422 else "bad_request")


def test_unknown_classes_and_pipelines_are_refused_with_the_known(service):
    response = service.client.post("/generate", json={"class_label": "boot"})
    assert "known are T-shirt/top, Sneaker" in problem_of(response, 422, "invalid_request").detail
    for path, body in (("/generate", {}), ("/encode", {"image": "AAAA"})):
        response = service.client.post(path, json=body | {"pipeline": "huge"})
        assert "known are tiny" in problem_of(response, 422, "unknown_pipeline").detail


@pytest.mark.parametrize("path", ["/generate", "/encode", "/decode"])
@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_other_bodies_are_refused(service, path, media_type):
    headers = {} if media_type is None else {"content-type": media_type}
    problem = problem_of(
        service.client.post(path, content=b"{}", headers=headers), 415, "unsupported_media_type"
    )
    assert "send application/json" in problem.detail


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/generate", 28 * 2**20),
        ("/jobs/x/retry", 64 * 2**10),
        ("/decode", 4 * 2**20),
        ("/encode", 64 * 2**20 + 64 * 2**10),
    ],
)
def test_a_large_body_is_refused_before_it_is_read(service, path, limit):
    connection = http.client.HTTPConnection(
        service.client.base_url.host, service.client.base_url.port, timeout=5
    )
    connection.putrequest("POST", path)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(limit + 1))
    connection.endheaders()  # and not one byte of the body
    with contextlib.closing(connection), connection.getresponse() as response:
        assert response.status == 413
        assert json.load(response)["detail"] == f"the body is at most {limit} bytes, got {limit + 1}"


@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data; boundary=x"])
def test_a_body_of_untold_length_is_read_to_the_limit_only(service, media_type):
    chunks = (b" " * 2**20 for _ in range(100))
    try:
        response = service.client.post("/encode", content=chunks, headers={"content-type": media_type})
    except httpx.WriteError:
        return  # the server closed the connection while the rest was sent
    problem_of(response, 413, "body_too_large")


def test_unknown_addresses_methods_and_jobs_are_told(service):
    problem_of(service.client.get("/nothing"), 404, "not_found")
    response = service.client.get("/generate")
    assert "GET /generate: use POST" in problem_of(response, 405, "method_not_allowed").detail
    assert response.headers["allow"] == "POST, OPTIONS"


@pytest.mark.parametrize(
    "job_id",
    [
        NO_JOB,
        "x",
        "..%2f..%2fetc%2fpasswd",
        "%00",
        "0" * 31,
        "0" * 60_000,
        "A" * 32,
        "%F0%9F%98%80",
        "%ff",
        "*",
        " ",
    ],
)
def test_what_is_no_jobs_id_is_not_found(service, job_id):
    for method, rest in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/events"),
        ("GET", "/outputs/0"),
        ("GET", "/images/0"),
    ):
        response = service.client.request(method, f"/jobs/{job_id}{rest}")
        code = "not_found" if "%2f" in job_id else "job_not_found"
        problem = problem_of(response, 404, code)
        assert len(problem.detail) < 300
        assert problem.errors == ()


def test_every_error_has_a_status_and_a_title_of_its_own():
    def codes(kind):
        return {kind.code}.union(*map(codes, kind.__subclasses__()))

    for code in (codes(ServiceError) | {InvalidSource("image", "").code}) - {"internal_error"}:
        assert describe(code, "").title != describe("internal_error", "").title, code


def test_an_error_of_a_newer_worker_is_an_internal_error_that_keeps_its_code():
    problem = describe("cosmic_ray", "a bit flipped", job_id=NO_JOB)
    assert (problem.status, problem.code) == (500, "cosmic_ray")


def test_an_application_needs_a_queue_and_a_pipeline(tmp_path):
    with pytest.raises(SettingsError, match="REDIS_URL is not set"):
        create_app(AppSettings(weights_dir=tmp_path))
    with pytest.raises(ConfigError, match="holds no pipeline"):
        create_app(AppSettings(redis_url="redis://127.0.0.1", weights_dir=tmp_path))


def test_a_full_queue_refuses_and_says_when_to_come_again(redis_url, tmp_path):
    with serving(create_app(settings_for(tmp_path, redis_url, max_queue_length=2))) as client:
        assert [client.post("/generate", json={}).status_code for _ in range(2)] == [202, 202]
        response = client.post("/generate", json={})

    problem_of(response, 429, "queue_full")
    assert int(response.headers["retry-after"]) >= 1


def test_readiness_follows_the_workers(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    with serving(create_app(settings)) as client:
        response = client.get("/health/ready")
        assert "no worker is ready" in problem_of(response, 503, "not_ready").detail
        assert int(response.headers["retry-after"]) >= 1

        engine = FakeEngine()
        with working(settings, engine) as worker:
            wait_until(lambda: client.get("/health/ready").status_code == 200)
            assert client.get("/health/ready").json() == {
                "status": "ready",
                "num_ready_workers": 1,
                "num_draining_workers": 0,
                "queue_length": 0,
                "is_paused": False,
                "refused_pipelines": {},
            }
            engine.is_held.set()
            client.post("/generate", json={})
            wait_until(lambda: engine.works)
            worker._config = type(worker._config)(grace_s=20)
            worker.request_stop()
            wait_until(lambda: client.get("/health/ready").status_code == 503)
            assert "draining" in problem_of(client.get("/health/ready"), 503, "not_ready").detail
            engine.is_held.clear()
        assert client.get("/health/live").json() == {"status": "live"}


def test_a_service_whose_results_cannot_be_written_is_not_ready_and_says_why(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    with serving(create_app(settings)) as client, working(settings, FakeEngine()):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        for folder in (settings.results_dir, settings.blobs_dir):
            if folder.exists():
                shutil.rmtree(folder)
            folder.write_text("a file stands where the folder was")
            response = client.get("/health/ready")
            assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
            assert f"{folder} (SMALTI_DATA_DIR) can't be written" in response.json()["detail"]
            folder.unlink()
            assert client.get("/health/ready").status_code == 200


def test_a_service_is_not_ready_while_a_pipeline_has_no_worker(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    other = tmp_path / "weights" / "other"
    other.mkdir()
    dataclasses.replace(SPEC, name="other").save(other / "pipeline.json")
    only_tiny = settings.model_copy(update={"pipelines": ("tiny",)})
    with serving(create_app(settings)) as client, working(only_tiny, FakeEngine()):
        wait_until(lambda: "no worker is ready for other" in client.get("/health/ready").text)
        problem_of(client.post("/generate", json={"pipeline": "other"}), 503, "pipeline_not_served")
        job = job_of(client.post("/generate", json={"pipeline": "tiny"}, headers=WAIT))
        assert job.status == "succeeded"


def test_without_a_queue_server_only_what_needs_it_is_refused(own_redis, tmp_path):
    settings = settings_for(tmp_path, own_redis.url)
    with serving(create_app(settings)) as client:
        job = job_of(client.post("/generate", json={}))
        own_redis.stop()
        for method, path in (
            ("POST", "/generate"),
            ("GET", f"/jobs/{job.id}"),
            ("DELETE", f"/jobs/{job.id}"),
            ("GET", "/health/ready"),
        ):
            began_s = time.monotonic()
            response = client.request(method, path, json={} if method == "POST" else None)
            problem_of(response, 503, "queue_unavailable")
            assert int(response.headers["retry-after"]) >= 1
            assert time.monotonic() - began_s < 3
        assert client.get("/health/live").status_code == 200
        assert client.get("/pipelines").status_code == 200


def test_an_unexpected_failure_tells_nothing_and_keeps_the_connection(service, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("a secret in /root/smalti")

    monkeypatch.setattr("app.submit.parse_prefer", fail)
    response = service.client.post("/generate", json={})

    problem_of(response, 500, "internal_error")
    assert "secret" not in response.text
    assert "a secret" in caplog.text
    assert "connection" not in response.headers
