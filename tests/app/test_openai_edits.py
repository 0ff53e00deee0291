"""OpenAI's edits and variations, asked for by its official client, unmodified."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from models.media.image import encode_image, load_image
from tests.app.conftest import serving_weights
from workers.queue import embedded_server


def png(*shape: int, seed: int = 1) -> bytes:
    return encode_image(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), "png")


SOURCE = png(20, 30, 3)
IS_NEW = np.zeros((12, 12, 1), bool)
IS_NEW[3:9, 4:] = True
SMALL = png(12, 12, 3)  # which is not resized
ASKED = {"model": "tiny", "prompt": "dog", "response_format": "b64_json"}


def mask(is_new: np.ndarray = IS_NEW) -> bytes:
    """Return a picture that is transparent where it is drawn anew, and of any colours elsewhere."""
    colours = np.random.default_rng(2).integers(0, 256, (*is_new.shape[:2], 3), dtype=np.uint8)
    return encode_image(np.concatenate([colours, np.where(is_new, 0, 255).astype(np.uint8)], -1), "png")


@pytest.fixture(scope="module")
def http(tiny_weights: Path, tmp_path_factory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("service")
    server = embedded_server.start(folder / "redis")
    try:
        with serving_weights(server.url, tiny_weights, folder / "data") as client:
            yield client
    finally:
        server.stop()


@pytest.fixture(scope="module")
def client(http: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="sk-secret", max_retries=0) as client:
        yield client


def ours(http: httpx.Client, **body: object) -> bytes:
    answer = http.post("/generate", json=body, headers={"Accept": "image/png", "Prefer": "wait=60"})
    assert answer.status_code == 200, answer.text
    return answer.content


def test_an_edit_draws_anew_where_the_mask_is_transparent(client):
    answer = client.images.edit(
        image=("a.png", SMALL), mask=("m.png", mask()), **ASKED, n=2, extra_body={"seed": 7}
    )
    assert (answer.model, answer.seed, answer.size) == ("tiny", 7, "12x12")
    assert len({each.b64_json for each in answer.data}) == 2
    for each in answer.data:
        with Image.open(io.BytesIO(base64.b64decode(each.b64_json))) as image:
            is_same = np.asarray(image)[..., None] == load_image(SMALL, 12, 12, 1)
        assert is_same[~IS_NEW].all()
        assert is_same[IS_NEW].mean() < 0.2


def test_an_edit_without_a_mask_has_the_bytes_of_generate(http, client):
    answer = client.images.edit(image=[SOURCE], **ASKED, extra_body={"seed": 8, "strength": 0.4})
    source = base64.b64encode(SOURCE).decode()
    expected = ours(http, source=source, class_label="dog", seed=8, strength=0.4)
    assert base64.b64decode(answer.data[0].b64_json) == expected


def test_an_edit_is_streamed_as_one(client):
    events = list(
        client.images.edit(image=SOURCE, model="tiny", prompt="cat", stream=True, extra_body={"seed": 1})
    )
    assert [event.type for event in events] == ["image_edit.completed"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as OpenAI has no variations any more
def test_variations_differ_and_have_the_bytes_of_generate(http, client):
    answer = client.images.create_variation(
        image=SOURCE, n=3, model="tiny", size="auto", response_format="b64_json", extra_body={"seed": 5}
    )
    assert len({each.b64_json for each in answer.data}) == 3
    expected = ours(http, source=base64.b64encode(SOURCE).decode(), seed=5)
    assert base64.b64decode(answer.data[0].b64_json) == expected


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        ({"mask": mask(np.zeros((12, 12, 1), bool))}, "mask", "mask: is transparent nowhere"),
        (
            {"mask": mask(IS_NEW[:8])},
            "mask",
            "mask: must have the size of its source, 12 x 12 px, got 12 x 8",
        ),
        ({"image": b"GIF89a"}, "image", "image: the bytes are not a PNG, JPEG or WebP file"),
        ({"prompt": "boat"}, "prompt", "prompt: tiny takes the name of a class instead"),
        ({"image": [SMALL, SMALL]}, "image[]", "image[]: is there twice; send one"),
        ({"size": "1024x1024"}, "size", "size: tiny makes 12x12 only"),
        ({"extra_body": {"strength": 2}}, "strength", "strength: should be less than or equal to 1"),
        ({"extra_body": {"steps": 2}}, "steps", "steps: unknown field"),
    ],
)
def test_what_can_not_be_edited_is_refused_in_words(client, asked, param, message):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(**{"image": SMALL, **ASKED, **asked})
    assert caught.value.param == param
    assert caught.value.body["message"].startswith(message)
