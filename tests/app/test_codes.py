"""/encode and /decode; the engine's codes are greys."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image

from app.main import sweep
from models.media.image import encode_image, load_image
from tests.app.conftest import WAIT, job_of, problem_of
from tests.fake_engine import CODEBOOK_SIZE, FINGERPRINT, GRID, SIDE_PX
from tests.waiting import wait_until
from workers.errors import InternalError

WHITE = np.full((7, 7, 1), 255, np.uint8)
SQUARE = encode_image(np.full((20, 30, 3), 77, np.uint8), "png")


def grey_pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


@pytest.fixture
def encoded(service):
    """A job that /encode answered, as JSON."""
    return service.client.post("/encode", files={"file": SQUARE}, headers=WAIT).json()


def test_encode_takes_base64_and_files_alike_under_either_name(service):
    post, text = service.client.post, base64.b64encode(SQUARE).decode()
    answers = [
        post("/encode", json={"source": text}, headers=WAIT),
        post("/encode", json={"image": text}, headers=WAIT),
        post("/encode", files={"source": SQUARE}, headers=WAIT),
        post("/encode", files={"file": SQUARE}, data={"pipeline": "tiny"}, headers=WAIT),
    ]

    result, *others = [job_of(answer).result for answer in answers]
    assert others == [result] * 3
    assert result.codes.codes == [[[77, 77], [77, 77]]]
    assert (result.codes.grid, result.codes.codebook_size) == (GRID, CODEBOOK_SIZE)
    assert result.codes.tokenizer == FINGERPRINT
    assert [(each.sample, each.medium, each.url) for each in result.outputs] == [(0, "image", None)]


def test_encode_takes_several_files_in_their_order(service):
    squares = [encode_image(np.full((9, 9, 1), grey, np.uint8), "png") for grey in (5, 250, 5)]
    body = {"source": [base64.b64encode(square).decode() for square in squares]}
    as_json = job_of(service.client.post("/encode", json=body, headers=WAIT)).result
    files = [("source", square) for square in squares]
    as_form = job_of(service.client.post("/encode", files=files, headers=WAIT)).result

    assert [codes[0][0] for codes in as_json.codes.codes] == [5, 250, 5]
    assert as_form == as_json


def test_of_several_files_the_bad_one_is_named(service):
    body = {"source": [base64.b64encode(SQUARE).decode(), "AAAA"]}
    problem = problem_of(service.client.post("/encode", json=body), 422, "invalid_image")
    assert problem.detail == "source[1]: the bytes are not a PNG, JPEG or WebP file"


def test_a_source_has_one_name_at_a_time(service):
    text = base64.b64encode(SQUARE).decode()
    both = service.client.post("/encode", json={"source": text, "image": text})
    assert problem_of(both, 422, "invalid_request").errors[0].field == "image"
    neither = service.client.post("/encode", json={})
    assert problem_of(neither, 422, "invalid_request").detail == "source: is required"


def test_encode_takes_an_effort_within_bounds(service):
    for asked in ({"effort": "2"}, {"effort": "0"}):
        assert job_of(service.client.post("/encode", files={"file": SQUARE}, data=asked, headers=WAIT)).result
    for asked in ("-1", "9", "much"):
        refused = service.client.post("/encode", files={"file": SQUARE}, data={"effort": asked}, headers=WAIT)
        assert "effort" in problem_of(refused, 422, "invalid_request").errors[0].field


def body_of(job, form):
    codes = job["result"]["codes"]
    return {
        "the job": job,
        "its result": job["result"],
        "its codes": {"codes": codes},
        "the list": {"codes": codes["codes"], "tokenizer": codes["tokenizer"]},
    }[form]


@pytest.mark.parametrize("form", ["the job", "its result", "its codes", "the list"])
def test_what_encode_gives_decode_takes(service, encoded, form):
    body = body_of(encoded, form) | {"format": "webp"}

    decoded = service.client.post("/decode", json=body, headers={"Accept": "image/*"})

    assert decoded.headers["content-type"] == "image/webp", decoded.text
    assert (grey_pixels(decoded.content) == 77).all()
    assert "smalti-seed" not in decoded.headers


def test_a_job_without_a_result_has_nothing_to_decode(service):
    service.engine.is_held.set()
    job = service.client.post("/encode", files={"file": SQUARE}).json()
    problem = problem_of(service.client.post("/decode", json=job), 422, "invalid_request")
    assert problem.detail == "body: is a job without a result: it is queued"


def test_a_job_and_other_codes_beside_it_are_refused(service, encoded):
    body = body_of(encoded, "the job") | {"codes": [[[1, 1], [1, 1]]]}
    problem = problem_of(service.client.post("/decode", json=body), 422, "invalid_request")
    assert problem.detail == "body: holds the codes of a job and others beside it: send one of the two"


@pytest.mark.parametrize("form", ["the job", "its result"])
def test_an_unknown_field_beside_an_answer_is_told(service, encoded, form):
    body = body_of(encoded, form) | {"formt": "webp", "x": 1}
    problem = problem_of(service.client.post("/decode", json=body), 422, "invalid_request")
    assert problem.detail == "formt: unknown field; did you mean format?; x: unknown field"


def test_a_result_without_codes_says_where_codes_come_from(service):
    job = service.client.post("/generate", json={}, headers=WAIT).json()
    for body in (job, job["result"]):
        problem = problem_of(service.client.post("/decode", json=body), 422, "invalid_request")
        assert problem.detail == "body: holds no codes: /encode returns them, and /generate with return_codes"


@pytest.mark.parametrize("status", [None, 7, ["queued"] * 1000, {"a": 1}])
def test_a_job_of_an_odd_status_is_refused(service, status):
    body = {"operation": "encode", "status": status, "result": None}
    problem = problem_of(service.client.post("/decode", json=body), 422, "invalid_request")
    assert problem.detail == "body: is a job without a result: it is of another kind"


def test_generate_returns_codes_that_decode_takes(service):
    body = {"seed": 9, "num_outputs": 2, "return_codes": True}
    generated = service.client.post("/generate", json=body, headers=WAIT).json()
    decoded = job_of(service.client.post("/decode", json=generated, headers=WAIT))

    greys = [grey_pixels(service.client.get(each.url).content)[0, 0] for each in decoded.result.outputs]
    assert greys == [9, 10]


def test_a_file_is_fitted_once_and_the_original_goes_no_further(service):
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    service.engine.is_held.set()
    job = job_of(service.client.post("/encode", files={"file": encode_image(noise, "png")}))
    wait_until(lambda: job.id in service.engine.works)
    work = service.engine.works[job.id]
    (reference,) = work.request.sources

    stored = service.app.state.services.blobs.read(reference)

    assert reference.media_type == "image/png"
    assert len(stored) < 1000
    np.testing.assert_array_equal(load_image(stored, SIDE_PX, SIDE_PX, 1), work.sources[0])


def test_sources_are_swept_once_their_job_has_ended(service):
    services = service.app.state.services
    service.engine.is_held.set()
    job = job_of(service.client.post("/encode", files={"file": encode_image(WHITE, "png")}))
    wait_until(lambda: job.id in service.engine.works)
    (reference,) = service.engine.works[job.id].request.sources

    def sweep_now() -> None:
        # In the server's thread: the queue's connections belong to its event loop.
        loop = services.queue._job_events._task.get_loop()
        asyncio.run_coroutine_threadsafe(sweep(services, margin_s=-1), loop).result(10)

    service.client.get(f"/jobs/{job.id}", headers={"Prefer": "wait=0.01"})  # starts the reader
    sweep_now()
    assert services.blobs.read(reference)
    service.engine.is_held.clear()
    service.client.get(f"/jobs/{job.id}", headers=WAIT)
    sweep_now()
    with pytest.raises(InternalError):
        services.blobs.read(reference)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("data:image/png;base64,AAAA", "is not valid base64"),
        ("AAA", "at least 4 characters, got 'AAA'"),
        ("AAAAA", "is not valid base64"),
        ("AAAA", "not a PNG, JPEG or WebP"),
        (base64.b64encode(SQUARE[:-30]).decode(), "broken or truncated"),
    ],
)
@pytest.mark.parametrize("field", ["source", "image"])
def test_a_bad_image_is_refused(service, field, image, message):
    response = service.client.post("/encode", json={field: image})
    code = "invalid_request" if image == "AAA" else "invalid_image"
    detail = problem_of(response, 422, code).detail
    assert message in detail
    assert detail.startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("form", "code", "detail"),
    [
        (
            {"data": {"effort": "1"}, "files": {"image": SQUARE}},
            "invalid_request",
            "image: is not a file's name",
        ),
        ({"files": {"file": b""}}, "invalid_image", "file: is empty"),
        (
            {"files": {"file": SQUARE}, "data": {"effort": ["1", "2"]}},
            "invalid_request",
            "effort: is there twice; send one",
        ),
        (
            {"files": [("source", b"x")] * 65},
            "invalid_request",
            "source: at most 64 files, got more",
        ),
        (
            {"files": {"file": SQUARE}, "data": {f"x{number}": "1" for number in range(17)}},
            "invalid_request",
            "body: a form has at most 16 fields beside its files, got more",
        ),
        (
            {"files": {"file": SQUARE}, "data": {"pipeline": "x" * 5000}},
            "invalid_request",
            "body: a field of a form is at most 4096 bytes, got more",
        ),
        ({"files": {"n" * 500: SQUARE}}, "invalid_request", f"{'n' * 60}…: is not a file's name"),
        (
            {"files": {"file": SQUARE}, "data": {"n" * 500: "1"}},
            "invalid_request",
            f"{'n' * 60}…: unknown field",
        ),
        ({"files": [("file", SQUARE), ("file", b"x")]}, "invalid_image", "file[1]: the bytes are not a PNG"),
        ({"files": {"file": SQUARE}, "data": {"image": "AAAA"}}, "invalid_request", "image: must be a file"),
        ({"files": {"file": SQUARE}, "data": {"effort": "9"}}, "invalid_request", "effort: should be less"),
        (
            {"files": {"file": SQUARE}, "data": {"pipelines": "tiny"}},
            "invalid_request",
            "pipelines: unknown field; did you mean pipeline?",
        ),
    ],
)
def test_a_bad_form_is_refused(service, form, code, detail):
    problem = problem_of(service.client.post("/encode", **form), 422, code)
    assert problem.detail.startswith(detail)


@pytest.mark.parametrize("media_type", ["multipart/form-data; boundary=x", "multipart/form-data"])
def test_what_is_not_a_form_is_refused(service, media_type):
    response = service.client.post("/encode", content=b"--y", headers={"content-type": media_type})
    problem_of(response, 400, "bad_request")


def test_codes_that_can_not_be_decoded_are_refused(service):
    def detail(codes, tokenizer=FINGERPRINT):
        response = service.client.post("/decode", json={"codes": codes, "tokenizer": tokenizer})
        return problem_of(response, 422, "invalid_codes").detail

    assert detail([[[0, 1], [2, 256]]]) == "codes[0][1][1]: a code is from 0 to 255, got 256"
    assert "has 2 x 2 codes, so 2 here; got 1 of them" in detail([[[0, 1]]])
    assert "made by ffffffffffffffff" in detail([[[0, 1], [2, 3]]], "f" * 16)
