"""The whole service: API, queue, worker, engine and a small pipeline."""

import base64
import io
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from app.cli.local import compute
from tests.app.conftest import job_of, png_of, serving_weights
from workers.messages import GenerateRequest
from workers.settings import WorkerSettings

WAIT = {"Prefer": "wait=60"}
IMAGE = {"Accept": "image/png"}


@pytest.fixture
def client(redis_url, tiny_weights, tmp_path):
    with serving_weights(redis_url, tiny_weights, tmp_path) as client:
        yield client


def result_of(response: httpx.Response):
    assert response.status_code == 200, response.text
    return job_of(response).result


def test_the_same_request_gives_the_same_bytes_with_and_without_a_service(client, tiny_weights, tmp_path):
    requests = [
        GenerateRequest(class_label=label, seed=seed, num_steps=steps, guidance_scale=scale)
        for seed, (label, steps, scale) in enumerate(
            [("cat", 2, 1.0), ("dog", 5, 3.0), (2, 3, 1.5), (None, 4, 2.0), ("bird", 7, 0.0), ("cat", 6, 2.0)]
            * 2
        )
    ]

    def ask(request):
        return client.post("/generate", json=request.model_dump(exclude_unset=True), headers=IMAGE)

    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(ask, requests))

    for request, answer in zip(requests, answers, strict=True):
        assert answer.status_code == 200, answer.text
        assert answer.headers["smalti-seed"] == str(request.seed)
        settings = WorkerSettings(weights_dir=tiny_weights, data_dir=tmp_path, device="cpu")
        resolved, finished = compute(request, settings)
        assert png_of(resolved, finished) == answer.content


def test_an_encoded_image_comes_with_its_psnr_and_a_word_on_the_tokenizer(client):
    image = client.post("/generate", json={"seed": 5}, headers=IMAGE).content
    source = base64.b64encode(image).decode()
    body = {"source": [source, source], "return_psnr": True}
    told = result_of(client.post("/encode", json=body, headers=WAIT))
    first, second = (output.psnr_db for output in told.outputs)
    assert 0 < first == second < 100
    assert [each.split(",")[0] for each in told.warnings] == ["pipeline: none was named"]

    form = {"pipeline": "tiny", "return_psnr": "true"}
    of_form = client.post("/encode", data=form, files={"source": image}, headers=WAIT)
    assert of_form.json()["result"]["outputs"] == [{"sample": 0, "medium": "image", "psnr_db": first}]
    assert of_form.json()["result"]["warnings"] == []
    plain = client.post("/encode", json={"source": source, "pipeline": "tiny"}, headers=WAIT)
    assert plain.json()["result"]["outputs"] == [{"sample": 0, "medium": "image"}]
    assert client.post("/decode", json=of_form.json(), headers=WAIT).status_code == 200


def test_codes_of_a_generated_image_decode_to_its_pixels(client):
    body = {"class_label": "dog", "seed": 5, "num_images": 2, "return_codes": True}
    generated = result_of(client.post("/generate", json=body, headers=WAIT))
    codes = generated.codes
    decoded = result_of(
        client.post("/decode", json={"codes": codes.codes, "tokenizer": codes.tokenizer}, headers=WAIT)
    )

    for result in zip(decoded.images, generated.images, strict=True):
        files = [client.get(image.url).content for image in result]
        assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(file))) for file in files))
        told = [re.findall(rb"digitalsourcetype/(\w+)", file) for file in files]
        assert told == [[b"compositeWithTrainedAlgorithmicMedia"], [b"trainedAlgorithmicMedia"]]
    assert (codes.grid, len(codes.codes)) == ((6, 6), 2)


def test_an_image_becomes_codes_and_codes_an_image(client):
    image = client.post("/generate", json={"class_label": 1, "seed": 1}, headers=IMAGE).content
    as_file = result_of(client.post("/encode", files={"file": image}, headers=WAIT))
    as_json = result_of(
        client.post("/encode", json={"image": base64.b64encode(image).decode()}, headers=WAIT)
    )
    codes = as_file.codes
    decoded = client.post("/decode", json={"codes": codes.model_dump()}, headers=IMAGE)

    assert as_file == as_json
    assert all(0 <= code < codes.codebook_size for grid in codes.codes for row in grid for code in row)
    assert decoded.headers["content-type"] == "image/png"
