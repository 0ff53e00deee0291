"""POST /files and what is done with a file's id."""

import asyncio
import base64
import os

import numpy as np
import pytest

from app.main import sweep
from app.sources import MAX_SOURCES_MIB
from models.media.image import encode_image
from tests.app.conftest import WAIT, job_of, problem_of
from workers.messages import MAX_SOURCE_MIB

SQUARES = {grey: encode_image(np.full((9, 9, 1), grey, np.uint8), "png") for grey in (5, 77, 250)}
MIB = 2**20


def upload(service, data: bytes = SQUARES[77], name: str = "square.png", kind: str = "image/png") -> dict:
    response = service.client.post("/files", files={"file": (name, data, kind)})
    assert response.status_code == 201, response.text
    assert response.headers["location"] == f"/files/{response.json()['id']}"
    return response.json()


def encode(service, source, **headers):
    return service.client.post("/encode", json={"source": source}, headers=headers)


def first_codes(job) -> list[int]:
    return [codes[0][0] for codes in job_of(job).result.codes.codes]


def test_a_file_is_told_listed_fetched_and_deleted(service):
    info = upload(service, b"<script>", "pägé.html", "text/html")
    path = f"/files/{info['id']}"

    assert (info["name"], info["media_type"], info["num_bytes"]) == ("pägé.html", "text/html", 8)
    assert service.client.get(path).json() == info
    assert service.client.get("/files").json()["files"][0] == info
    content = service.client.get(f"{path}/content")
    assert content.content == b"<script>"
    assert content.headers["content-type"] == "text/html"
    assert content.headers["etag"] == f'"{info["sha256"]}"'
    # Somebody else's page must not become one of ours.
    assert content.headers["content-disposition"].startswith("attachment; ")
    assert content.headers["content-security-policy"].startswith("sandbox")
    assert service.client.delete(path).status_code == 204
    for method, address in (("GET", path), ("DELETE", path), ("GET", f"{path}/content")):
        problem_of(service.client.request(method, address), 404, "file_not_found")


def test_files_are_listed_in_pages(service):
    for _ in range(3):
        upload(service)
    found, cursor = [], ""
    while cursor is not None:
        page = service.client.get(
            "/files", params={"limit": 2} | ({"cursor": cursor} if cursor else {})
        ).json()
        found += [info["id"] for info in page["files"]]
        cursor = page["next"]
    assert len(found) == len(set(found)) >= 3
    problem_of(service.client.get("/files", params={"cursor": "x"}), 422, "invalid_request")


@pytest.mark.parametrize(
    ("form", "detail"),
    [
        ({"files": {"other": b"x"}}, "other: unknown field; a form has one part, file"),
        (
            {"files": [("file", b"x"), ("other", (None, b"y"))]},
            "other: unknown field; a form has one part, file",
        ),
        ({"files": {"file": (None, b"x")}}, "file: must be a file, with a file name"),
        ({"files": [("file", b"x"), ("file", b"y")]}, "file: at most 1 file, got more"),
        ({"files": {"x": (None, b"x" * 5000)}}, "body: a field of a form is at most 4096 bytes, got more"),
        (
            {"content": b"--b--\r\n", "headers": {"content-type": "multipart/form-data; boundary=b"}},
            "file: is required",
        ),
    ],
)
def test_a_form_that_is_not_one_file_is_refused(service, form, detail):
    assert problem_of(service.client.post("/files", **form), 422, "invalid_request").detail == detail


def test_a_body_that_is_no_form_is_refused(service):
    problem_of(service.client.post("/files", json={}), 415, "unsupported_media_type")


def test_encode_takes_a_file_by_its_id_and_needs_it_no_more(service):
    info = upload(service)
    service.engine.is_held.set()
    job = encode(service, {"file": info["id"]})
    assert job.status_code == 202, job.text
    assert service.client.delete(f"/files/{info['id']}").status_code == 204
    service.engine.is_held.clear()
    assert first_codes(service.client.get(f"/jobs/{job.json()['id']}", headers=WAIT)) == [77]


def test_encode_takes_files_and_base64_in_one_list(service):
    source = [
        {"file": upload(service, SQUARES[250])["id"]},
        base64.b64encode(SQUARES[5]).decode(),
        {"file": upload(service)["id"]},
    ]
    assert first_codes(encode(service, source, **WAIT)) == [250, 5, 77]


@pytest.mark.parametrize(
    ("source", "field", "said"),
    [
        ({"file": "0" * 32}, "source", "there is no file '000"),
        (["AAAA", {"file": "../content"}], "source[1]", "there is no file '../content'"),
        ({"file": 7}, "source.file", "should be a valid string, got 7"),
        ({"file": "x" * 65}, "source.file", "at most 64 characters"),
        ({"file": "0" * 32, "name": "a"}, "source.name", "unknown field"),
        ({}, "source.file", "is required"),
        ([{}], "source[0].file", "is required"),
    ],
)
def test_what_is_no_file_of_the_client_is_refused_by_its_field(service, source, field, said):
    problem = problem_of(encode(service, source), 422, "invalid_request")
    (error,) = problem.errors
    assert error.field == field
    assert said in error.message


def test_a_file_that_is_no_picture_is_refused_by_its_field(service):
    problem = problem_of(
        encode(service, ["AAAA", {"file": upload(service, b"text")["id"]}]), 422, "invalid_image"
    )
    assert problem.detail.startswith("source[0]: ")
    problem = problem_of(encode(service, [{"file": upload(service, b"text")["id"]}]), 422, "invalid_image")
    assert problem.detail == "source[0]: the bytes are not a PNG, JPEG or WebP file"


def test_files_are_bounded_as_other_sources_are(service):
    large = upload(service, bytes(MAX_SOURCE_MIB * MIB))["id"]
    larger = upload(service, bytes(MAX_SOURCE_MIB * MIB + 1))["id"]
    problem = problem_of(encode(service, {"file": larger}), 422, "invalid_request")
    assert problem.detail == "source: a file is at most 10 MiB, got 10.0 MiB"
    many = [{"file": large}] * (MAX_SOURCES_MIB // MAX_SOURCE_MIB + 1)
    problem = problem_of(encode(service, many), 422, "invalid_request")
    assert problem.detail == "source: the files of a request are at most 64 MiB together, got 70.0 MiB"


def test_the_idempotency_key_of_a_file_is_over_its_bytes(service):
    first, same, other = upload(service)["id"], upload(service)["id"], upload(service, SQUARES[5])["id"]
    key = {"Idempotency-Key": "by-file"}
    job = encode(service, {"file": first}, **key).json()
    assert encode(service, {"file": same}, **key).json()["id"] == job["id"]
    problem_of(encode(service, {"file": other}, **key), 422, "idempotency_key_reused")


def test_the_service_sweeps_files_that_expired(service):
    old, young = upload(service), upload(service)
    services = service.app.state.services
    os.utime(services.files.find(old["id"], None).path, (1, 1))
    encode(service, {"file": young["id"]}, **WAIT)  # starts the reader of events
    loop = services.queue._job_events._task.get_loop()  # to which the queue's connections belong
    asyncio.run_coroutine_threadsafe(sweep(services), loop).result(10)
    problem_of(service.client.get(f"/files/{old['id']}"), 404, "file_not_found")
    assert service.client.get(f"/files/{young['id']}").status_code == 200
