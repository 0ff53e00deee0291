"""Bodies that want to cost more than they weigh: refused at once, in few words."""

import json
import time

import pytest

from app.routes.bodies import MAX_FIELDS, MAX_PARTS, MAX_VALUES
from tests.app.conftest import problem_of
from tests.fake_engine import FINGERPRINT

JSON = {"Content-Type": "application/json"}
SMALL_ANSWER = 1500  # bytes; longer only if what was sent is longer
WIDE = {f"name{number}": 1 for number in range(100_000)}


def codes(value: str) -> str:
    return f'{{"tokenizer": "{FINGERPRINT}", "codes": {value}}}'


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


BODIES = {  # claim: (path, body, the detail's beginning)
    "a level of nesting missing": (
        "/decode",
        codes(json.dumps([1] * 500_000)),
        "codes[0]: should be a valid list",
    ),
    "one grid of a flat list": (
        "/decode",
        codes(json.dumps([[1] * 500_000])),
        "codes[0]: tiny has 2 x 2 codes",
    ),
    "many empty grids": ("/decode", codes(json.dumps([[]] * 100_000)), "codes: should have at most 64 items"),
    "a wrong list in an object": (
        "/decode",
        codes(json.dumps({"codes": [1] * 200_000, "grid": ["x"] * 200_000, "lengths": ["x"] * 200_000})),
        "codes.codes[0]: should be a valid list, got 1",
    ),
    "a list where a code belongs": (
        "/decode",
        codes(json.dumps([[[[1] * 500_000, 2], [1, 1]]])),
        "codes[0][0][0]: a code is from 0 to 255, got a list of 500000",
    ),
    "a deep list where a code belongs": (
        "/decode",
        codes(f"[[[{nested(500)}, 2], [1, 1]]]"),
        "codes[0][0][0]: a code is from 0 to 255, got a list of 1",
    ),
    "a long text": ("/decode", codes(json.dumps("1" * 2**21)), "codes: should be an object or"),
    "unknown fields": ("/decode", json.dumps(WIDE), f"body: an object in it has at most {MAX_FIELDS} fields"),
    "unknown fields of codes": ("/decode", json.dumps({"codes": WIDE}), "body: an object in it has at most"),
    "long unknown names": (
        "/decode",
        json.dumps({f"{letter * 100_000}": 1 for letter in "abcdefghijklm"}),
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ),
    "wrong labels": (
        "/generate",
        json.dumps({"labels": dict.fromkeys(list(WIDE)[:250], True)}),
        "labels.name0: should be a valid string or should be a valid integer, got true",
    ),
    "a long label set": ("/generate", json.dumps({"labels": {"k" * 60_000: 1}}), "labels.kkk"),
    "a label of many digits": (
        "/generate",
        f'{{"class_label": {"9" * 90}}}',
        "class_label: should be less",
    ),
    "more values than any request has": (
        "/encode",
        json.dumps({"source": [1] * (MAX_VALUES + 2)}),
        f"body: has at most {MAX_VALUES} values, got {MAX_VALUES + 1}",
    ),
    "more lists than any request has": (
        "/encode",
        json.dumps([[]] * MAX_PARTS),
        f"body: has at most {MAX_PARTS} lists and objects, got {MAX_PARTS + 1}",
    ),
    "numbers where files belong": ("/encode", json.dumps({"source": [1] * 500_000}), "source[0]: should be"),
    "a file that is too large": (
        "/encode",
        json.dumps({"source": "A" * 20 * 2**20}),
        "source: a file is at most 10 MiB, got 15.0 MiB",
    ),
}


@pytest.mark.parametrize("claim", BODIES)
def test_a_body_is_refused_at_once_and_in_few_words(service, claim):
    path, body, detail = BODIES[claim]
    began_s = time.process_time()
    response = service.client.post(path, content=body, headers=JSON)
    took_s = time.process_time() - began_s  # of the processor, so that a busy machine fails no one

    assert problem_of(response, 422, response.json()["code"]).detail.startswith(detail)
    assert len(response.content) <= max(len(body), SMALL_ANSWER)
    assert took_s < 3  # 0.1 is usual; it was 10 to 48 where each element had an error of its own


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"[" * 60_000, 400, "body: its lists and objects are nested too deep"),
        (b'{"seed": ' + b"9" * 101 + b"}", 400, "body: a whole number in it has more than 100 digits"),
        (b'{"prompt": "caf\xe9"}', 400, "body: is not UTF-8: got byte 0xe9 at 15"),
        (b'{"seed": NaN}', 422, "body: is not valid JSON: NaN is no number in JSON"),
        (b'{"seed": -Infinity}', 422, "body: is not valid JSON: -Infinity is no number in JSON"),
        (b'{"guidance_scale": 1e999}', 422, "guidance_scale: should be a finite number, got inf"),
        (b'{"seed": 1, "seed": 2}', 422, "body: the field 'seed' is named twice in one object"),
        (b'{"labels": {"a": 1, "a": 2}}', 422, "body: the field 'a' is named twice in one object"),
        (b'{"\\ud83d": 1}', 422, "body: the name of a field has half of a surrogate pair"),
        (b'{"prompt": "\\ud83d"}', 422, "prompt: should be a valid string"),
        (b"", 422, "body: is required"),
        (b"null", 422, "body: should be an object"),
        (b'{"seed": 1} {}', 422, "body: is not valid JSON: Extra data"),
    ],
)
def test_json_that_can_not_be_meant_is_refused_with_the_reason(service, body, status, detail):
    response = service.client.post("/generate", content=body, headers=JSON)
    code = "bad_request" if status == 400 else "invalid_request"
    problem = problem_of(response, status, code)
    assert problem.detail.startswith(detail)
    assert problem.num_errors == len(problem.errors) == (1 if status == 422 else 0)


@pytest.mark.parametrize("body", [b'\xef\xbb\xbf{"seed": 1}', b'{"class_label": "Sneaker"}', b"\n{}\n"])
def test_json_may_begin_with_a_byte_order_mark_and_white_space(service, body):
    assert service.client.post("/generate", content=body, headers=JSON).status_code == 202


@pytest.mark.parametrize(
    ("charset", "status"), [("utf-8", 202), ('"UTF-8"', 202), ("latin-1", 415), ("x" * 99, 415)]
)
def test_json_is_utf_8(service, charset, status):
    headers = {"Content-Type": f"application/json; charset={charset}"}
    assert service.client.post("/generate", content=b"{}", headers=headers).status_code == status


@pytest.mark.parametrize(
    "numbers", [["9" * 4200] * 2000, ["9" * 5000] + ["1"] * MAX_PARTS], ids=["many", "one among many"]
)
def test_endless_digits_are_not_read(service, numbers):
    began_s = time.process_time()
    response = service.client.post("/encode", content=f'{{"source": [{",".join(numbers)}]}}', headers=JSON)
    assert "more than 100 digits" in problem_of(response, 400, "bad_request").detail
    assert time.process_time() - began_s < 3
