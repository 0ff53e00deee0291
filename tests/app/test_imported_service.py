"""What was imported is served: pictures to codes and back, and pictures of the classes that the prior has."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from models.importers.importing import ImportRequest, import_checkpoint
from models.pipeline import Pipeline
from models.registry import IMPORTERS
from tests.app.conftest import job_of, serving_weights
from tests.models.importers.toy_format import CLASSES, publish

WAIT = {"Prefer": "wait=60"}


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Two imported pipelines: an autoencoder alone, and a prior that shares it."""
    monkeypatch.setitem(IMPORTERS, "toy", "tests.models.importers.toy_format")
    folder = tmp_path / "weights"
    for name, role, autoencoder in (("own", "autoencoder", None), ("joined", "prior", "own")):
        source = publish(tmp_path / role, role)
        import_checkpoint(ImportRequest(str(source), folder / name, autoencoder=autoencoder), lambda _: None)
    return folder


@pytest.mark.ci
def test_imported_pipelines_encode_decode_and_generate(weights, redis_url, tmp_path):
    with serving_weights(redis_url, weights, tmp_path) as client:
        told = {each["name"]: each for each in client.get("/pipelines").json()}
        assert told.keys() == {"own", "joined"}
        assert tuple(told["joined"]["labels"]["class"]) == CLASSES

        noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "png")
        body = {"source": base64.b64encode(file.getvalue()).decode(), "pipeline": "own"}
        encoded = job_of(client.post("/encode", json=body, headers=WAIT)).result
        autoencoder = Pipeline.load(weights / "own").tokenizer
        images = torch.from_numpy(noise).movedim(-1, 0)[None] / 127.5 - 1
        codes = autoencoder.quantize(autoencoder.encode(images)).codes
        assert encoded.codes.codes == codes.tolist()

        decoded = client.post(
            "/decode",
            json={"codes": encoded.codes.model_dump(mode="json"), "pipeline": "own"},
            headers={"Accept": "image/png"},
        )
        pixels = np.asarray(Image.open(io.BytesIO(decoded.content)))
        expected = (autoencoder.decode_codes(codes)[0].movedim(0, -1) + 1) * 127.5
        assert np.abs(pixels - expected.numpy()).max() <= 0.51  # they are rounded

        asked = {"pipeline": "joined", "class_label": "owl", "seed": 7}
        first, again = (
            client.post("/generate", json=asked, headers={"Accept": "image/png"}) for _ in range(2)
        )
        assert first.status_code == 200, first.text
        assert first.content == again.content
