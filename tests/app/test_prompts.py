"""A pipeline that takes prompts, through the whole service."""

import io

import pytest
from PIL import Image

from app.cli.local import compute
from tests.app.conftest import job_of, png_of, serving_weights
from workers.messages import GenerateRequest, PipelineInfo
from workers.settings import WorkerSettings

WAIT = {"Prefer": "wait=60"}
REQUEST = {"prompt": "a red cat", "style": "round", "group": "animals", "seed": 3}


@pytest.fixture
def client(redis_url, tiny_prompt_weights, tmp_path):
    with serving_weights(redis_url, tiny_prompt_weights, tmp_path) as client:
        yield client


def test_a_prompt_gives_the_bytes_it_gives_without_a_service(client, tiny_prompt_weights, tmp_path):
    answer = client.post("/generate", json=REQUEST, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    settings = WorkerSettings(weights_dir=tiny_prompt_weights, data_dir=tmp_path, device="cpu")
    resolved, finished = compute(GenerateRequest(**REQUEST), settings)
    assert png_of(resolved, finished) == answer.content
    other = client.post(
        "/generate", json={**REQUEST, "negative_prompt": "blue"}, headers={"Accept": "image/png"}
    )
    assert other.content != answer.content


def test_a_prompt_that_is_cut_is_told_in_the_result(client):
    body = {**REQUEST, "prompt": "a red cat dog apple emoji"}
    job = job_of(client.post("/generate", json=body, headers=WAIT))
    assert job.result.warnings == ["prompt: longer than 6 tokens, so it was truncated"]


def test_a_transparent_background_is_alpha(client):
    body = {**REQUEST, "background": "transparent"}
    with Image.open(
        io.BytesIO(client.post("/generate", json=body, headers={"Accept": "image/png"}).content)
    ) as image:
        assert image.mode == "RGBA"
    refused = client.post("/generate", json=body, headers={"Accept": "image/jpeg"})
    assert refused.status_code == 422
    assert "PNG or WebP" in refused.json()["detail"]


def test_the_list_of_pipelines_says_what_to_ask_for_and_its_example_works(client):
    (info,) = [PipelineInfo.model_validate(each) for each in client.get("/pipelines").json()]
    assert info.takes_prompt
    assert info.labels == {"style": ("flat", "round", "small"), "group": ("animals", "food")}
    answer = client.post(
        "/generate", json=info.example.model_dump(exclude_unset=True), headers={"Accept": "image/png"}
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("prompt", "x" * 1001, "at most 1000"),
        ("style", "neon", "known are flat, round, small"),
        ("class_label", 0, "takes no class"),
        ("background", "blue", "white"),
    ],
)
def test_what_it_can_not_do_is_refused_by_name(client, field, value, said):
    refused = client.post("/generate", json={**REQUEST, field: value}, headers=WAIT)
    assert refused.status_code == 422, refused.text
    assert field in refused.json()["detail"]
    assert said in refused.json()["detail"]
