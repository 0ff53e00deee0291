"""Drawing small pictures larger, in the batch that other requests share."""

from pathlib import Path

import numpy as np
import pytest

from models.autoencoders.vq import TokenizerConfig
from models.media.image import ImageSpec
from models.networks.dit import DiTConfig
from models.pipeline import Pipeline
from tests.tiny import save_untrained
from tests.workers.engine.engine_runs import Jobs, digest, noise_image, run
from workers.engine.engine import Engine
from workers.engine.previews import PreviewTimer
from workers.engine.seed_promise import SeedPromise

SMALL = noise_image(5, 6, 6, 1)
WHOLE = noise_image(6, 12, 12, 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Two pipelines of 12×12 grey pictures: "enlarging" those of 6×6, and "tiny"."""
    folder = tmp_path_factory.mktemp("weights")
    tokenizer = TokenizerConfig(image_size_px=12, hidden_channels=8, num_blocks=1, codebook_size=32)
    prior = DiTConfig(grid=(6, 6), hidden_size=32, depth=2, num_heads=2, label_sizes=(3,), source_channels=4)
    labels = {"class": ("cat", "dog", "bird")}
    takes = {"source": ImageSpec(width_px=6, height_px=6, channels=1)}
    save_untrained(folder / "enlarging", tokenizer, prior, labels=labels, takes=takes)
    plain = DiTConfig(grid=(6, 6), hidden_size=32, depth=2, num_heads=2, label_sizes=(3,))
    save_untrained(folder / "tiny", tokenizer, plain, labels=labels)
    return folder


@pytest.fixture(scope="module")
def pipelines(weights: Path) -> dict[str, Pipeline]:
    return {name: Pipeline.load(weights / name) for name in ("enlarging", "tiny")}


@pytest.fixture(scope="module")
def jobs(weights: Path) -> Jobs:
    return Jobs(weights)


def test_a_picture_drawn_larger_has_its_bits_in_any_company(pipelines, jobs) -> None:
    def engine() -> Engine:
        return Engine(pipelines, max_batch_size=4, promise=SeedPromise("on"))

    asked = {"pipeline": "enlarging", "num_outputs": 2}
    works = [
        jobs.edit(SMALL, job_id="first", seed=1, **asked),
        jobs.edit(noise_image(7, 6, 6, 1), job_id="second", seed=1, class_label="dog", num_steps=6, **asked),
        jobs.generate("plain", pipeline="tiny", seed=1, num_outputs=2),
        jobs.edit(WHOLE, job_id="edit", pipeline="tiny", seed=1, strength=0.5),
        jobs.encode(WHOLE, job_id="encode", pipeline="enlarging"),
    ]
    together = run(engine(), works, admit_chance=0.5, seed=3)
    for work in works:
        assert digest(run(engine(), [work])[work.job_id]) == digest(together[work.job_id]), work.job_id
    assert digest(together["first"]) != digest(together["second"])
    first, other = (sample.signal for sample in together["first"].samples)
    assert first.shape == (1, 12, 12)
    assert np.abs(first - other).mean() > 0.01


def test_guidance_leads_away_from_no_source_even_without_labels(pipelines, jobs) -> None:
    asked = {"pipeline": "enlarging", "seed": 2}
    plain, guided = (
        run(Engine(pipelines), [jobs.edit(SMALL, guidance_scale=scale, **asked)])["x"] for scale in (1.0, 3.0)
    )
    assert digest(plain) != digest(guided)


def test_previews_of_a_larger_picture_have_its_size_and_change_nothing(pipelines, jobs) -> None:
    work = jobs.edit(SMALL, pipeline="enlarging", seed=3, num_steps=5, preview=True)
    engine = Engine(pipelines, previews=PreviewTimer(every_s=0, share=1))
    engine.admit([work])
    shown, ended = [], []
    while not ended:
        ended = engine.step()
        shown.extend(engine.previews().values())
    assert [preview.step for preview in shown] == [1, 2, 3, 4]
    assert shown[0].array.shape == (12, 12, 1)
    assert digest(ended[0]) == digest(run(Engine(pipelines), [work])["x"])


def test_a_pipeline_that_needs_sources_is_checked_and_warmed_up_without_any(pipelines) -> None:
    engine = Engine(pipelines, max_batch_size=2, promise=SeedPromise("on", num_probes=8))
    engine.warm_up()
    while engine.needs_check:
        engine.check_seeds(10)
    assert engine.seed_verdicts()["enlarging"].how == "checked"
