"""An imported prior of prompts in the engine: beside another family, with edits and previews, and its bytes."""

from pathlib import Path

import numpy as np
import pytest

from models.importers.importing import ImportRequest, import_checkpoint
from models.pipeline import Pipeline
from tests.models.importers.amused_folder import publish
from tests.tiny import save_families
from tests.workers.engine.engine_runs import Jobs, digest, noise_image, run
from workers.compute import Work
from workers.engine.engine import Engine
from workers.engine.lanes import Lanes
from workers.engine.previews import PreviewTimer
from workers.engine.seed_promise import SeedPromise


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    save_families(folder)
    source = publish(tmp_path / "theirs")
    import_checkpoint(ImportRequest(str(source), folder / "amused"), lambda _: None)
    return folder


def works(weights: Path) -> list[Work]:
    """Return requests of every kind, some of another masked prior."""
    jobs = Jobs(weights)
    asked: list[dict[str, object]] = [
        {"prompt": "a cat", "num_outputs": 3},
        {"prompt": "a cat", "negative_prompt": "rain", "guidance_scale": 4.0},
        {"prompt": "rain", "guidance_scale": 1.0, "num_steps": 3, "temperature": 0.7},
        {"prompt": "the red cat", "sampler": "ancestral", "num_steps": 5},
        {},
        {"prompt": ""},
    ]
    made = [
        jobs.generate(
            f"amused {number}", pipeline="amused", seed=7, preview=True, return_codes=True, **options
        )
        for number, options in enumerate(asked)
    ]
    made += [
        jobs.generate(f"masked {number}", pipeline="masked", seed=number, labels={"class": number})
        for number in range(3)
    ]
    source, mask = noise_image(3, 8, 8, 3), np.zeros((8, 8, 1), np.uint8)
    mask[2:7, 1:5] = 255
    for number, (part, strength) in enumerate(((None, 0.5), (mask, None))):
        made.append(
            jobs.edit(
                source, part, f"edit {number}", pipeline="amused", seed=number, prompt="a cat",
                return_codes=True, strength=strength,
            )
        )  # fmt: skip
    return made


def test_prompts_in_a_batch_with_others_have_the_bytes_that_they_have_alone(weights: Path) -> None:
    """In bfloat16, as it is served; a blank prompt is what guidance leads away from."""
    pipelines = {name: Pipeline.load(weights / name) for name in ("amused", "masked")}
    promise = SeedPromise("on", num_probes=32, candidates=(1, 4, 16))
    engine = Engine(pipelines, 8, promise=promise, previews=PreviewTimer(every_s=0), lanes=Lanes(1))
    while engine.needs_check:
        engine.check_seeds(60)
    assert all(each.is_kept for each in engine.seed_verdicts().values())
    asked = works(weights)
    alone = {work.job_id: digest(run(engine, [work])[work.job_id]) for work in asked}
    together = run(engine, asked, admit_chance=0.6)
    assert {name: digest(finished) for name, finished in together.items()} == alone
    assert alone["amused 4"] == alone["amused 5"]
    assert len(set(alone.values())) == len(asked) - 1


def test_a_picture_of_a_prompt_is_shown_while_it_is_drawn_and_unknown_letters_are_told(weights: Path) -> None:
    engine = Engine(
        {"amused": Pipeline.load(weights / "amused")}, 8, previews=PreviewTimer(every_s=0, share=1)
    )
    engine.warm_up()
    engine.admit([Jobs(weights).generate(pipeline="amused", prompt="rain 猫", seed=1, preview=True)])
    shown, ended = [], []
    while not engine.is_idle:
        shown += list(engine.previews().values())
        ended += engine.step()
    assert len(shown) > 2
    assert shown[0].array.shape == (8, 8, 3)
    assert ended[0].warnings == ("prompt: '猫' was not understood: this pipeline knows English",)
