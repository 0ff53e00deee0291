"""Requests that a hostile or broken client may send: each is served, or refused in the one shape of a refusal."""

import json
import random
import time

import pytest

from app.errors import PROBLEM_MEDIA_TYPE
from app.root_path import is_below
from tests.app.conftest import problem_of
from tests.fake_engine import FINGERPRINT

SEEDS = range(40)
BODIES_OF_A_SEED = 100
SMALL_ANSWER = 2000  # bytes
CODES = {"codes": [[[1, 2], [3, 4]]], "grid": [2, 2], "codebook_size": 256, "tokenizer": FINGERPRINT}
VALID = [
    (
        "/generate",
        {"class_label": "sneaker", "seed": 7, "num_steps": 3, "guidance_scale": 2, "format": "webp"},
    ),
    ("/generate", {"labels": {"class": 1}, "num_outputs": 2, "return_codes": True, "deadline_s": 30.5}),
    ("/decode", {"codes": CODES, "format": "png", "priority": "batch"}),
    ("/decode", {"codes": CODES["codes"], "tokenizer": FINGERPRINT, "pipeline": "tiny"}),
    ("/decode", {"operation": "encode", "pipeline": "tiny", "seed": None, "codes": CODES, "warnings": []}),
    ("/encode", {"source": ["iVBORw0KGgo="], "effort": 0}),
    ("/v1/images/generations", {"prompt": "sneaker", "model": "tiny", "n": 2, "size": "8x8", "user": "u"}),
    (
        "/v1/images/generations",
        {"prompt": "sneaker", "stream": True, "partial_images": 1, "style": "vivid", "labels": {}, "seed": 7},
    ),
]
ODD = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**400,
    1e300,
    "",
    "7",
    "\0",
    "\ud800",
    "x" * 5000,
    "💥",
    [],
    [[]],
    {},
    {"": {}},
]
TEXTS = [
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 5000,
    '"\\ud83d"',
    "[" * 3000,
    '{"a":1,"a":2}',
    "}",
    ",",
    '"',
    "\\",
    "\0",
]
PATHS = [
    "%00",
    "%ff",
    "..",
    "%2e%2e",
    "%2f",
    "*",
    "0" * 32,
    "-1",
    "9" * 400,
    "é",
    "%F0%9F%92%A5",
    "a" * 5000,
    "",
]
HEADERS = {
    "Accept": ["", "*", "image/*;q=nan", ",;,;", "text/html", "image/png;q=2", "a" * 4000, "\xff"],
    "Prefer": ["wait=", "wait=abc", "wait=-1", "wait=1e9999", "wait=0, wait=9", ";=,", "respond-async"],
    "Content-Type": [
        "",
        "application/json; charset=latin-1",
        "application/json;;=",
        "multipart/form-data",
        "*/*",
    ],
    "Last-Event-ID": ["", "0-0", "9" * 400, "\xff", "(1-1", "-", "+"],
    "Range": ["bytes=-", "bytes=9-0", "bytes=0-,5-", "bytes=" + "9" * 400 + "-", "\xff"],
    "If-None-Match": ["", "*,*", '"', "W/", "\xff"],
}


def mutated(value, rng):
    """Return a JSON value with something odd at one or two places."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        changed = dict(value)
        key = rng.choice(list(changed))
        match rng.randrange(6):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(["", "x" * 3000, "\0", "💥", key + "s", "codes"])] = rng.choice(ODD)
            case _:
                changed[key] = mutated(changed[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        changed = list(value)
        index = rng.randrange(len(changed))
        changed[index] = mutated(changed[index], rng)
        return changed * rng.choice([1, 1, 1, 0, 9])
    return rng.choice(ODD)


def broken(body: bytes, rng) -> bytes:
    """Return a body with a piece cut out, and another put in."""
    start = rng.randrange(len(body))
    end = min(len(body), start + rng.randrange(20))
    piece = rng.choice([b"", rng.randbytes(3), rng.choice(TEXTS).encode(), b"\xff", b"\xef\xbb\xbf"])
    return body[:start] + piece + body[end:]


def check(response, num_bytes_sent: int) -> None:
    if response.status_code >= 400 and is_below(response.url.path, "/v1"):
        assert response.status_code in (400, 404, 405, 413, 415, 429), response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] in ("invalid_request_error", "rate_limit_error")
        assert len(response.content) <= max(num_bytes_sent, SMALL_ANSWER)
    elif response.status_code >= 400:
        code = response.json()["code"] if response.headers["content-type"] == PROBLEM_MEDIA_TYPE else "none"
        problem = problem_of(response, response.status_code, code)
        assert response.status_code in (400, 404, 405, 406, 409, 413, 415, 416, 422, 429), response.text
        assert len(problem.errors) == min(10, problem.num_errors)
        assert len(response.content) <= max(num_bytes_sent, SMALL_ANSWER)


@pytest.mark.ci
@pytest.mark.parametrize("seed", SEEDS)
def test_no_body_makes_the_server_fail(service, seed):
    rng = random.Random(seed)
    for _ in range(BODIES_OF_A_SEED):
        path, valid = rng.choice(VALID)
        value = mutated(valid, rng)
        body = json.dumps(mutated(value, rng) if rng.random() < 0.3 else value).encode()
        body = broken(body, rng) if rng.random() < 0.3 else body
        began_s = time.process_time()
        response = service.client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert time.process_time() - began_s < 2, body[:200]
        check(response, len(body))


@pytest.mark.ci
@pytest.mark.parametrize("seed", SEEDS)
def test_no_address_or_header_makes_the_server_fail(service, seed):
    rng = random.Random(seed)
    job_id = service.client.post("/generate", json={}).json()["id"]
    service.client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=5"})
    for _ in range(BODIES_OF_A_SEED // 2):
        parts = [
            rng.choice([job_id, job_id, *PATHS]),
            rng.choice(["", "outputs", "images", "events", *PATHS]),
        ]
        path = "/".join(["/jobs", *parts, rng.choice(["", "0", *PATHS])][: rng.randrange(2, 5)])
        path = rng.choice(
            [
                path,
                path,
                path,
                f"/v1/models/{rng.choice(PATHS)}",
                "/generate",
                "/encode",
                "/pipelines",
                "/openapi.json",
            ]
        )
        headers = {
            name.encode(): rng.choice(values).encode("latin-1")
            for name, values in HEADERS.items()
            if rng.random() < 0.4
        }
        method = rng.choice(["GET", "GET", "HEAD", "OPTIONS", "POST", "DELETE", "PUT", "PATCH"])
        content = b"{}" if method == "POST" else None
        response = service.client.request(method, path, headers=headers, content=content)
        if method == "HEAD":
            assert response.status_code < 500
        else:
            check(response, len(path) + sum(map(len, headers.values())))
