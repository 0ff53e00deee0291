"""Outputs: as answers, and at their own addresses."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from app.errors import RangeNotSatisfiable
from app.routes.outputs import parse_range
from tests.app.conftest import WAIT, job_of, problem_of
from tests.fake_engine import FAILS_SAMPLE_1

NO_JOB = "0" * 32


def grey_pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


@pytest.mark.parametrize(
    ("accept", "format"), [("image/*", "PNG"), ("image/webp", "WEBP"), ("image/jpeg", "JPEG")]
)
def test_accepting_an_image_gives_its_bytes(service, accept, format):
    response = service.client.post("/generate", json={"seed": 200}, headers={"Accept": accept})

    assert response.status_code == 200
    assert response.headers["content-type"] == f"image/{format.lower()}"
    assert Image.open(io.BytesIO(response.content)).format == format
    assert (grey_pixels(response.content) == 200).all()
    assert response.headers["smalti-seed"] == "200"
    assert response.headers["etag"] == f'"{hashlib.sha256(response.content).hexdigest()}"'
    assert job_of(service.client.get(f"/jobs/{response.headers['smalti-job-id']}")).status == "succeeded"


def test_the_body_chooses_among_accepted_image_formats(service):
    response = service.client.post("/generate", json={"format": "webp"}, headers={"Accept": "image/*"})
    assert response.headers["content-type"] == "image/webp"


def test_an_image_type_that_the_body_excludes_is_not_acceptable(service):
    response = service.client.post("/generate", json={"format": "png"}, headers={"Accept": "image/webp"})
    assert "application/json, image/png; got image/webp" in problem_of(response, 406, "not_acceptable").detail


@pytest.mark.parametrize("field", ["num_outputs", "num_images"])
def test_several_images_do_not_fit_into_an_image_answer(service, field):
    response = service.client.post("/generate", json={field: 2}, headers={"Accept": "image/png"})
    assert f"{field} asks for 2" in problem_of(response, 406, "not_acceptable").detail


def test_other_media_types_are_not_acceptable(service):
    problem_of(
        service.client.post("/generate", json={}, headers={"Accept": "text/csv"}), 406, "not_acceptable"
    )
    response = service.client.post("/encode", json={"source": "AAAA"}, headers={"Accept": "image/png"})
    problem_of(response, 406, "not_acceptable")


def test_an_image_that_is_not_done_in_time_is_a_job_to_follow(service):
    service.engine.is_held.set()
    headers = {"Accept": "image/png", "Prefer": "wait=0.05"}
    assert service.client.post("/generate", json={}, headers=headers).status_code == 202


def test_an_output_is_served_as_what_it_is_and_for_ever(service):
    job = job_of(service.client.post("/generate", json={"seed": 5, "num_outputs": 2}, headers=WAIT))
    output = job.result.outputs[1]

    response = service.client.get(output.url)

    assert (grey_pixels(response.content) == 6).all()
    assert (output.sample, output.medium, output.media_type) == (1, "image", "image/png")
    assert (output.width_px, output.height_px) == (8, 8)
    assert len(response.content) == output.num_bytes
    assert hashlib.sha256(response.content).hexdigest() == output.sha256
    assert response.headers["etag"] == f'"{output.sha256}"'
    assert response.headers["content-type"] == "image/png"
    assert response.headers["content-disposition"] == f'inline; filename="{job.id}-1.png"'
    assert "immutable" in response.headers["cache-control"]


def test_images_are_counted_without_the_outputs_that_failed(service):
    body = {"seed": FAILS_SAMPLE_1, "num_outputs": 3}
    job = job_of(service.client.post("/generate", json=body, headers=WAIT))

    assert len(job.result.images) == 2
    image = service.client.get(f"/jobs/{job.id}/images/1")
    assert image.content == service.client.get(f"/jobs/{job.id}/outputs/2").content
    problem = problem_of(service.client.get(f"/jobs/{job.id}/images/2"), 404, "job_not_found")
    assert problem.detail == f"job {job.id} has no image 2; the job is succeeded"


@pytest.mark.parametrize("tag", ["{etag}", 'W/{etag}, "x"', "*"])
def test_an_output_that_the_client_has_is_not_sent_again(service, tag):
    url = output_url(service)
    etag = service.client.get(url).headers["etag"]

    response = service.client.get(url, headers={"If-None-Match": tag.format(etag=etag)})

    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["etag"] == etag


def test_an_output_of_another_type_is_not_acceptable(service):
    response = service.client.get(output_url(service), headers={"Accept": "image/webp"})
    assert "this output is image/png" in problem_of(response, 406, "not_acceptable").detail


def test_a_range_gets_a_part_and_other_parts_make_the_whole(service):
    url = output_url(service)
    whole = service.client.get(url)
    size = len(whole.content)

    first = service.client.get(url, headers={"Range": "bytes=0-9"})
    rest = service.client.get(url, headers={"Range": "bytes=10-", "If-Range": whole.headers["etag"]})

    assert (first.status_code, rest.status_code) == (206, 206)
    assert first.content + rest.content == whole.content
    assert whole.headers["accept-ranges"] == "bytes"
    assert first.headers["content-range"] == f"bytes 0-9/{size}"
    assert rest.headers["content-range"] == f"bytes 10-{size - 1}/{size}"


def test_a_range_of_something_else_is_all_of_it(service):
    url = output_url(service)
    for headers in ({"Range": "bytes=0-9", "If-Range": '"other"'}, {"Range": "bytes=0-1,5-6"}):
        assert service.client.get(url, headers=headers).status_code == 200


def test_a_range_beyond_the_end_is_refused(service):
    url = output_url(service)
    size = len(service.client.get(url).content)
    response = service.client.get(url, headers={"Range": f"bytes={size}-"})
    problem_of(response, 416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{size}"


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=2-", range(2, 10)),
        ("bytes=2-99", range(2, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-99", range(10)),
        ("", None),
        ("bytes=-", None),
        ("bytes=5-2", None),
        ("bytes=0-1,4-5", None),
        ("rows=0-1", None),
        (f"bytes=0-{'9' * 5000}", None),
    ],
)
def test_one_range_is_read_as_rfc_9110_wants(header, part):
    assert parse_range(header, 10) == part


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_a_range_without_bytes_can_not_be_satisfied(header):
    with pytest.raises(RangeNotSatisfiable, match="0 to 9"):
        parse_range(header, 10)


def test_missing_outputs_say_how_their_job_is(service):
    done = job_of(service.client.post("/generate", json={}, headers=WAIT))
    problem = problem_of(service.client.get(f"/jobs/{done.id}/outputs/1"), 404, "job_not_found")
    assert problem.detail == f"job {done.id} has no output 1; the job is succeeded"
    for kind in ("outputs", "images"):
        problem_of(service.client.get(f"/jobs/{NO_JOB}/{kind}/0"), 404, "job_not_found")


@pytest.mark.parametrize("kind", ["outputs", "images"])
def test_an_index_is_a_whole_number_and_a_large_one_is_not_found(service, kind):
    done = job_of(service.client.post("/generate", json={}, headers=WAIT))
    for index in ("64", "65536", "999999999", "9" * 300, "9" * 5000, "0" * 300):
        response = service.client.get(f"/jobs/{done.id}/{kind}/{index}")
        assert len(problem_of(response, 404, "job_not_found").detail) < 100
    for index in ("-1", "x", "1.0", "%201", "+1", "1_0", "%00", "%D9%A2", "0x0"):
        response = service.client.get(f"/jobs/{done.id}/{kind}/{index}")
        assert problem_of(response, 422, "invalid_request").errors[0].field == "index"


def output_url(service) -> str:
    return job_of(service.client.post("/generate", json={}, headers=WAIT)).result.outputs[0].url
