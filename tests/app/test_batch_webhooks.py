"""The end of a batch is told to the address that its client named."""

import json
from collections.abc import Iterator

import httpx
import pytest

from app.batches.store import BatchStore
from app.main import create_app
from app.settings import AppSettings
from tests.app.conftest import problem_of, serving, settings_for, working
from tests.app.test_batches import LINES, ended, lines, results, row
from tests.app.webhook_receiver import SECRET, receiving
from tests.fake_engine import FakeEngine
from tests.waiting import wait_until

WITH_WEBHOOKS = {"webhook_secret": SECRET, "webhook_hosts": "127.0.0.1", "webhook_retries_s": "0.05"}


@pytest.fixture
def settings(redis_url, tmp_path) -> AppSettings:
    return settings_for(tmp_path, redis_url, **WITH_WEBHOOKS)


@pytest.fixture
def client(settings) -> Iterator[httpx.Client]:
    with serving(create_app(settings)) as client, working(settings, FakeEngine()):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client


def send(client: httpx.Client, url: str, *rows: dict | str) -> dict:
    response = client.post("/batches", params={"webhook_url": url}, content=lines(rows), headers=LINES)
    assert response.status_code == 202, response.text
    return response.json()


def webhook_of(client: httpx.Client, batch_id: str) -> dict:
    wait_until(lambda: client.get(f"/batches/{batch_id}").json()["webhook"]["status"] != "pending")
    return client.get(f"/batches/{batch_id}").json()["webhook"]


def test_every_end_of_a_batch_is_told(client):
    with receiving() as receiver:
        done = send(client, receiver.url, row("a", seed=1), row("b", seed=2))
        assert done["webhook"] == {"status": "pending", "attempts": 0}
        unread = send(client, receiver.url, "nothing")
        upload = client.post("/files", files={"file": lines([row("a", seed=3)])}).json()["id"]
        stored = client.post("/batches", json={"file": upload, "webhook_url": receiver.url}).json()
        ids = [each["id"] for each in (done, unread, stored)]
        for batch_id in ids:
            assert webhook_of(client, batch_id) == {"status": "delivered", "attempts": 1}
        listed = client.get("/batches").json()["batches"]
        assert {each["webhook"]["status"] for each in listed} == {"delivered"}
    told = {each["data"]["id"]: each for each in map(receiver.told, range(3))}
    assert [told[each]["type"] for each in ids] == ["batch.succeeded", "batch.failed", "batch.succeeded"]
    assert told[done["id"]]["data"]["counts"]["succeeded"] == 2
    assert len(receiver.bodies) == 3


def test_a_batch_that_is_cancelled_or_whose_receiver_is_dead_says_so(client):
    with receiving(500) as receiver:
        batch = send(client, receiver.url, *(row(f"r{n}", seed=n) for n in range(2000)))
        client.delete(f"/batches/{batch['id']}")
        assert webhook_of(client, batch["id"]) == {"status": "failed", "attempts": 2}
    assert receiver.told()["type"] == "batch.cancelled"


def test_an_end_that_was_not_told_before_a_crash_is_told_after_it(settings):
    with receiving() as receiver:
        store = BatchStore(settings.batches_dir, settings.batch_ttl_s)
        record, _ = store.create("", lines([row("a")]), webhook_url=receiver.url)
        with store.opened(record.id) as file:
            file.fail("for a test")  # and the process that would tell it is gone
        for _ in range(2):
            with serving(create_app(settings)) as client:
                assert webhook_of(client, record.id)["status"] == "delivered"
    assert len(receiver.bodies) == 1
    assert receiver.told()["data"]["error"]["message"] == "for a test"


def test_where_it_is_told_is_checked_and_belongs_to_the_batch(client):
    content = lines([row("a", webhook_url="https://example.com/"), row("b", seed=1)])
    for params in ({"webhook_url": "http://example.com/"}, {"webhook_url": "https://10.0.0.1/"}):
        problem_of(
            client.post("/batches", params=params, content=content, headers=LINES), 422, "invalid_request"
        )
        body = {"file": "x", **params}
        problem_of(client.post("/batches", json=body), 422, "invalid_request")
    batch = client.post("/batches", content=content, headers=LINES).json()
    ended(client, batch["id"])
    first, second = results(client, batch["id"], order="input")
    assert first["error"]["message"] == "webhook_url: rows of a batch have none; leave it out"
    assert second["status"] == "succeeded"
    assert client.get(f"/batches/{batch['id']}").json()["webhook"] is None


def test_one_key_makes_one_batch_with_one_address(client):
    headers = {**LINES, "Idempotency-Key": "k"}
    made = [
        client.post("/batches", params=params, content=lines([row("a")]), headers=headers)
        for params in ({"webhook_url": "http://127.0.0.1:1/"},) * 2 + ({},)
    ]
    assert made[0].json()["id"] == made[1].json()["id"]
    assert json.loads(made[2].content)["code"] == "idempotency_key_reused"
