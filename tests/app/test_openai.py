"""OpenAI's Images API, asked by its official client, unmodified, over a real connection."""

import base64
import hashlib
import io
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import redis
from PIL import Image

from app.main import create_app
from tests.app.conftest import Service, serving, settings_for
from tests.fake_engine import SIDE_PX, grey_of
from tests.waiting import wait_until
from workers.queue.records import queue_key

SIZE = f"{SIDE_PX}x{SIDE_PX}"
SNEAKER = {"prompt": "sneaker", "model": "tiny"}
PATH = "/v1/images/generations"


def client_of(client: httpx.Client, **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="sk-secret", max_retries=0, **options)


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with client_of(service.client) as client:
        yield client


def grey_in(data: bytes, format: str) -> int:
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == (format, (SIDE_PX, SIDE_PX))
        return image.convert("L").getpixel((0, 0))


def failure_of(response: httpx.Response, status: int, code: str) -> dict:
    """Check the envelope of a failure, and return what is in it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]
    assert "sk-secret" not in response.text
    return error


# --- pictures --------------------------------------------------------------------------------------------


def test_pictures_come_in_base64_with_the_seed_that_made_them(client):
    answer = client.images.generate(**SNEAKER, n=2, size="auto", quality="auto", extra_body={"seed": 7})
    assert [grey_in(base64.b64decode(each.b64_json), "PNG") for each in answer.data] == [
        grey_of(7, 0),
        grey_of(7, 1),
    ]
    assert (answer.size, answer.output_format, answer.background) == (SIZE, "png", "opaque")
    assert (answer.usage, answer.quality) == (None, None)
    assert (answer.model, answer.seed, answer.warnings) == ("tiny", 7, [])


def test_a_picture_is_the_same_as_that_of_generate(service, client):
    answer = client.images.generate(**SNEAKER, output_format="webp", extra_body={"seed": 9, "num_steps": 3})
    body = {"pipeline": "tiny", "class_label": "Sneaker", "seed": 9, "num_steps": 3}
    ours = service.client.post("/generate", json=body, headers={"Accept": "image/webp"})
    assert base64.b64decode(answer.data[0].b64_json) == ours.content


def test_pictures_by_url_are_whole_addresses_that_are_served(client):
    answer = client.images.generate(
        **SNEAKER, response_format="url", output_format="jpeg", extra_body={"seed": 5}
    )
    (picture,) = answer.data
    assert picture.b64_json is None
    assert grey_in(httpx.get(picture.url).content, "JPEG") == grey_of(5, 0)


def test_openais_own_models_are_the_default_pipeline_and_that_is_told(client):
    for name, by_url in (("dall-e-3", True), ("gpt-image-1", False)):
        answer = client.images.generate(prompt="sneaker", model=name, style="vivid", user="someone")
        assert (answer.model, len(answer.warnings)) == ("tiny", 1)
        assert name in answer.warnings[0]
        assert (answer.data[0].url is not None) == by_url
    assert client.images.generate(prompt="sneaker").warnings == []


def test_the_answer_names_its_job_and_a_key_makes_one_job_of_two_requests(service, client):
    def ask(**options):
        return client.images.with_raw_response.generate(
            **SNEAKER, extra_headers={"Idempotency-Key": "images"}, **options
        )

    first, again = ask(), ask(response_format="url")
    assert first.headers["smalti-job-id"] == again.headers["smalti-job-id"]
    assert again.headers["idempotency-replayed"] == "true"
    job = service.client.get(f"/jobs/{first.headers['smalti-job-id']}").json()
    assert job["result"]["seed"] == first.parse().seed
    sha256 = hashlib.sha256(base64.b64decode(first.parse().data[0].b64_json)).hexdigest()
    assert job["result"]["outputs"][0]["sha256"] == sha256
    with pytest.raises(openai.BadRequestError, match="Idempotency-Key"):
        ask(n=2)


def test_a_sample_that_failed_keeps_its_place(client):
    answer = client.images.generate(**SNEAKER, n=3, extra_body={"seed": 670})
    assert [each.b64_json is None for each in answer.data] == [False, True, False]
    assert answer.data[1].error["code"] == "not_finite"


# --- streams ---------------------------------------------------------------------------------------------


def test_a_stream_shows_previews_and_then_every_picture(service, client):
    service.engine.is_held.set()
    stream = client.images.generate(**SNEAKER, stream=True, partial_images=1, n=2, extra_body={"seed": 7})
    events = iter(stream)
    partial = next(events)
    service.engine.is_held.clear()
    completed = list(events)

    assert partial.type == "image_generation.partial_image"
    with Image.open(io.BytesIO(base64.b64decode(partial.b64_json))) as image:
        assert (image.format.lower(), f"{image.width}x{image.height}") == (
            partial.output_format,
            partial.size,
        )
    assert [event.type for event in completed] == ["image_generation.completed"] * 2
    for index, event in enumerate(completed):
        assert grey_in(base64.b64decode(event.b64_json), "PNG") == grey_of(7, index)
        assert (event.index, event.size, event.output_format, event.quality) == (index, SIZE, "png", "auto")
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    assert (
        service.client.get(f"/jobs/{stream.response.headers['smalti-job-id']}").json()["status"]
        == "succeeded"
    )


@pytest.mark.parametrize(("seed", "num_pictures"), [(666, 0), (670, 1)])
def test_a_failure_in_a_stream_is_the_clients_exception(client, seed, num_pictures):
    pictures = []
    stream = client.images.generate(**SNEAKER, stream=True, n=2, extra_body={"seed": seed})
    with pytest.raises(openai.APIError) as caught:
        pictures.extend(stream)
    assert (caught.value.code, len(pictures)) == ("not_finite", num_pictures)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_ends_its_job_unless_it_can_ask_again(service, client, is_stream):
    def ask_and_leave(**headers: str) -> str:
        known = {*service.engine.works, *service.engine.dropped}
        with pytest.raises(openai.APITimeoutError):
            list(client.images.generate(**SNEAKER, stream=is_stream, extra_headers=headers, timeout=0.3))
        (job_id,) = {*service.engine.works, *service.engine.dropped} - known
        return job_id

    service.engine.is_held.set()
    left = ask_and_leave()
    wait_until(lambda: service.client.get(f"/jobs/{left}").json()["status"] == "cancelled")
    wait_until(lambda: left in service.engine.dropped)
    kept = ask_and_leave(**{"Idempotency-Key": f"leaves {is_stream}"})
    time.sleep(0.2)
    assert service.client.get(f"/jobs/{kept}").json()["status"] == "running"


# --- models ----------------------------------------------------------------------------------------------


def test_models_are_the_pipelines_that_draw(client):
    (model,) = client.models.list()
    assert (model.id, model.object) == ("tiny", "model")
    assert model.created > 1.7e9
    assert client.models.retrieve("tiny") == model
    for name in ("dall-e-3", "tiny2", "x" * 300):
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(name)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


# --- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"model": "sdxl"}, "model", "known are tiny"),
        ({"prompt": "cat"}, "prompt", "T-shirt/top, Sneaker"),
        ({"prompt": "x" * 1001}, "prompt", "at most 1000"),
        ({"size": "1024x1024"}, "size", f"{SIZE} only"),
        ({"n": 11}, "n", "10"),
        ({"output_format": "gif"}, "output_format", "'jpeg'"),
        ({"output_compression": 50}, "output_compression", "send 100"),
        ({"background": "transparent"}, "background", "colour pipelines"),
        ({"response_format": "url", "stream": True}, "response_format", "b64_json"),
        ({"partial_images": 4}, "partial_images", "3"),
        ({"style": "noto"}, "style", "class_label"),
        ({"extra_body": {"seed": -1}}, "seed", "0"),
        ({"extra_body": {"colour": 1}}, "colour", "unknown field"),
    ],
)  # fmt: skip
def test_what_a_pipeline_lacks_is_refused_by_its_name(client, changes, param, says):
    with pytest.raises(openai.APIStatusError, match=re.escape(says)) as caught:
        client.images.generate(**SNEAKER | changes)
    assert caught.value.status_code == (404 if param == "model" else 400)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_every_failure_below_v1_has_openais_envelope(service, client):
    post, secret = service.client.post, {"Authorization": "Bearer sk-secret"}
    failure_of(service.client.get("/v1/chat/completions", headers=secret), 404, "not_found")
    failure_of(service.client.get("/v1", headers=secret), 404, "not_found")
    assert failure_of(service.client.get(PATH), 405, "method_not_allowed")
    failure_of(post(PATH, json={"prompt": "x" * 70_000}), 413, "body_too_large")
    failure_of(post(PATH, content=b"{}"), 415, "unsupported_media_type")
    failure_of(post(PATH, content=b"{", headers={"Content-Type": "application/json"}), 400, "invalid_request")
    failure_of(post(PATH, json=SNEAKER, headers={"Origin": "https://other.example"}), 403, "forbidden_origin")
    failure_of(post(PATH, json=SNEAKER, headers={"Host": "other.example"}), 421, "misdirected_host")
    assert service.client.get("/v1x").json()["type"] == "urn:smalti:error:not_found"


def test_a_job_that_failed_is_not_tried_again_by_the_client(service):
    with client_of(service.client).with_options(max_retries=2) as client:
        for seed, status, code in ((666, 500, "not_finite"), (667, 400, "out_of_memory")):
            num_jobs = len(service.engine.companies)
            with pytest.raises(openai.APIStatusError) as caught:
                client.images.generate(**SNEAKER, extra_body={"seed": seed})
            assert (caught.value.status_code, caught.value.code) == (status, code)
            assert caught.value.response.headers["smalti-job-id"]
            assert len(service.engine.companies) == num_jobs + 1


def test_a_full_queue_and_a_queue_that_is_away_are_openais_errors(own_redis, tmp_path):
    app = create_app(settings_for(tmp_path, own_redis.url, max_queue_length=1))
    with serving(app) as http, client_of(http) as client:
        http.post("/generate", json={})
        with pytest.raises(openai.RateLimitError) as caught:
            client.images.generate(**SNEAKER)
        assert caught.value.type == "rate_limit_error"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        own_redis.stop()
        with pytest.raises(openai.InternalServerError) as away:
            client.images.generate(**SNEAKER)
        assert (away.value.status_code, away.value.code) == (503, "queue_unavailable")


def test_the_end_of_the_server_is_told_and_leaves_no_job(redis_url, tmp_path):
    app = create_app(settings_for(tmp_path, redis_url))
    with ThreadPoolExecutor(2) as pool, redis.Redis.from_url(redis_url) as server:
        with serving(app) as http:

            def ask(is_stream: bool) -> openai.APIError:
                with client_of(http) as client, pytest.raises(openai.APIError) as caught:
                    list(client.images.generate(**SNEAKER, stream=is_stream))
                return caught.value

            answers = [pool.submit(ask, is_stream) for is_stream in (False, True)]
            wait_until(lambda: server.llen(queue_key("interactive")) == 2)
        assert [answer.result().code for answer in answers] == ["not_ready", "not_ready"]
        assert server.llen(queue_key("interactive")) == 0


def test_the_request_examples_of_openapi_are_valid(service):
    paths = service.client.get("/openapi.json").json()["paths"]
    examples = paths[PATH]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) >= 3
    for example in examples.values():
        body = {**example["value"], "model": "unknown"}
        failure_of(
            service.client.post(PATH, content=json.dumps(body), headers={"Content-Type": "application/json"}),
            404,
            "model_not_found",
        )
