"""OpenAI's Files API, asked by its official client, unmodified, over a real connection."""

from collections.abc import Iterator

import openai
import pytest

from tests.app.conftest import Service
from tests.app.test_openai import client_of, failure_of

LINES = b'{"custom_id": "1"}\n'


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with client_of(service.client) as client:
        yield client


def create(client: openai.OpenAI, data: bytes = LINES, name: str = "requests.jsonl"):
    return client.files.create(file=(name, data), purpose="batch")


def test_a_file_is_created_looked_up_fetched_and_deleted(client):
    file = create(client)
    assert (file.object, file.bytes, file.filename, file.purpose) == (
        "file",
        len(LINES),
        "requests.jsonl",
        "batch",
    )
    assert file.status == "processed"
    assert file.expires_at - file.created_at in (86400, 86401)
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == LINES
    assert client.files.delete(file.id).deleted
    for gone in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(openai.NotFoundError, match="there is no file") as failed:
            gone(file.id)
        assert failed.value.code == "file_not_found"


def test_files_are_listed_in_both_orders_and_in_pages(client):
    made = [create(client, b"%d" % number).id for number in range(3)]
    assert {file.id for file in client.files.list().data[:3]} == set(made)
    newest_first = [file.id for file in client.files.list(limit=2)]  # which asks for all pages
    assert newest_first[::-1] == [file.id for file in client.files.list(limit=2, order="asc")]
    assert set(made) <= set(newest_first)
    assert client.files.list(purpose="assistants").data == []


def test_it_is_the_file_that_our_own_api_knows(service, client):
    file = create(client)
    assert service.client.get(f"/files/{file.id}").json()["name"] == "requests.jsonl"


def test_a_file_for_anything_else_is_refused(service, client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("a", b"x"), purpose="assistants")
    assert (refused.value.code, refused.value.param) == ("invalid_request", "purpose")
    assert "must be 'batch', got 'assistants'" in refused.value.message
    with pytest.raises(openai.BadRequestError, match=r"expires_after.* is not supported"):
        client.files.create(
            file=("a", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"data": {"purpose": "batch"}, "files": {"x": b""}}, "x"),
        ({"files": {"file": b"x"}}, "purpose"),
        ({"files": {"purpose": b"batch"}}, "file"),
        ({"files": {"file": (None, b"x")}, "data": {"purpose": "batch"}}, "file"),
    ],
)
def test_a_form_that_is_not_openais_is_refused_in_its_envelope(service, form, param):
    error = failure_of(service.client.post("/v1/files", **form), 400, "invalid_request")
    assert error["param"] == param
