"""Encoding, searching, decoding and measuring in the engine: what was lost is told, and what is not finite fails."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models.autoencoders.stages import rows_per_call
from models.autoencoders.vq import Tokenizer, TokenizerConfig
from models.pipeline import Pipeline
from tests.workers.engine.engine_runs import Jobs, noise_image, run
from workers.compute import Finished, Work
from workers.engine.engine import Engine

GREY, WHITE = np.full((12, 12, 1), 128, np.uint8), np.full((12, 12, 1), 255, np.uint8)


@pytest.fixture
def pipeline(tiny_weights: Path) -> Pipeline:
    return Pipeline.load(tiny_weights / "tiny")


@pytest.fixture(scope="module")
def jobs(tiny_weights: Path) -> Jobs:
    return Jobs(tiny_weights)


def made(pipeline: Pipeline, work: Work) -> Finished:
    return run(Engine({"tiny": pipeline}, max_batch_size=3), [work])["x"]


def errors_of(finished: Finished) -> list[str | None]:
    return [sample.error.code if sample.error else None for sample in finished.samples]


@pytest.mark.parametrize("effort", [0, 1])
def test_psnr_is_that_of_what_the_codes_decode_to(pipeline, jobs, effort) -> None:
    images = [noise_image(seed, 12, 12, 1) for seed in range(3)] + [GREY, WHITE]
    plain = made(pipeline, jobs.encode(*images, effort=effort))
    measured = made(pipeline, jobs.encode(*images, effort=effort, return_psnr=True))
    assert measured.codes == plain.codes
    assert all(sample.psnr_db is None for sample in plain.samples)
    decoded = made(pipeline, jobs.decode(measured.codes.codes))
    for sample, image, output in zip(measured.samples, images, decoded.samples, strict=True):
        source = np.moveaxis(image, -1, 0) / 127.5 - 1
        error = np.square(output.signal - source).mean()
        assert sample.psnr_db == pytest.approx(
            10 * math.log10(4 / error), abs=1e-3
        )  # float32 against float64


def test_psnr_of_what_loses_nothing_is_a_number(pipeline, jobs) -> None:
    white = torch.ones(1, 12, 12)
    pipeline.autoencoder.decode = lambda latents: white.expand(len(latents), 1, 12, 12)
    (sample,) = made(pipeline, jobs.encode(WHITE, return_psnr=True)).samples
    assert sample.psnr_db == 100


@pytest.mark.parametrize("effort", [0, 1])
def test_a_picture_whose_latents_overflow_fails_alone(pipeline, jobs, effort) -> None:
    images = [noise_image(seed, 12, 12, 1) for seed in range(2)]
    signals = torch.stack([torch.tensor(np.moveaxis(image, -1, 0) / 127.5 - 1).float() for image in images])
    encoder = pipeline.tokenizer.encoder
    encoder.norm.weight.data.mul_(1000)
    encoder.to_latents.weight.data[:, 1:] = 0  # no sums that overflow on their way
    encoder.to_latents.bias.data.zero_()
    largest = encoder(signals).abs().flatten(1).amax(1)
    good, bad = (images[index] for index in largest.argsort())
    encoder.to_latents.weight.data.mul_(torch.finfo(torch.float32).max / largest.mean())
    alone = made(pipeline, jobs.encode(good, effort=effort))
    ended = made(pipeline, jobs.encode(bad, good, bad, effort=effort))
    assert errors_of(ended) == ["not_finite", None, "not_finite"]
    assert ended.codes.codes == [None, alone.codes.codes[0], None]


def test_codes_that_decode_to_no_number_fail_alone(pipeline, jobs) -> None:
    good, bad = [[1] * 6] * 6, [[1] * 6] * 5 + [[1] * 5 + [7]]
    whole = made(pipeline, jobs.decode([good]))
    pipeline.tokenizer.quantizer.codebook[7] = 3e38
    ended = made(pipeline, jobs.decode([bad, good, bad]))
    assert errors_of(ended) == ["not_finite", None, "not_finite"]
    assert np.array_equal(ended.samples[1].signal, whole.samples[0].signal)


@pytest.mark.parametrize("effort", [0, 1])
def test_codes_that_decode_to_no_number_are_never_searched_nor_measured(pipeline, jobs, effort) -> None:
    pipeline.tokenizer.decoder.to_pixels[0].weight.data.fill_(3e38)
    work = jobs.encode(noise_image(0, 12, 12, 1), effort=effort, return_psnr=True)
    ended = made(pipeline, work)
    assert ended.error is not None
    assert ended.error.code == "not_finite"


def test_infinite_pixels_are_not_clamped_to_black_or_white(pipeline, jobs) -> None:
    pipeline.tokenizer.decoder.to_pixels[0].bias.data.fill_(torch.finfo(torch.float32).max)
    pipeline.tokenizer.decoder.to_pixels[0].weight.data.abs_().mul_(1e36)
    pipeline.tokenizer.decoder.norm.bias.data.fill_(9.0)  # so that all sums are positive
    signal = pipeline.autoencoder.decode(torch.zeros(1, 4, 6, 6))
    assert signal.isnan().any()
    assert made(pipeline, jobs.decode([[[1] * 6] * 6])).error.code == "not_finite"


def test_codes_tell_the_precision_that_they_were_computed_in(tiny_weights, jobs) -> None:
    for precision in ("float32", "tf32"):
        pipeline = Pipeline.load(tiny_weights / "tiny", precision=precision)
        for work in (jobs.encode(noise_image(0, 12, 12, 1)), jobs.generate(return_codes=True, num_steps=1)):
            assert run(Engine({"tiny": pipeline}), [work])["x"].codes.precision == precision


def test_the_codes_of_a_generated_sample_decode_to_its_signal(pipeline, jobs) -> None:
    made_here = made(pipeline, jobs.generate(seed=5, num_outputs=3, num_steps=2, return_codes=True))
    decoded = made(pipeline, jobs.decode(made_here.codes.codes))
    for sample, again in zip(made_here.samples, decoded.samples, strict=True):
        assert np.array_equal(sample.signal, again.signal)


@pytest.mark.parametrize(
    ("device", "size_px", "num_rows"),
    [("cpu", 124, 4), ("cpu", 128, 1), ("cuda", 28, 32), ("cuda", 256, 16), ("cuda", 2048, 4)],
)
def test_an_autoencoder_has_one_number_of_rows_by_device_and_size(device, size_px, num_rows) -> None:
    config = TokenizerConfig(image_size_px=size_px, hidden_channels=8, num_blocks=0)
    assert rows_per_call(Tokenizer(config), torch.device(device)) == num_rows
