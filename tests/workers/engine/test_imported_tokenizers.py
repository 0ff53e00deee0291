"""Tokenizers from elsewhere in the engine: they encode, decode and measure as our own do."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models.importers import llamagen_vq, maskgit_vqgan
from models.importers.base import Source
from models.importers.building import build
from models.pipeline import Pipeline
from tests.models.importers.published import small
from tests.workers.engine.engine_runs import Jobs, digest, noise_image, run
from workers.engine.engine import Engine


@pytest.fixture(scope="module", params=[("llamagen", llamagen_vq, 128), ("maskgit", maskgit_vqgan, 64)])
def pipeline(request, tmp_path_factory) -> Pipeline:
    name, importer, size_px = request.param
    tensors, _ = small(name)
    imported = importer.read(Source(Path("model.pt"), tensors), {"image_size_px": str(size_px)})
    return build([imported], tmp_path_factory.mktemp("weights") / "theirs", "theirs")


@pytest.fixture(scope="module")
def jobs(pipeline, tmp_path_factory) -> Jobs:
    folder = tmp_path_factory.mktemp("catalog")
    (folder / "theirs").mkdir()
    pipeline.spec.save(folder / "theirs" / "pipeline.json")
    return Jobs(folder)


def made(pipeline, *work):
    return run(Engine({"theirs": pipeline}, max_batch_size=8), list(work))


def test_images_have_the_codes_and_the_pixels_of_the_tokenizer_itself(pipeline, jobs) -> None:
    image = noise_image(0, *pipeline.autoencoder.signal_shape[1:], 3)
    finished = made(pipeline, jobs.encode(image, return_psnr=True))["x"]
    signal = torch.from_numpy(image).movedim(-1, 0)[None].float() / 127.5 - 1
    with torch.inference_mode():
        codes = pipeline.autoencoder.quantize(pipeline.autoencoder.encode(signal)).codes
        decoded = pipeline.autoencoder.decode(pipeline.autoencoder.lookup(codes))
    assert finished.codes.codes == codes.tolist()
    assert finished.codes.codebook_size == 64
    error = (decoded - signal).square().mean().item()
    assert finished.samples[0].psnr_db == pytest.approx(10 * math.log10(4 / error), abs=1e-3)
    (sample,) = made(pipeline, jobs.decode(codes.tolist()))["x"].samples
    assert np.allclose(sample.signal, decoded[0].numpy(), atol=1e-5)


def test_the_same_image_has_the_same_codes_and_pixels_in_any_company(pipeline, jobs) -> None:
    images = [noise_image(seed, *pipeline.autoencoder.signal_shape[1:], 3) for seed in range(2)]
    alone = [made(pipeline, jobs.encode(image))["x"] for image in images]
    together = made(pipeline, *(jobs.encode(image, job_id=str(i)) for i, image in enumerate(images)))
    assert [digest(each) for each in alone] == [digest(together[str(i)]) for i in range(2)]
    codes = [each.codes.codes for each in alone]
    decoded = [made(pipeline, jobs.decode(each))["x"] for each in codes]
    batch = made(pipeline, *(jobs.decode(each, job_id=str(i)) for i, each in enumerate(codes)))
    assert [digest(each) for each in decoded] == [digest(batch[str(i)]) for i in range(2)]
