"""The same request with the same `Idempotency-Key` makes one job."""

import asyncio
import hashlib

import httpx
import numpy as np
import pytest
import redis

from app.main import create_app
from models.media.image import IMAGE
from tests.app.conftest import WAIT, job_of, problem_of, serving, settings_for
from workers.queue.records import idempotency_key, job_key

REPLAYED = "idempotency-replayed"
PNG = IMAGE.save(np.full((8, 8, 1), 7, np.uint8), "png")


def key(name: str, **headers: str) -> dict[str, str]:
    return {"Idempotency-Key": name} | headers


def test_a_hundred_equal_requests_at_once_make_one_job(service):
    async def send() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=service.client.base_url, limits=limits, timeout=30) as client:
            headers = key("at once") | WAIT
            return await asyncio.gather(
                *(client.post("/generate", json={"num_outputs": 2}, headers=headers) for _ in range(100))
            )

    answers = asyncio.run(send())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.content for answer in answers}) == 1
    assert sum(REPLAYED in answer.headers for answer in answers) == 99
    assert {answer.headers.get(REPLAYED) for answer in answers} == {"true", None}


def test_another_body_or_address_with_the_same_key_is_refused(service):
    made = service.client.post("/generate", json={"seed": 1}, headers=key("taken"))
    for path, body in (("/generate", {"seed": 2}), ("/generate", {}), ("/encode", {"source": "iVBORw0K"})):
        response = service.client.post(path, json=body, headers=key("taken"))
        if path == "/encode":
            problem_of(response, 422, "invalid_image")  # what can't be served takes no key
        else:
            assert made.json()["id"] in problem_of(response, 422, "idempotency_key_reused").detail
    source = {"source": ("a.png", PNG)}
    problem_of(
        service.client.post("/encode", files=source, headers=key("taken")), 422, "idempotency_key_reused"
    )
    assert (
        service.client.post("/generate", json={"seed": 1}, headers=key("taken")).headers[REPLAYED] == "true"
    )


@pytest.mark.parametrize("codes", ['[["\\ud800"]]', 300 * "[" + 300 * "]"])
def test_what_is_wrong_with_a_request_is_told_with_a_key_as_without(service, codes):
    body = f'{{"codes": {codes}}}'
    for headers in ({}, key("bad codes")):
        answer = service.client.post(
            "/decode", content=body, headers={"Content-Type": "application/json"} | headers
        )
        assert answer.status_code == 422, answer.text


def test_a_replay_waits_for_the_same_job_and_answers_as_its_own_headers_ask(service):
    service.engine.is_held.set()
    queued = service.client.post("/generate", json={"format": "webp"}, headers=key("held"))
    again = service.client.post("/generate", json={"format": "webp"}, headers=key("held"))
    assert (queued.status_code, again.status_code, again.headers["location"]) == (
        202, 202, queued.headers["location"],
    )  # fmt: skip
    service.engine.is_held.clear()

    waited = service.client.post("/generate", json={"format": "webp"}, headers=key("held") | WAIT)
    assert job_of(waited).id == queued.json()["id"]
    (output,) = waited.json()["result"]["outputs"]
    file = service.client.post("/generate", json={"format": "webp"}, headers=key("held", Accept="image/*"))
    assert file.headers["content-type"] == "image/webp"
    assert hashlib.sha256(file.content).hexdigest() == output["sha256"]
    assert file.headers["smalti-job-id"] == queued.json()["id"]


def test_a_replay_that_accepts_another_format_than_the_first_is_refused(service):
    service.client.post("/generate", json={}, headers=key("formats", Accept="image/webp"))
    replayed = service.client.post("/generate", json={}, headers=key("formats", Accept="image/png"))
    assert "image/webp" in problem_of(replayed, 406, "not_acceptable").detail


def test_a_form_is_the_same_where_its_parts_are(service):
    def send(content: bytes, **fields: str) -> httpx.Response:
        return service.client.post(
            "/encode", files={"source": ("a.png", content)}, data=fields, headers=key("form") | WAIT
        )

    other = IMAGE.save(np.full((8, 8, 1), 8, np.uint8), "png")
    first, again = send(PNG), send(PNG)
    assert job_of(first) == job_of(again)
    assert again.headers[REPLAYED] == "true"
    problem_of(send(other), 422, "idempotency_key_reused")
    problem_of(send(PNG, return_psnr="true"), 422, "idempotency_key_reused")


def test_the_failure_of_a_job_is_replayed(service):
    for is_replay in (False, True):
        response = service.client.post("/generate", json={"seed": 666}, headers=key("fails") | WAIT)
        problem_of(response, 500, "not_finite")
        assert (REPLAYED in response.headers) == is_replay


def test_leaving_a_replay_does_not_cancel_the_job(service):
    service.engine.is_held.set()
    queued = service.client.post("/generate", json={}, headers=key("left"))
    leaving = key("left", Prefer="wait=10, cancel-on-disconnect")
    with pytest.raises(httpx.ReadTimeout):
        service.client.post("/generate", json={}, headers=leaving, timeout=0.3)
    service.engine.is_held.clear()
    assert job_of(service.client.get(f"/jobs/{queued.json()['id']}", headers=WAIT)).status == "succeeded"


@pytest.mark.parametrize("value", ["", "x" * 256, "caf\xe9", "tab\there"])
def test_a_key_is_1_to_255_printable_ascii_characters(service, value):
    response = service.client.post("/generate", json={}, headers={"Idempotency-Key": value.encode("latin-1")})
    assert "1 to 255" in problem_of(response, 422, "invalid_request").detail


def test_a_request_has_one_key(service):
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    response = service.client.post("/generate", json={}, headers=twice)
    assert "send one" in problem_of(response, 422, "invalid_request").detail


def test_the_longest_key_of_every_character_is_taken(service):
    longest = "".join(map(chr, range(0x21, 0x7F))) + " " + "~" * 160
    assert len(longest) == 255
    assert service.client.post("/generate", json={}, headers=key(longest)).status_code == 202


def test_a_key_whose_request_was_refused_is_free_again(redis_url, tmp_path):
    app = create_app(settings_for(tmp_path, redis_url, max_queue_length=1))
    with serving(app) as client, redis.Redis.from_url(redis_url) as server:
        first = client.post("/generate", json={})
        problem_of(client.post("/generate", json={}, headers=key("free")), 429, "queue_full")
        problem_of(client.post("/generate", json={"seed": -1}, headers=key("free")), 422, "invalid_request")
        assert client.delete(f"/jobs/{first.json()['id']}").status_code == 200

        made = client.post("/generate", json={"seed": 3}, headers=key("free"))
        assert (made.status_code, REPLAYED in made.headers) == (202, False)
        full = client.post("/generate", json={"seed": 3}, headers=key("free"))  # which needs no room
        assert (full.json()["id"], full.headers[REPLAYED]) == (made.json()["id"], "true")
        assert server.ttl(idempotency_key("", "free")) == -1


def test_a_key_is_kept_as_long_as_its_job(redis_url, tmp_path):
    app = create_app(settings_for(tmp_path, redis_url, result_ttl_s=60))
    with serving(app) as client, redis.Redis.from_url(redis_url) as server:
        job_id = client.post("/generate", json={}, headers=key("kept")).json()["id"]
        client.delete(f"/jobs/{job_id}")
        kept = idempotency_key("", "kept")
        assert 50 < server.ttl(kept) <= 60
        assert server.ttl(job_key(job_id)) == server.ttl(kept)
        problem_of(client.post("/generate", json={}, headers=key("kept")), 409, "job_cancelled")

        server.delete(job_key(job_id))  # as its end comes, should the key's come later
        assert client.post("/generate", json={}, headers=key("kept")).json()["id"] != job_id
        assert server.ttl(kept) == -1
