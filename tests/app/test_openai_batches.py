"""OpenAI's Batch API, asked by its official client, unmodified, over a real connection."""

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from app import openai_batch_input
from app.main import create_app
from app.openai_batch_input import BatchInput, RowFailure
from app.openai_batches import BatchNotes, NotesStore
from app.openai_errors import OpenAIError, OpenAIFailure
from app.routes import openai_batches
from tests.app.conftest import Service, serving, settings_for
from tests.app.test_keys import LINES, SECRETS
from tests.app.test_openai import client_of, grey_in
from tests.fake_engine import FAILS_SAMPLE_1, FAILS_SAMPLES, grey_of
from tests.waiting import wait_until

ENDPOINT = "/v1/images/generations"
ENDED = ("completed", "failed", "cancelled")


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with client_of(service.client) as client:
        yield client


def line(custom_id: object, url: str = ENDPOINT, method: str = "POST", **body: object) -> dict:
    body = {"prompt": "sneaker", "model": "tiny", **body}
    return {"custom_id": custom_id, "method": method, "url": url, "body": body}


def create(client: openai.OpenAI, *lines: dict | str, **given):
    text = "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines)
    file = client.files.create(file=("requests.jsonl", text.encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", **given)


def ended(client: openai.OpenAI, batch):
    wait_until(lambda: client.batches.retrieve(batch.id).status in ENDED)
    return client.batches.retrieve(batch.id)


def answers(client: openai.OpenAI, file_id: str) -> dict[str, dict]:
    told = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    assert len({each["id"] for each in told}) == len(told)
    return {each["custom_id"]: each for each in told}


def test_a_batch_of_pictures_is_made_followed_and_read(client):
    batch = create(client, line("a", seed=7), "", line("b", n=2, seed=9), metadata={"run": "1"})
    assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", ENDPOINT, "24h")
    assert batch.status in ("validating", "in_progress", "completed")
    done = ended(client, batch)
    assert (done.status, done.metadata, done.error_file_id) == ("completed", {"run": "1"}, None)
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (2, 2, 0)
    assert done.created_at <= done.in_progress_at <= done.completed_at
    told = answers(client, done.output_file_id)
    assert {each["error"] for each in told.values()} == {None}
    assert told["a"]["response"]["status_code"] == 200
    for custom_id, seed, number in (("a", 7, 1), ("b", 9, 2)):
        body = told[custom_id]["response"]["body"]
        pictures = [grey_in(base64.b64decode(each["b64_json"]), "PNG") for each in body["data"]]
        assert pictures == [grey_of(seed, index) for index in range(number)]
        openai.types.ImagesResponse.model_validate(body)
        assert (body["model"], body["seed"], body["size"], body["output_format"]) == (
            "tiny",
            seed,
            "8x8",
            "png",
        )


def test_no_batch_is_there_before_its_notes_are(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    settings.openai_batches_dir.parent.mkdir(parents=True, exist_ok=True)
    settings.openai_batches_dir.write_bytes(b"")  # a file where the folder should be
    with serving(create_app(settings)) as http, client_of(http) as client:
        with pytest.raises(openai.InternalServerError, match="can't be"):
            create(client, line("a", seed=7))
        assert http.get("/batches").json()["batches"] == []
        settings.openai_batches_dir.unlink()
        batch = create(client, line("a", seed=7), extra_headers={"Idempotency-Key": "one"})
        again = create(client, line("a", seed=7), extra_headers={"Idempotency-Key": "two"})
        assert {each.id for each in client.batches.list()} == {batch.id, again.id}


def test_the_output_file_is_a_file_that_goes_with_its_batch(client):
    done = ended(client, create(client, line("a", seed=7)))
    file = client.files.retrieve(done.output_file_id)
    assert (file.purpose, file.filename) == ("batch_output", f"{done.id}_output.jsonl")
    assert file.bytes == len(client.files.content(file.id).read())
    with pytest.raises(openai.BadRequestError, match="goes with its batch"):
        client.files.delete(file.id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(f"output-{'0' * 20}")


def test_a_request_with_a_wrong_field_fails_alone_with_openais_error(client):
    done = ended(
        client,
        create(
            client,
            line("good", seed=7),
            line("many", n=11),
            line("model", model="gpt-9"),
            line("url", response_format="url"),
            line("ill", seed=FAILS_SAMPLES),
            line("half", seed=FAILS_SAMPLE_1, n=2),
        ),
    )
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 2, 4)
    good = answers(client, done.output_file_id)
    assert set(good) == {"good", "half"}
    assert good["half"]["response"]["body"]["data"][1]["error"]["code"] == "not_finite"
    failed = {
        custom_id: (told["response"]["status_code"], told["response"]["body"]["error"])
        for custom_id, told in answers(client, done.error_file_id).items()
    }
    assert {custom_id: (status, error["code"]) for custom_id, (status, error) in failed.items()} == {
        "many": (400, "invalid_request"),
        "model": (404, "model_not_found"),
        "url": (400, "invalid_request"),
        "ill": (500, "not_finite"),
    }
    assert (failed["many"][1]["param"], failed["url"][1]["param"]) == ("n", "response_format")


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (line("x", url="/v1/embeddings"), "invalid_url", "url"),
        (line("x", method="GET"), "invalid_method", "method"),
        (line("a"), "duplicate_custom_id", "custom_id"),
        (line(7), "invalid_request", "custom_id"),
        ({"method": "POST", "url": ENDPOINT, "body": {}}, "missing_required_parameter", "custom_id"),
        ("{", "invalid_json_line", None),
    ],
)
def test_a_line_that_is_no_request_for_pictures_ends_the_batch_before_it_is_begun(client, bad, code, param):
    done = ended(client, create(client, line("a", seed=1), bad))
    assert (done.status, done.output_file_id, done.request_counts.completed) == ("failed", None, 0)
    (error,) = done.errors.data
    assert (error.code, error.param, error.line) == (code, param, 2)
    assert error.message


def test_a_file_of_empty_lines_is_not_read_to_its_end(client, monkeypatch):
    monkeypatch.setattr(openai_batch_input, "_MAX_LINES", 10)
    batch = create(client, line("a"), *[""] * 9)
    assert ended(client, batch).status == "completed"
    batch = create(client, line("a"), *[""] * 10)
    assert [error.code for error in ended(client, batch).errors.data] == ["too_many_requests"]


def test_a_batch_without_a_request_that_can_be_served_has_failed(client):
    (error,) = ended(client, create(client, line("a", n=0))).errors.data
    assert (error.line, error.param) == (1, "n")
    (error,) = ended(client, create(client, "")).errors.data
    assert error.code == "empty_file"


def test_a_batch_is_cancelled(service, client):
    service.engine.is_held.set()
    batch = create(client, line("a", seed=1), line("b", seed=2))
    wait_until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(client, batch)
    service.engine.is_held.clear()
    assert done.status == "cancelled"
    assert done.cancelled_at
    told = answers(client, done.error_file_id)
    assert {each["error"]["code"] for each in told.values()} == {"batch_cancelled"}


def test_batches_are_listed_in_pages_and_ours_are_not_among_them(service, client):
    made = [create(client, line("a", seed=seed)).id for seed in range(3)]
    row = {"id": "1", "operation": "generate", "body": {"seed": 1}}
    ours = service.client.post(
        "/batches", content=json.dumps(row), headers={"Content-Type": "application/jsonl"}
    ).json()["id"]
    listed = [batch.id for batch in client.batches.list(limit=2)]  # which asks for all pages
    assert listed[:3] == made[::-1]
    assert len(set(listed)) == len(listed)
    assert ours not in listed
    for act in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="there is no batch"):
            act(ours)
    assert service.client.get(f"/batches/{made[0]}").json()["num_rows"] == 1


def test_what_can_not_be_a_batch_is_refused(client):
    file = client.files.create(file=("a", b"x"), purpose="batch")
    for given, param in (
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "0" * 32}, "input_file_id"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
    ):
        asked = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h", **given}
        with pytest.raises(openai.BadRequestError) as refused:
            client.batches.create(**asked)
        assert (refused.value.code, refused.value.param) == ("invalid_request", param)


def test_however_many_batches_are_read_others_are_answered(service, client, monkeypatch):
    is_held, read = threading.Event(), openai_batches.read_input

    def slow(*arguments) -> BatchInput:
        assert is_held.wait(20)
        return read(*arguments)

    monkeypatch.setattr(openai_batches, "read_input", slow)
    file = service.client.post("/files", files={"file": json.dumps(line("a", seed=7)).encode()}).json()
    with ThreadPoolExecutor(64) as threads:  # twice as many as the API has
        made = [
            threads.submit(
                client.batches.create, input_file_id=file["id"], endpoint=ENDPOINT, completion_window="24h"
            )
            for _ in range(64)
        ]
        try:
            wait_until(lambda: service.app.state.services.long_reads.locked())
            for _ in range(10):
                assert service.client.get(f"/files/{file['id']}", timeout=5).status_code == 200
        finally:
            is_held.set()
        assert all(each.result().id for each in made)


def test_a_batch_needs_its_scope_and_is_its_keys_alone(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url, api_keys="\n".join(LINES))  # ada generates, root may all
    with serving(create_app(settings)) as http:
        ada, root, bob = (
            openai.OpenAI(base_url=f"{http.base_url}/v1", api_key=SECRETS[name], max_retries=0)
            for name in ("ada", "root", "bob")
        )
        with ada, root, bob:
            with pytest.raises(openai.PermissionDeniedError, match="scope batch"):
                ada.batches.list()
            batch = root.batches.cancel(create(root, line("a")).id)
            wait_until(lambda: root.batches.retrieve(batch.id).status == "cancelled")
            error_file = root.batches.retrieve(batch.id).error_file_id or f"error-{batch.id}"
            assert root.files.content(error_file).read() is not None
            for client in (ada, bob):
                with pytest.raises(openai.NotFoundError):
                    client.files.content(error_file)


def test_notes_go_with_their_batch(tmp_path):
    notes = NotesStore(tmp_path / "notes")
    notes.sweep((), 0)
    for batch_id in ("a" * 20, "b" * 20):
        notes.put(batch_id, BatchNotes(input_file_id="1", completion_window="24h"))
    notes.sweep((), 60)
    assert notes.has("a" * 20)  # it may be of a batch that is being made
    notes.sweep(["b" * 20], -1)
    assert (notes.has("a" * 20), notes.has("b" * 20)) == (False, True)


def test_of_many_failures_only_the_output_files_take_more_than_the_first(tmp_path):
    notes, batch_id = NotesStore(tmp_path / "notes"), "a" * 20
    failure = RowFailure(status=400, body=OpenAIFailure(error=OpenAIError(message="no", type="x")))
    failures = dict.fromkeys(range(1, 251), failure)
    notes.put(batch_id, BatchNotes(input_file_id="1", completion_window="24h", failures=failures))
    assert list(notes.get(batch_id).failures) == list(range(1, 101))
    assert notes.get_all(batch_id).failures == failures
    notes.sweep([batch_id], -1)
    assert notes.get_all(batch_id).failures == failures
    notes.put(batch_id, BatchNotes(input_file_id="1", completion_window="24h", failures={7: failure}))
    assert list(notes.get_all(batch_id).failures) == [7]
    notes.sweep([], -1)
    assert list((tmp_path / "notes").iterdir()) == []
