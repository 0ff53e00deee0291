"""Batches by the client: sent, followed over a network that breaks, waited for, cancelled."""

import asyncio
import json

import pytest

from smalti import AsyncClient, BatchTimeout, Client, InvalidRequest, NotFound, UnusableSource
from tests.client.test_client import png
from tests.fake_engine import FAILS_SAMPLES, FINGERPRINT, grey_of
from tests.waiting import wait_until

ROWS = [
    {"id": f"row-{seed}", "operation": "generate", "body": {"class_label": "Sneaker", "seed": seed}}
    for seed in range(5)
]


def write_rows(folder, rows=ROWS):
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def greys(row) -> list[int]:
    return [output.image().getpixel((0, 0)) for output in row.result.outputs]


def test_a_batch_of_prompts_gives_pictures_in_their_order(client):
    batch = client.batch([{"class_label": "Sneaker", "seed": 3}, {"seed": 4}], num_outputs=2)
    rows = list(batch.results(order="input"))
    assert [(row.id, row.line, row.status) for row in rows] == [("0", 1, "succeeded"), ("1", 2, "succeeded")]
    assert [greys(row) for row in rows] == [[grey_of(seed, 0), grey_of(seed, 1)] for seed in (3, 4)]


def test_a_batch_is_made_of_a_file_and_of_an_upload_of_one(client, tmp_path):
    path = write_rows(tmp_path)
    for rows in (path, str(path), client.upload(path, media_type="application/jsonl")):
        batch = client.batch(rows)
        assert {row.id: greys(row) for row in batch.results()} == {
            f"row-{seed}": [grey_of(seed, 0)] for seed in range(5)
        }
        assert batch.wait(timeout_s=20).counts.succeeded == 5


def test_where_the_end_is_told_goes_along_with_the_batch(client, tmp_path):
    path = write_rows(tmp_path)
    for rows in (path, ROWS, client.upload(path, media_type="application/jsonl")):
        with pytest.raises(InvalidRequest, match="SMALTI_WEBHOOK_SECRET"):  # which that service lacks
            client.batch(rows, webhook_url="https://example.com/hook?of=mine&too")


def test_a_batch_encodes_and_decodes_what_people_have(client):
    file = client.upload(png(9))
    encoded = [
        row.result.codes for row in client.batch([png(3), file], operation="encode").results(order="input")
    ]
    assert [codes.codes[0][0][0] for codes in encoded] == [3, 9]
    by_hand = {"codes": encoded[1].numpy(), "tokenizer": FINGERPRINT}
    decoded = client.batch([encoded[0], by_hand], operation="decode").results(order="input")
    assert [greys(row) for row in decoded] == [[3], [9]]


def test_a_row_that_fails_says_why_and_the_others_go_on(client):
    rows = [ROWS[0], {"id": "bad", "body": {"seed": "x"}}, {"id": "ill", "body": {"seed": FAILS_SAMPLES}}]
    batch = client.batch(rows)
    ended = {row.id: row for row in batch.results()}
    assert ended["row-0"].error is None
    assert "seed" in ended["bad"].error.message
    assert ended["ill"].error.code == "not_finite"
    counts = batch.refresh().counts
    assert (counts.succeeded, counts.failed) == (1, 2)


def test_the_same_key_finds_the_same_batch_and_it_is_listed(client, tmp_path):
    path = write_rows(tmp_path)
    first, again = (client.batch(path, idempotency_key="the same") for _ in range(2))
    assert first.id == again.id
    assert client.get_batch(first.id).id == first.id
    assert next(client.batches()).id == first.id
    first.wait(20)
    assert first.id in [batch.id for batch in client.batches(status="succeeded")]
    with pytest.raises(NotFound):
        client.get_batch("0" * 20)


def test_a_batch_that_takes_longer_goes_on_or_is_cancelled(client, service):
    service.engine.is_held.set()
    batch = client.batch(ROWS)
    wait_until(lambda: batch.refresh().counts.running)
    with pytest.raises(BatchTimeout, match=r"0 of 5 rows have.*client\.get_batch") as late:
        batch.wait(0.1)
    assert late.value.batch.id == batch.id
    assert list(batch.results(follow=False)) == []
    batch.cancel()
    service.engine.is_held.clear()
    assert batch.wait(20).status == "cancelled"
    assert {row.status for row in batch.results()} <= {"cancelled", "succeeded"}


def test_results_go_on_over_a_network_that_breaks_and_come_once(service, network):
    service.engine.step_s = 0.02
    with Client(network.url, retry_s=10) as client:
        batch = client.batch([{"seed": seed} for seed in range(30)])
        seqs = []
        for row in batch.results(fetch=False):
            seqs.append(row.seq)
            if row.seq % 10 == 0:
                network.break_connections()
    assert seqs == list(range(1, 31))


def test_results_go_on_after_the_row_that_is_known(client):
    batch = client.batch(ROWS)
    batch.wait(20)
    assert [row.line for row in batch.results(order="input", after=3)] == [4, 5]
    assert [row.seq for row in batch.results(after=2, fetch=False)] == [3, 4, 5]


def test_what_is_no_batch_is_said(client, tmp_path):
    with pytest.raises(ValueError, match="rows: is a path, or a list of requests, got one dict"):
        client.batch({"seed": 1})
    with pytest.raises(UnusableSource, match="can't read"):
        client.batch(tmp_path / "none.jsonl")
    with pytest.raises(InvalidRequest, match="there is no row"):
        client.batch([])


async def _use(url: str, folder) -> None:
    async with AsyncClient(url, retry_s=5) as client:
        batch = await client.batch(write_rows(folder))
        rows = [row async for row in batch.results(order="input")]
        assert [greys(row) for row in rows] == [[grey_of(seed, 0)] for seed in range(5)]
        assert (await batch.wait(20, progress=True)).counts.succeeded == 5
        assert (await batch.refresh()).has_ended
        assert (await (await client.get_batch(batch.id)).cancel()).status == "succeeded"
        assert batch.id in [each.id async for each in client.batches()]


def test_the_async_client_does_the_same(service, tmp_path):
    asyncio.run(_use(service.url, tmp_path))
