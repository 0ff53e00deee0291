"""Batches over HTTP: many requests in one file, each of which ends in a row."""

import base64
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from models.media.image import IMAGE
from tests.app.conftest import WAIT, problem_of
from tests.fake_engine import FINGERPRINT, codes_of, grey_of
from tests.waiting import wait_until

LINES = {"Content-Type": "application/jsonl"}


def row(row_id: str, operation: str = "generate", **body: object) -> dict:
    return {"id": row_id, "operation": operation, "body": body}


def lines(rows: Iterable[dict | str]) -> bytes:
    return "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows).encode()


def send(client: httpx.Client, rows: Iterable[dict | str], **headers: str) -> dict:
    response = client.post("/batches", content=lines(rows), headers={**LINES, **headers})
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/batches/{response.json()['id']}"
    return response.json()


def ended(client: httpx.Client, batch_id: str, timeout_s: float = 20) -> dict:
    """Return a batch once it has ended."""
    found = {}

    def has_ended() -> bool:
        found.update(client.get(f"/batches/{batch_id}").json())
        return found["status"] in ("succeeded", "failed", "cancelled")

    wait_until(has_ended, timeout_s)
    return found


def test_every_row_of_a_batch_becomes_a_job_and_ends(service):
    batch = send(service.client, (row(f"r{n}", seed=n) for n in range(40)))
    assert (batch["status"], batch["counts"]["queued"]) == ("queued", 0)
    done = ended(service.client, batch["id"])
    assert done["status"] == "succeeded"
    assert (done["num_rows"], done["counts"]["succeeded"]) == (40, 40)
    assert done["rows_per_s"] > 0
    told = results(service.client, batch["id"])
    num_bytes = sum(output["num_bytes"] for each in told for output in each["result"]["outputs"])
    assert service.app.state.services.batches.get(batch["id"]).num_bytes > num_bytes > 0


def results(client: httpx.Client, batch_id: str, **query: object) -> list[dict]:
    response = client.get(f"/batches/{batch_id}/results", params=query)
    assert response.headers["content-type"].startswith("application/jsonl")
    return [json.loads(line) for line in response.text.splitlines() if line]


def test_results_come_as_rows_ended_or_as_they_came_in(service):
    batch = send(service.client, (row(f"r{n}", seed=n, return_codes=n % 2 == 0) for n in range(120)))
    followed = results(service.client, batch["id"], follow=True)  # until the end
    assert [each["seq"] for each in followed] == list(range(1, 121))
    assert results(service.client, batch["id"]) == followed
    in_order = results(service.client, batch["id"], order="input")
    assert [each["id"] for each in in_order] == [f"r{n}" for n in range(120)]
    assert [each["line"] for each in in_order] == list(range(1, 121))
    assert sorted(followed, key=lambda each: each["line"]) == in_order
    assert results(service.client, batch["id"], after=100) == followed[100:]
    assert results(service.client, batch["id"], order="input", after=118) == in_order[118:]

    first = in_order[0]["result"]
    assert (first["seed"], first["codes"]["codes"]) == (0, [codes_of(grey_of(0, 0))])
    alone = service.client.post("/generate", json={"seed": 1}, headers=WAIT).json()["result"]
    assert in_order[1]["result"]["outputs"][0]["sha256"] == alone["outputs"][0]["sha256"]
    assert service.client.get(in_order[1]["result"]["outputs"][0]["url"]).status_code == 200


def test_lines_that_are_no_requests_are_rows_that_failed(service):
    rows = [
        row("good", seed=1),
        "{not json",
        row("no operation", "paint"),
        row("bad seed", seed="x"),
        row("unknown field", sed=1),
        row("unknown class", class_label="cat"),
        row("urgent", priority="interactive"),
        "[1]",
        "",
        {"operation": "generate", "body": {}},
        row("made NaN", seed=666),
        row("nothing to encode", "encode"),
        row("no picture", "encode", source="AAAA"),
        row("no codes", "decode", codes=[[[1, 999], [2, 3]]], tokenizer=FINGERPRINT),
        {"id": "x" * 129, "operation": "generate", "body": {}},
        '{"id": "\\ud800", "operation": "generate", "body": {}}',
        row("last", seed=2),
        row("told", webhook_url="https://example.com"),
    ]
    batch = send(service.client, rows)
    done = ended(service.client, batch["id"])
    assert (done["status"], done["counts"]["succeeded"], done["counts"]["failed"]) == ("succeeded", 2, 15)
    told = {each["line"]: each for each in results(service.client, batch["id"])}
    assert {told[1]["status"], told[17]["status"]} == {"succeeded"}
    assert 9 not in told  # an empty line is no row
    for number, row_id, code, message in [
        (2, None, "invalid_request", "line 2: is not JSON"),
        (
            3,
            "no operation",
            "invalid_request",
            "line 3: operation: should be 'generate', 'encode' or 'decode'",
        ),
        (4, "bad seed", "invalid_request", "seed: should be a valid integer"),
        (5, "unknown field", "invalid_request", "sed: unknown field; did you mean seed?"),
        (6, "unknown class", "invalid_request", "class_label: tiny has no class 'cat'"),
        (7, "urgent", "invalid_request", "priority: rows of a batch have none"),
        (8, None, "invalid_request", "should be an object with id, operation and body"),
        (10, None, "invalid_request", "line 10: id: is required"),
        (11, "made NaN", "not_finite", "the model made NaN"),
        (12, "nothing to encode", "invalid_request", "source: is required"),
        (13, "no picture", "invalid_image", "source: the bytes are not a PNG, JPEG or WebP file"),
        (14, "no codes", "invalid_codes", "codes[0][0][1]: a code is from 0 to 255, got 999"),
        (15, None, "invalid_request", "id: should have at most 128 characters"),
        (16, None, "invalid_request", "id"),
        (18, "told", "invalid_request", "webhook_url: rows of a batch have none"),
    ]:
        assert (told[number]["id"], told[number]["status"]) == (row_id, "failed"), number
        assert told[number]["error"]["code"] == code
        assert message.lower() in told[number]["error"]["message"].lower()


def test_pictures_and_codes_come_and_go_as_outside_of_a_batch(service):
    png = IMAGE.save(np.full((8, 8, 1), 40, np.uint8), "png")
    source = base64.b64encode(png).decode()
    rows = [
        row("in", "encode", source=source),
        row("two", "encode", source=[source, source]),
        row("out", "decode", codes=[codes_of(9)], tokenizer=FINGERPRINT, format="webp"),
    ]
    batch = send(service.client, rows)
    ended(service.client, batch["id"])
    one, two, out = results(service.client, batch["id"], order="input")
    assert one["result"]["codes"]["codes"] == [codes_of(40)]
    assert two["result"]["codes"]["codes"] == [codes_of(40)] * 2
    answer = service.client.get(out["result"]["outputs"][0]["url"])
    assert answer.headers["content-type"] == "image/webp"
    # A result may be sent back as it is.
    back = send(service.client, [{"id": "back", "operation": "decode", "body": one["result"]}])
    assert ended(service.client, back["id"])["counts"]["succeeded"] == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "there is no row"),
        (b" \n\n", "there is no row"),
        (b"{}\n" * 100_001, "at most 100000 rows"),
    ],
    ids=["empty", "blank", "too many"],
)
def test_what_can_be_no_batch_is_refused_at_once(service, body, told):
    answer = service.client.post("/batches", content=body or b" ", headers=LINES)
    assert told in problem_of(answer, 422, "invalid_request").detail


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row("a"), row("b"), row("a")], "lines 1 and 3 have one id, 'a'"),
        (["x", "y"], "no line is a row; the first: line 1: is not JSON"),
    ],
    ids=["an id twice", "no row"],
)
def test_a_batch_that_can_not_be_read_has_failed_and_says_why(service, rows, told):
    batch = ended(service.client, send(service.client, rows)["id"])
    assert (batch["status"], batch["num_rows"]) == ("failed", 0)
    assert told in batch["error"]["message"]
    assert results(service.client, batch["id"], follow=True) == []


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_only_json_lines_are_taken(service, media_type):
    headers = {"Content-Type": media_type}
    problem_of(service.client.post("/batches", content=b"{}", headers=headers), 415, "unsupported_media_type")
    foreign = {**LINES, "Origin": "https://other.example"}
    problem_of(service.client.post("/batches", content=b"{}", headers=foreign), 403, "forbidden_origin")


def test_cancelling_ends_what_runs_and_what_waits(service):
    service.engine.is_held.set()
    batch = send(service.client, [row(f"r{n}", seed=n) for n in range(300)])["id"]
    wait_until(lambda: service.client.get(f"/batches/{batch}").json()["counts"]["running"] >= 8)
    assert service.client.delete(f"/batches/{batch}").status_code == 202
    done = ended(service.client, batch)
    assert done["status"] == "cancelled"
    assert done["counts"] == {"queued": 0, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 300}
    told = results(service.client, batch)
    assert [each["seq"] for each in told] == list(range(1, 301))
    assert {(each["status"], each["error"]["code"]) for each in told} == {("cancelled", "job_cancelled")}
    again = service.client.delete(f"/batches/{batch}")
    assert (again.status_code, again.json()["ended_at"]) == (200, done["ended_at"])
    wait_until(lambda: not service.engine.works)


def test_small_batches_are_done_beside_a_large_one(service):
    large = send(service.client, [row(f"r{n}", seed=n % 256) for n in range(3000)])["id"]
    wait_until(lambda: service.client.get(f"/batches/{large}").json()["counts"]["succeeded"] > 0)
    small = [send(service.client, [row(f"s{n}", seed=n) for n in range(20)])["id"] for _ in range(2)]
    for each in small:
        assert ended(service.client, each)["counts"]["succeeded"] == 20
    counts = service.client.delete(f"/batches/{large}").json()["counts"]
    assert counts["succeeded"] < 3000
    ended(service.client, large)


def test_batches_are_listed_in_pages_the_newest_first(service):
    ids = [send(service.client, [row("a", seed=1)])["id"] for _ in range(3)]
    for batch_id in ids:
        ended(service.client, batch_id)
    first = service.client.get("/batches", params={"limit": 2, "status": "succeeded"}).json()
    assert [each["id"] for each in first["batches"]] == ids[:0:-1]
    second = service.client.get("/batches", params={"limit": 2, "cursor": first["next"]}).json()
    assert second["batches"][0]["id"] == ids[0]
    bad = service.client.get("/batches", params={"cursor": "0" * 20})
    assert "cursor" in problem_of(bad, 422, "invalid_request").detail


def test_one_key_makes_one_batch_however_often_it_is_sent(service):
    body, headers = lines([row("a", seed=1)]), {**LINES, "Idempotency-Key": "night-7"}
    with ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(lambda _: service.client.post("/batches", content=body, headers=headers), range(20))
        )
    assert {each.status_code for each in answers} <= {200, 202}
    (batch_id,) = {each.json()["id"] for each in answers}
    assert sum("idempotency-replayed" not in each.headers for each in answers) == 1
    ended(service.client, batch_id)
    again = service.client.post("/batches", content=body, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, batch_id)
    other = service.client.post("/batches", content=lines([row("b")]), headers=headers)
    assert batch_id in problem_of(other, 422, "idempotency_key_reused").detail


@pytest.mark.parametrize("path", ["", "/results"])
@pytest.mark.parametrize("batch_id", ["0" * 20, "0" * 32, "..%2f..", "x", "%00", "é"])
def test_a_batch_that_is_not_there_is_not_found(service, batch_id, path):
    answer = service.client.get(f"/batches/{batch_id}{path}")
    assert answer.json()["code"] in ("batch_not_found", "not_found")
    assert answer.status_code == 404


def test_a_batch_may_be_an_upload_and_so_may_its_sources(service):
    png = IMAGE.save(np.full((8, 8, 1), 41, np.uint8), "png")
    picture, rows = (
        service.client.post("/files", files={"file": (name, content)}).json()["id"]
        for name, content in (("a.png", png), ("rows.jsonl", lines([row("a", seed=1)])))
    )
    batch = service.client.post("/batches", json={"file": rows}).json()
    assert (batch["file"], ended(service.client, batch["id"])["counts"]["succeeded"]) == (rows, 1)

    named = [row("a", "encode", source={"file": picture}), row("b", "encode", source={"file": "0" * 32})]
    batch = send(service.client, named)
    ended(service.client, batch["id"])
    good, bad = results(service.client, batch["id"], order="input")
    assert good["result"]["codes"]["codes"] == [codes_of(41)]
    assert "source: there is no file" in bad["error"]["message"]

    problem_of(service.client.post("/batches", json={"file": "0" * 32}), 404, "file_not_found")
    problem_of(service.client.post("/batches", json={}), 422, "invalid_request")
    problem_of(service.client.post("/batches", json={"rows": []}), 422, "invalid_request")
