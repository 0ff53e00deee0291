"""Edits in the engine: among plain requests, told of, shown, and with the known pixels as they were."""

from pathlib import Path

import numpy as np
import pytest

from models.media.base import Array
from models.pipeline import Pipeline
from tests.workers.engine.engine_runs import Jobs, digest, noise_image, run
from workers.compute import Finished
from workers.engine.engine import Engine
from workers.engine.previews import PreviewTimer
from workers.files import encode_output

SOURCE = noise_image(5, 12, 12, 1)
MASK = np.zeros((12, 12, 1), np.uint8)
MASK[2:7, 3:9] = 255


@pytest.fixture(scope="module")
def pipelines(tiny_weights: Path) -> dict[str, Pipeline]:
    return {"tiny": Pipeline.load(tiny_weights / "tiny")}


@pytest.fixture(scope="module")
def jobs(tiny_weights: Path) -> Jobs:
    return Jobs(tiny_weights)


def pixels_of(finished: Finished, engine: Engine) -> list[Array]:
    medium = engine._served["tiny"].medium
    return [medium.from_signal(sample.signal) for sample in finished.samples]


def test_known_pixels_come_back_bit_for_bit_and_the_others_differ_by_sample(pipelines, jobs) -> None:
    engine = Engine(pipelines)
    first, second = pixels_of(run(engine, [jobs.edit(SOURCE, MASK, seed=1, num_outputs=2)])["x"], engine)
    is_new = MASK > 0
    assert (first[~is_new] == SOURCE[~is_new]).all()
    assert (second[~is_new] == SOURCE[~is_new]).all()
    assert (first[is_new] != SOURCE[is_new]).mean() > 0.9
    assert (first[is_new] != second[is_new]).mean() > 0.5


def test_a_low_strength_stays_nearer_to_the_source(pipelines, jobs) -> None:
    (coded,) = run(Engine(pipelines), [jobs.encode(SOURCE)])["x"].codes.codes
    kept = []
    for strength in (0.05, 0.95):
        finished = run(Engine(pipelines), [jobs.edit(SOURCE, seed=2, strength=strength, return_codes=True)])
        kept.append((np.array(finished["x"].codes.codes[0]) == coded).mean())
    assert kept[0] > 2 * kept[1]


def test_edits_share_the_calls_of_plain_samples(pipelines, jobs) -> None:
    asked = {"num_steps": 4, "sampler": "euler", "strength": 1.0}
    plain = jobs.generate("plain", num_steps=4, sampler="euler")
    ended = run(Engine(pipelines), [plain, jobs.edit(SOURCE, job_id="edit", **asked)])
    assert ended["plain"].batch_size == 2.0, "of 4 calls of the prior, and one of the decoder"
    assert ended["edit"].batch_size == pytest.approx((1 + 5 * 2) / 6), "and encoded by itself"


def test_progress_counts_the_calls_that_a_strength_leaves(pipelines, jobs) -> None:
    engine = Engine(pipelines, max_batch_size=2)
    engine.admit([jobs.edit(SOURCE, num_outputs=3, num_steps=10, sampler="euler", strength=0.4)])
    engine.step()
    progress = engine.progress()["x"]
    assert (progress.step, progress.total) == (2, 12)


def test_previews_of_an_edit_are_shown_and_change_nothing(pipelines, jobs) -> None:
    asked = {"seed": 3, "num_steps": 6, "sampler": "euler", "strength": 1.0}
    plain = run(Engine(pipelines), [jobs.edit(SOURCE, MASK, **asked)])["x"]
    engine = Engine(pipelines, previews=PreviewTimer(every_s=0, share=1))
    engine.admit([jobs.edit(SOURCE, MASK, **asked, preview=True)])
    shown, ended = [], []
    while not ended:
        ended = engine.step()
        shown.extend(engine.previews().values())
    assert digest(ended[0]) == digest(plain)
    assert [preview.step for preview in shown] == [1, 2, 3, 4, 5]


def test_a_dropped_edit_gives_its_slot_back(pipelines, jobs) -> None:
    engine = Engine(pipelines, max_batch_size=2)
    for _ in range(5):
        engine.admit([jobs.edit(SOURCE, MASK, num_outputs=2, num_steps=9)])
        engine.step()
        engine.drop(["x"])
    plain = jobs.generate(seed=4, num_outputs=4)
    assert digest(run(engine, [plain])["x"]) == digest(run(Engine(pipelines), [plain])["x"])


def test_a_file_says_that_it_is_composite(pipelines, jobs) -> None:
    work = jobs.edit(SOURCE, MASK, seed=6)
    data = encode_output(work.request, run(Engine(pipelines), [work])["x"], 0, tells_provenance=True)
    assert b"compositeWithTrainedAlgorithmicMedia" in data
    assert b'smalti:seed="6"' in data
