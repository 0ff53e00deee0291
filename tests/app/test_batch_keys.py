"""Batches and API keys: whose they are, what they need, and for how long their outputs can be got."""

import time
from collections.abc import Iterator

import httpx
import pytest
import redis

from app.keys import make_key
from app.main import create_app
from tests.app.conftest import problem_of, serving, settings_for, working
from tests.app.test_batches import LINES, lines, row
from tests.fake_engine import FakeEngine
from tests.waiting import wait_until

SECRETS, KEY_LINES = {}, []
for name, scopes in (
    ("ada", ["batch"]),
    ("bob", ["generate", "batch"]),
    ("cy", ["generate"]),
    ("root", ["admin"]),
):
    SECRETS[name], line = make_key(name, scopes)
    KEY_LINES.append(line)


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


@pytest.fixture
def client(redis_url, tmp_path) -> Iterator[httpx.Client]:
    settings = settings_for(tmp_path, redis_url, api_keys=";".join(KEY_LINES), result_ttl_s=1)
    with serving(create_app(settings)) as client, working(settings, FakeEngine()):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client


def test_a_batch_is_there_for_its_key_and_administrators_alone(client, redis_url):
    body = lines([row("a", seed=1), row("b", seed=2)])
    problem_of(client.post("/batches", content=body, headers=LINES), 401, "unauthorized")
    problem_of(client.post("/batches", content=body, headers=LINES | bearer("cy")), 403, "forbidden")
    batch_id = client.post("/batches", content=body, headers=LINES | bearer("ada")).json()["id"]
    path = f"/batches/{batch_id}"
    wait_until(lambda: client.get(path, headers=bearer("ada")).json()["status"] == "succeeded")

    for owner, is_seen in (("ada", True), ("root", True), ("bob", False)):
        listed = [each["id"] for each in client.get("/batches", headers=bearer(owner)).json()["batches"]]
        assert (batch_id in listed) == is_seen
        for each in (path, f"{path}/results"):
            answer = client.get(each, headers=bearer(owner))
            assert answer.status_code == (200 if is_seen else 404), (owner, each)
    problem_of(client.delete(path, headers=bearer("bob")), 404, "batch_not_found")
    metrics = client.get("/metrics", headers=bearer("root")).text
    assert 'smalti_batch_rows{status="queued"} 0.0' in metrics

    # Redis forgets the job soon; its outputs stay with the batch, for its key.
    result = client.get(f"{path}/results", headers=bearer("ada")).text.splitlines()[0]
    url = httpx.Response(200, text=result).json()["result"]["outputs"][0]["url"]
    with redis.Redis.from_url(redis_url) as server:
        server.flushall()
    expires = int(dict(part.split("=") for part in url.partition("?")[2].split("&"))["expires"])
    assert expires > time.time() + 6 * 86400
    assert client.get(url).status_code == 200
    plain = url.partition("?")[0]
    for owner, status in (("bob", 404), ("cy", 404), ("root", 200)):
        assert client.get(plain, headers=bearer(owner)).status_code == status


def test_idempotency_keys_of_batches_belong_to_one_key(client):
    headers = LINES | {"Idempotency-Key": "mine"}
    first, again, other = (
        client.post("/batches", content=lines([row("a")]), headers=headers | bearer(name)).json()["id"]
        for name in ("ada", "ada", "bob")
    )
    assert first == again != other


def test_a_key_for_batches_alone_may_upload_and_look_at_what_there_is(client):
    made = client.post("/files", files={"file": ("rows.jsonl", lines([row("a")]))}, headers=bearer("ada"))
    asked = {"file": made.json()["id"]}
    assert client.post("/batches", json=asked, headers=bearer("ada")).status_code == 202
    for path in ("/pipelines", "/v1/models", "/v1/files"):
        assert client.get(path, headers=bearer("ada")).status_code == 200, path
    problem_of(client.post("/generate", json={}, headers=bearer("ada")), 403, "forbidden")
