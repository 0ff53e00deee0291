"""The engine over a small pipeline that takes prompts, and beside one that takes classes."""

import random
from pathlib import Path

import pytest

from models.pipeline import Pipeline
from tests.workers.engine.engine_runs import Jobs, digest, run
from workers.compute import Finished
from workers.engine.engine import Engine


@pytest.fixture(scope="module")
def pipelines(tiny_prompt_weights: Path) -> dict[str, Pipeline]:
    return {"tiny-prompt": Pipeline.load(tiny_prompt_weights / "tiny-prompt")}


@pytest.fixture(scope="module")
def jobs(tiny_prompt_weights: Path) -> Jobs:
    return Jobs(tiny_prompt_weights)


def test_prompts_get_the_same_bytes_in_any_batch(pipelines, jobs) -> None:
    chance = random.Random(0)
    prompts = [None, "", "a red cat", "blue dog", "a smiling smiling smiling red apple emoji"]
    work = [
        jobs.generate(
            str(i),
            prompt=chance.choice(prompts),
            negative_prompt=chance.choice([None, None, "blue"]),
            style=chance.choice([None, 0, "round"]),
            group=chance.choice([None, "food"]),
            num_outputs=chance.choice([1, 2]),
            seed=chance.randrange(100),
            num_steps=chance.randint(1, 6),
        )
        for i in range(60)
    ]
    alone = {item.job_id: digest(run(Engine(pipelines), [item])[item.job_id]) for item in work}
    for seed in range(4):
        random.Random(seed).shuffle(work)
        ended = run(Engine(pipelines), work, admit_chance=0.5, seed=seed)
        assert {job_id: digest(finished) for job_id, finished in ended.items()} == alone
    assert len(set(alone.values())) > 50


def test_what_is_asked_for_changes_the_picture_and_what_has_no_effect_is_told(pipelines, jobs) -> None:
    def made(**asked: object) -> Finished:
        return run(Engine(pipelines), [jobs.generate(seed=1, num_outputs=8, **asked)])["x"]

    plain = made(prompt="a red cat")
    others = [
        made(prompt="smiling emoji blue"),
        made(prompt="a red cat", style="round"),
        made(prompt="a red cat", group="food"),
        made(prompt="a red cat", negative_prompt="blue"),
        made(prompt="a red cat", guidance_scale=1.0),
        made(),
    ]
    assert len({digest(each) for each in (plain, *others)}) == 7
    assert plain.warnings == ()
    long = made(prompt="a red cat dog apple emoji", negative_prompt="a red cat dog apple emoji")
    assert long.warnings == (
        "prompt: longer than 6 tokens, so it was truncated",
        "negative_prompt: longer than 6 tokens, so it was truncated",
    )
    unguided = made(prompt="a red cat", negative_prompt="blue", guidance_scale=1.0)
    assert unguided.warnings == ("negative_prompt: without effect, as guidance_scale is 1",)


@pytest.mark.parametrize(
    ("prompt", "warning"),
    [
        ("一只猫", "none of it was understood, got '一只猫': this pipeline knows English"),
        ("a 猫 cat", "'猫' was not understood: this pipeline knows English"),
        ("😀", "none of it was understood, got 'grinning face': this pipeline knows English"),
        ("\u200b", r"none of it was understood, got '\u200b': this pipeline knows English"),
        ("a " + "x" * 99, f"'{'x' * 30}…' was not understood: this pipeline knows English"),
        ("1 a 2 a 1 a", "'1', '2' was not understood: this pipeline knows English"),
    ],
)
def test_what_was_not_understood_is_told(pipelines, jobs, prompt: str, warning: str) -> None:
    made = run(Engine(pipelines), [jobs.generate(prompt=prompt, negative_prompt=prompt, num_steps=1)])["x"]
    told = [each for each in made.warnings if "truncated" not in each and "effect" not in each]
    assert told == [f"prompt: {warning}", f"negative_prompt: {warning}"]


def test_pipelines_of_both_kinds_run_side_by_side(pipelines, jobs, tiny_weights: Path) -> None:
    engine = Engine({"tiny": Pipeline.load(tiny_weights / "tiny"), **pipelines})
    engine.warm_up()
    works = [
        Jobs(tiny_weights).generate("tiny", class_label=1, seed=1),
        jobs.generate("tiny-prompt", prompt="a dog", seed=1),
    ]
    ended = run(engine, works)
    assert {name: each.samples[0].signal.shape for name, each in ended.items()} == {
        "tiny": (1, 12, 12),
        "tiny-prompt": (3, 16, 16),
    }
