"""A pipeline that takes prompts, through the whole service."""

import io

import pytest
from PIL import Image

from app.local import compute
from tests.app.conftest import serving_weights
from workers.images import encode_image
from workers.messages import GenerateRequest, JobView, PipelineInfo
from workers.settings import WorkerSettings

WAIT = {"Prefer": "wait=60"}
ASKED = {"prompt": "a red cat", "style": "round", "group": "animals", "seed": 3}


@pytest.fixture
def client(redis_url, tiny_prompt_weights, tmp_path):
    with serving_weights(redis_url, tiny_prompt_weights, tmp_path) as client:
        yield client


def test_a_prompt_gives_the_bytes_it_gives_without_a_service(client, tiny_prompt_weights):
    answer = client.post("/generate", json=ASKED, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    _, finished = compute(GenerateRequest(**ASKED), WorkerSettings(weights_dir=tiny_prompt_weights))
    assert encode_image(finished.images[0], "png") == answer.content
    other = client.post(
        "/generate", json={**ASKED, "negative_prompt": "blue"}, headers={"Accept": "image/png"}
    )
    assert other.content != answer.content


def test_a_prompt_that_is_cut_is_told_in_the_result(client):
    body = {**ASKED, "prompt": "a red cat dog apple emoji"}
    job = JobView.model_validate_json(client.post("/generate", json=body, headers=WAIT).content)
    assert job.result.warnings == ["prompt: longer than 6 tokens, so its end was left out"]


def test_a_transparent_background_is_alpha(client):
    body = {**ASKED, "background": "transparent"}
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
    assert (info.style_names, info.group_names) == (("flat", "round", "small"), ("animals", "food"))
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
    refused = client.post("/generate", json={**ASKED, field: value}, headers=WAIT)
    assert refused.status_code == 422, refused.text
    assert field in refused.json()["detail"]
    assert said in refused.json()["detail"]
