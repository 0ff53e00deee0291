"""The API over a real server, queue and worker; the engine draws flat squares."""

import base64
import contextlib
import hashlib
import http.client
import io
import json
import re
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from app.errors import PROBLEM_MEDIA_TYPE, Problem
from app.errors import problem_of as describe
from app.main import create_app
from app.settings import AppSettings
from models.config import ConfigError
from tests.app.conftest import (
    CONFIG,
    FAILURES,
    Sketcher,
    serving,
    settings_for,
    until,
    working,
)
from workers.errors import ServiceError
from workers.images import encode_image
from workers.messages import JobView, PipelineInfo
from workers.settings import SettingsError

WAIT = {"Prefer": "wait=10"}
NO_JOB = "0" * 32
SQUARE = encode_image(np.full((20, 30, 3), 77, np.uint8), "png")


def job_of(response: httpx.Response) -> JobView:
    assert response.headers["content-type"] == "application/json"
    return JobView.model_validate_json(response.content)


def problem_of(response: httpx.Response, status: int, code: str) -> Problem:
    """Check everything that is promised of any problem, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM_MEDIA_TYPE
    problem = Problem.model_validate_json(response.content)
    assert (problem.status, problem.code, problem.type) == (status, code, f"urn:smalti:error:{code}")
    assert problem.title
    assert problem.detail
    assert "Traceback" not in response.text
    assert not re.search(r"/(home|root|tmp|usr|work)/|\.py\b", response.text)
    return problem


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


# --- the life of a job ---------------------------------------------------------------------------------


def test_a_request_is_accepted_and_its_job_can_be_followed(service):
    service.engine.is_held.set()
    response = service.client.post("/generate", json={"class_label": "sneaker", "seed": 7})
    job = job_of(response)

    assert response.status_code == 202
    assert response.headers["location"] == f"/jobs/{job.id}"
    assert (job.operation, job.status) == ("generate", "queued")

    until(lambda: job_of(service.client.get(f"/jobs/{job.id}")).status == "running")
    service.engine.is_held.clear()
    done = job_of(service.client.get(f"/jobs/{job.id}", headers=WAIT))

    assert done.status == "succeeded"
    assert (done.result.operation, done.result.pipeline, done.result.seed) == ("generate", "tiny", 7)
    assert done.created_at <= done.started_at <= done.ended_at


def test_waiting_gives_the_finished_job(service):
    response = service.client.post("/generate", json={"seed": 3, "num_images": 2}, headers=WAIT)
    job = job_of(response)

    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=10"
    assert response.headers["content-location"] == f"/jobs/{job.id}"
    assert [image.url for image in job.result.images] == [f"/jobs/{job.id}/images/{i}" for i in (0, 1)]


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

    assert again.images[0].sha256 == first.images[0].sha256


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
        until(lambda: service.engine.works)
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
    until(lambda: service.engine.works)
    (job_id,) = service.engine.works
    thread.join()
    return job_id


def test_a_client_that_goes_away_cancels_its_job_if_it_asked_for_that(service):
    job_id = post_and_hang_up(service, {"Prefer": "wait=10, cancel-on-disconnect"})
    until(lambda: job_of(service.client.get(f"/jobs/{job_id}")).status == "cancelled")
    until(lambda: not service.engine.works)


def test_a_client_that_goes_away_leaves_its_job(service):
    job_id = post_and_hang_up(service, WAIT)
    service.engine.is_held.clear()
    assert job_of(service.client.get(f"/jobs/{job_id}", headers=WAIT)).status == "succeeded"


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


# --- images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "format"), [("image/*", "PNG"), ("image/webp", "WEBP"), ("image/jpeg", "JPEG")]
)
def test_accepting_an_image_gives_its_bytes(service, accept, format):
    response = service.client.post("/generate", json={"seed": 200}, headers={"Accept": accept})

    assert response.status_code == 200
    assert response.headers["content-type"] == f"image/{format.lower()}"
    assert Image.open(io.BytesIO(response.content)).format == format
    assert (pixels_of(response.content) == 200).all()
    assert response.headers["smalti-seed"] == "200"
    assert response.headers["etag"] == f'"{hashlib.sha256(response.content).hexdigest()}"'
    assert job_of(service.client.get(f"/jobs/{response.headers['smalti-job-id']}")).status == "succeeded"


def test_the_body_chooses_among_accepted_image_formats(service):
    response = service.client.post("/generate", json={"format": "webp"}, headers={"Accept": "image/*"})
    assert response.headers["content-type"] == "image/webp"


def test_an_image_type_that_the_body_excludes_is_not_acceptable(service):
    response = service.client.post("/generate", json={"format": "png"}, headers={"Accept": "image/webp"})
    assert "application/json, image/png; got image/webp" in problem_of(response, 406, "not_acceptable").detail


def test_several_images_do_not_fit_into_an_image_answer(service):
    response = service.client.post("/generate", json={"num_images": 2}, headers={"Accept": "image/png"})
    assert "num_images asks for 2" in problem_of(response, 406, "not_acceptable").detail


def test_other_media_types_are_not_acceptable(service):
    problem_of(
        service.client.post("/generate", json={}, headers={"Accept": "text/csv"}), 406, "not_acceptable"
    )
    response = service.client.post("/encode", files={"file": SQUARE}, headers={"Accept": "image/png"})
    problem_of(response, 406, "not_acceptable")


def test_an_image_that_is_not_done_in_time_is_a_job_to_follow(service):
    service.engine.is_held.set()
    headers = {"Accept": "image/png", "Prefer": "wait=0.05"}
    assert service.client.post("/generate", json={}, headers=headers).status_code == 202


def test_an_image_is_served_as_what_it_is_and_for_ever(service):
    job = job_of(service.client.post("/generate", json={"seed": 5, "num_images": 2}, headers=WAIT))
    reference = job.result.images[1]

    response = service.client.get(reference.url)

    assert (pixels_of(response.content) == 6).all()
    assert (reference.width_px, reference.height_px, reference.media_type) == (8, 8, "image/png")
    assert len(response.content) == reference.num_bytes
    assert hashlib.sha256(response.content).hexdigest() == reference.sha256
    assert response.headers["etag"] == f'"{reference.sha256}"'
    assert response.headers["content-type"] == "image/png"
    assert "immutable" in response.headers["cache-control"]


@pytest.mark.parametrize("tag", ["{etag}", 'W/{etag}, "x"', "*"])
def test_an_image_that_the_client_has_is_not_sent_again(service, tag):
    url = job_of(service.client.post("/generate", json={}, headers=WAIT)).result.images[0].url
    etag = service.client.get(url).headers["etag"]

    response = service.client.get(url, headers={"If-None-Match": tag.format(etag=etag)})

    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["etag"] == etag


def test_an_image_of_another_type_is_not_acceptable(service):
    url = job_of(service.client.post("/generate", json={}, headers=WAIT)).result.images[0].url
    problem = problem_of(service.client.get(url, headers={"Accept": "image/webp"}), 406, "not_acceptable")
    assert "this image is image/png" in problem.detail


def test_missing_images_say_how_their_job_is(service):
    done = job_of(service.client.post("/generate", json={}, headers=WAIT))
    problem = problem_of(service.client.get(f"/jobs/{done.id}/images/1"), 404, "job_not_found")
    assert problem.detail == f"job {done.id} has no image 1; the job is succeeded"
    problem_of(service.client.get(f"/jobs/{NO_JOB}/images/0"), 404, "job_not_found")
    problem_of(service.client.get(f"/jobs/{done.id}/images/x"), 422, "invalid_request")
    problem_of(service.client.get(f"/jobs/{done.id}/images/-1"), 422, "invalid_request")


# --- encode and decode ---------------------------------------------------------------------------------


def test_encode_takes_base64_and_files_alike(service):
    as_json = service.client.post("/encode", json={"image": base64.b64encode(SQUARE).decode()}, headers=WAIT)
    as_file = service.client.post("/encode", files={"file": SQUARE}, data={"pipeline": "tiny"}, headers=WAIT)

    result = job_of(as_json).result
    assert result == job_of(as_file).result
    assert result.codes == [[[77, 77], [77, 77]]]
    assert (result.grid, result.codebook_size) == (CONFIG.tokenizer.grid, 256)
    assert result.tokenizer == CONFIG.tokenizer_fingerprint


def test_encode_takes_an_effort_within_bounds(service):
    for asked in ({"effort": "2"}, {"effort": "0"}):
        assert job_of(service.client.post("/encode", files={"file": SQUARE}, data=asked, headers=WAIT)).result
    for asked in ("-1", "9", "much"):
        refused = service.client.post("/encode", files={"file": SQUARE}, data={"effort": asked}, headers=WAIT)
        assert "effort" in problem_of(refused, 422, "invalid_request").errors[0].field


def test_what_encode_gives_decode_takes(service):
    encoded = job_of(service.client.post("/encode", files={"file": SQUARE}, headers=WAIT)).result
    body = {"codes": encoded.codes, "tokenizer": encoded.tokenizer}

    decoded = service.client.post("/decode", json=body, headers={"Accept": "image/png"})

    assert (pixels_of(decoded.content) == 77).all()
    assert "smalti-seed" not in decoded.headers


def test_generate_returns_codes_that_decode_takes(service):
    body = {"seed": 9, "num_images": 2, "return_codes": True}
    codes = job_of(service.client.post("/generate", json=body, headers=WAIT)).result.codes
    decoded = job_of(
        service.client.post(
            "/decode", json={"codes": codes.codes, "tokenizer": codes.tokenizer}, headers=WAIT
        )
    )

    assert [pixels_of(service.client.get(image.url).content)[0, 0] for image in decoded.result.images] == [
        9,
        10,
    ]


def test_a_large_upload_is_small_in_the_queue(service):
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    service.engine.is_held.set()
    job = job_of(service.client.post("/encode", files={"file": encode_image(noise, "png")}))
    until(lambda: job.id in service.engine.works)

    assert len(service.engine.works[job.id].request.image) < 1000


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("data:image/png;base64,AAAA", "is no base64"),
        ("AAA", "at least 4 characters, got 'AAA'"),
        ("AAAAA", "is no base64"),
        ("AAAA", "no PNG, JPEG or WebP"),
        (base64.b64encode(SQUARE[:-30]).decode(), "broken or cut short"),
    ],
)
def test_a_bad_image_is_refused(service, image, message):
    response = service.client.post("/encode", json={"image": image})
    code = "invalid_request" if image == "AAA" else "invalid_image"
    assert message in problem_of(response, 422, code).detail


def test_bad_forms_are_refused(service):
    post = service.client.post
    assert (
        "file: is required"
        in problem_of(post("/encode", files={"image": SQUARE}), 422, "invalid_request").detail
    )
    assert "file: is empty" in problem_of(post("/encode", files={"file": b""}), 422, "invalid_image").detail
    response = post("/encode", files={"file": SQUARE}, data={"pipelines": "tiny"})
    assert (
        "pipelines: unknown field; did you mean pipeline?"
        in problem_of(response, 422, "invalid_request").detail
    )
    response = post("/encode", files={"file": SQUARE}, data={"image": "AAAA"})
    assert "a form has `file`" in problem_of(response, 422, "invalid_request").detail
    response = post("/encode", files=[("file", SQUARE), ("file", SQUARE)])
    problem_of(response, 400, "bad_request")
    form = {"content-type": "multipart/form-data; boundary=x"}
    problem_of(post("/encode", content=b"--y", headers=form), 400, "bad_request")
    problem_of(
        post("/encode", content=b"", headers={"content-type": "multipart/form-data"}), 400, "bad_request"
    )


def test_codes_that_can_not_be_decoded_are_refused(service):
    def detail(codes, tokenizer=CONFIG.tokenizer_fingerprint):
        response = service.client.post("/decode", json={"codes": codes, "tokenizer": tokenizer})
        return problem_of(response, 422, "invalid_codes").detail

    assert detail([[[0, 1], [2, 256]]]) == "codes[0][1][1]: a code is from 0 to 255, got 256"
    assert "2 rows of 2 codes, got 1 rows" in detail([[[0, 1]]])
    assert "made by ffffffffffffffff" in detail([[[0, 1], [2, 3]]], "f" * 16)


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"num_images": 65}, "num_images", "should be less than or equal to 64, got 65"),
        ({"num_images": 0}, "num_images", "should be greater than or equal to 1, got 0"),
        ({"num_steps": 201}, "num_steps", "should be less than or equal to 200, got 201"),
        ({"seed": -1}, "seed", "should be greater than or equal to 0, got -1"),
        ({"seed": 2**53}, "seed", f"should be less than {2**53}, got {2**53}"),
        ({"guidance_scale": 21}, "guidance_scale", "should be less than or equal to 20, got 21"),
        ({"class_label": -1}, "class_label", "should be greater than or equal to 0, got -1"),
        ({"class_label": "x" * 65}, "class_label", "should have at most 64 characters, got 65 characters"),
        ({"sampler": "ddim"}, "sampler", "should be 'euler', 'heun' or 'dpmpp_2m', got 'ddim'"),
        ({"format": "gif"}, "format", "should be 'png', 'webp' or 'jpeg', got 'gif'"),
        ({"deadline_s": 0}, "deadline_s", "should be greater than 0, got 0"),
        ({"class_lable": "coat"}, "class_lable", "unknown field; did you mean class_label?"),
        ([], "body", "should be an object"),
    ],
)
def test_a_bad_field_is_named_with_its_limit_and_value(service, body, field, message):
    problem = problem_of(service.client.post("/generate", json=body), 422, "invalid_request")

    assert problem.detail == f"{field}: {message}"
    assert [(error.field, error.message) for error in problem.errors] == [(field, message)]


def test_all_bad_fields_are_told_at_once(service):
    response = service.client.post("/generate", json={"num_images": 65, "seed": "x", "what": 1})
    problem = problem_of(response, 422, "invalid_request")
    assert [error.field for error in problem.errors] == ["num_images", "seed", "what"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{'seed': 1}", b'{"seed": NaN}', b"\xff", b'{"guidance_scale": Infinity}']
)
def test_what_is_no_json_is_refused(service, body):
    response = service.client.post("/generate", content=body, headers={"content-type": "application/json"})
    problem_of(response, 422, "invalid_request")


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
    ("path", "limit"), [("/generate", 64 * 2**10), ("/decode", 4 * 2**20), ("/encode", 14745600)]
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
    assert response.headers["allow"] == "POST"
    for job_id in (NO_JOB, "x", "..%2f..%2fetc%2fpasswd"):
        for send in (service.client.get, service.client.delete):
            assert send(f"/jobs/{job_id}").status_code == 404
    problem_of(service.client.get(f"/jobs/{NO_JOB}"), 404, "job_not_found")
    problem_of(service.client.delete(f"/jobs/{NO_JOB}"), 404, "job_not_found")


def test_every_error_has_a_status_and_a_title_of_its_own():
    def codes(kind):
        return {kind.code}.union(*map(codes, kind.__subclasses__()))

    for code in codes(ServiceError) - {"internal_error"}:
        assert describe(code, "").title != describe("internal_error", "").title, code


def test_an_error_of_a_newer_worker_is_an_internal_error_that_keeps_its_code():
    problem = describe("cosmic_ray", "a bit flipped", job_id=NO_JOB)
    assert (problem.status, problem.code) == (500, "cosmic_ray")


def test_an_application_needs_a_queue_and_a_pipeline(tmp_path):
    with pytest.raises(SettingsError, match="REDIS_URL is not set"):
        create_app(AppSettings(weights_dir=tmp_path))
    with pytest.raises(ConfigError, match="holds no pipeline"):
        create_app(AppSettings(redis_url="redis://127.0.0.1", weights_dir=tmp_path))


# --- the queue -----------------------------------------------------------------------------------------


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

        engine = Sketcher()
        with working(settings, engine) as worker:
            until(lambda: client.get("/health/ready").status_code == 200)
            assert client.get("/health/ready").json() == {
                "status": "ready",
                "num_ready_workers": 1,
                "num_draining_workers": 0,
                "queue_length": 0,
            }
            engine.is_held.set()
            client.post("/generate", json={})
            until(lambda: engine.works)
            worker._config = type(worker._config)(grace_s=20)
            worker.request_stop()
            until(lambda: client.get("/health/ready").status_code == 503)
            assert "draining" in problem_of(client.get("/health/ready"), 503, "not_ready").detail
            engine.is_held.clear()
        assert client.get("/health/live").json() == {"status": "live"}


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

    monkeypatch.setattr("app.answers.parse_prefer", fail)
    response = service.client.post("/generate", json={})

    problem_of(response, 500, "internal_error")
    assert "secret" not in response.text
    assert "a secret" in caplog.text
    assert "connection" not in response.headers


# --- what there is -------------------------------------------------------------------------------------


def test_pipelines_are_listed_with_an_example_that_works(service):
    (info,) = (PipelineInfo.model_validate(item) for item in service.client.get("/pipelines").json())
    response = service.client.post("/generate", json=info.example.model_dump(), headers=WAIT)

    assert (info.name, info.class_names) == ("tiny", CONFIG.class_names)
    assert job_of(response).status == "succeeded"


def test_home_leads_to_the_documentation(service):
    response = service.client.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")
    assert service.client.get("/docs").status_code == 200


def test_openapi_has_an_example_of_every_body_and_each_is_valid(service):
    document = service.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    models = {"JobView": JobView, "Problem": Problem}
    num_examples = 0

    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["tags"]
        assert operation["summary"]
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                if media_type.startswith("image/"):
                    continue
                name = content["schema"].get("$ref", "").rpartition("/")[2]
                examples = [example["value"] for example in content.get("examples", {}).values()]
                examples += (
                    [content["example"]]
                    if "example" in content
                    else schemas.get(name, {}).get("examples", [])
                )
                assert examples, (operation["operationId"], status, media_type)
                for example in examples:
                    num_examples += 1
                    if name in models:
                        models[name].model_validate(example)
                    if name == "Problem":
                        assert example["status"] == int(status)
    assert num_examples > 40
    assert "HTTPValidationError" not in json.dumps(document)


def test_the_request_examples_of_openapi_are_served(service):
    paths = service.client.get("/openapi.json").json()["paths"]
    for path in ("/generate", "/encode", "/decode"):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert content["examples"]
        for example in content["examples"].values():
            response = service.client.post(path, json=example["value"])
            # The examples are of another pipeline than the one served here.
            assert response.status_code == 202 or Problem.model_validate(response.json()).code in {
                "invalid_codes",
                "invalid_image",
                "invalid_request",
                "unknown_pipeline",
            }
