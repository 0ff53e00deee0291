"""What can't be sent is named before anything is sent, by an error of this package."""

import asyncio
import json
import math

import httpx
import numpy as np
import pytest

from smalti import AsyncClient, Client, ClientClosed, InvalidArgument, SmaltiError, UnusableSource

ENDLESS: list = []
ENDLESS.append(ENDLESS)
DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.fixture
def client():
    """A client whose service must not be asked."""
    transport = httpx.MockTransport(lambda request: pytest.fail(f"asks {request.url}"))
    with httpx.Client(transport=transport) as http:
        yield Client(http=http)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"guidance_scale": math.nan}, "guidance_scale: must be finite: no nan, no infinity, got nan"),
        ({"guidance_scale": np.float64(-math.inf)}, "guidance_scale: must be finite"),
        ({"labels": {"style": math.inf}}, "labels: must be finite"),
        ({"prompt": "a \ud800 cat"}, "prompt: must be text that UTF-8 can hold"),
        ({"labels": {"style": b"noto"}}, "labels: must be text, numbers, lists and mappings of them"),
        ({"seed": Unshowable()}, "seed: must be text, numbers, lists and mappings of them, got a Unshowable"),
        ({"later": ENDLESS}, "later: holds itself"),
        ({"later": DEEP}, "later: is nested too deeply"),
        ({"timeout_s": math.nan}, "timeout_s: is 0 or more seconds, got nan"),
        ({"timeout_s": -1}, "timeout_s: is 0 or more seconds, got -1"),
        ({"timeout_s": "1"}, "timeout_s: is 0 or more seconds, got '1'"),
        ({"idempotency_key": "a\nb"}, "idempotency_key: is 1 to 255 characters"),
        ({"idempotency_key": 7}, "idempotency_key: is 1 to 255 characters of printable ASCII, got 7"),
    ],
)
def test_a_field_that_cannot_be_sent_is_named(client, fields, said):
    with pytest.raises(InvalidArgument) as raised:
        client.generate(**{"prompt": "a cat", **fields})
    assert str(raised.value).startswith(said)
    assert raised.value.field == said.partition(":")[0]
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, SmaltiError)


def test_numbers_that_are_not_finite_are_named_in_codes_and_forms_too(client):
    with pytest.raises(InvalidArgument, match="codes: must be finite"):
        client.decode(np.full((1, 2, 2), np.nan), tokenizer="0" * 16)
    with pytest.raises(InvalidArgument, match="deadline_s: must be finite"):
        client.encode(b"x", deadline_s=math.inf)


def test_a_request_that_cannot_be_sent_is_one_of_many(client):
    (error,) = client.map("generate", ["a cat"], guidance_scale=math.nan, return_errors=True)
    assert isinstance(error, InvalidArgument)


@pytest.mark.parametrize("job_id", ["", "..", "../files/1", "a?b", "a b", 7, None, "x" * 1000])
def test_what_cannot_be_the_id_of_a_job_is_refused(client, job_id):
    with pytest.raises(InvalidArgument, match="job_id: is the id that a job was given"):
        client.job(job_id)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"base_url": None}, "base_url"),
        ({"base_url": "http://[::1"}, "base_url"),
        ({"base_url": "ws://x"}, "base_url"),
        ({"api_key": b"key"}, "api_key"),
        ({"retry_s": math.nan}, "retry_s"),
        ({"request_timeout_s": math.inf}, "request_timeout_s"),
        ({"request_timeout_s": True}, "request_timeout_s"),
    ],
)
def test_a_client_that_could_not_work_is_not_made(arguments, field):
    with pytest.raises(InvalidArgument) as raised:
        Client(**arguments)
    assert raised.value.field == field


def test_a_closed_client_says_so():
    client = Client()
    client.close()
    with pytest.raises(ClientClosed, match="the client is closed"):
        client.generate("a cat")

    async def ask() -> None:
        async with AsyncClient() as client:
            pass
        with pytest.raises(ClientClosed):
            await client.pipelines()

    asyncio.run(ask())


def test_pictures_that_no_service_takes_are_refused_before_they_are_compressed(client):
    huge = np.broadcast_to(np.uint8(0), (2**13, 2**13))
    with pytest.raises(UnusableSource, match="at most 33554432 pixels, got 67108864"):
        client.encode(huge)
    with pytest.raises(UnusableSource, match="can't be a path"):
        client.encode("a\0b.png")


def test_what_can_be_sent_is_sent_as_it_was():
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(422, json={"code": "invalid_request", "detail": "no", "errors": []})

    with httpx.Client(transport=httpx.MockTransport(answer)) as http, pytest.raises(SmaltiError, match="no"):
        Client(http=http, retry_s=0).generate("čat", seed=np.int64(3), later=[1.5, None])
    assert seen == [{"prompt": "čat", "seed": 3, "later": [1.5, None]}]
