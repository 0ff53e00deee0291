"""Distillation: a student that goes in a few straight steps where its guided teacher went in many."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.conditioning import Conditions
from models.options import ConfigError, FlowOptions
from models.pipeline import Pipeline
from models.priors.flow import FlowStage, draw_noise
from models.spec import PipelineSpec
from models.stage import Sample, SampleSpec, run_path
from training.distill import DistillConfig, Paths, cross, train_distilled, walk
from training.examples import Captions, Examples
from training.precision import autocast

WEIGHTS = Path(__file__).parents[2] / "weights"


@pytest.fixture
def config(captioned: Path, tiny_prompt_weights: Path, tmp_path: Path) -> DistillConfig:
    """A run over an untrained teacher that takes prompts."""
    shutil.copytree(tiny_prompt_weights / "tiny-prompt", tmp_path / "weights/teacher")
    return DistillConfig(
        teacher=tmp_path / "weights/teacher",
        folder=tmp_path / "run",
        output=tmp_path / "weights/student",
        data=str(captioned),
        num_paths=64,
        num_new_paths=4,
        batch_size=16,
        num_steps=60,
        warmup_steps=2,
        samples_every=60,
        is_compiled=False,
        num_threads=1,
        log_every=1,
        checkpoint_every_s=0,
    )


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


@pytest.mark.ci
def test_the_student_is_a_pipeline_of_few_steps_nearer_to_its_teacher(config: DistillConfig) -> None:
    teacher_spec = PipelineSpec.load(config.teacher / "pipeline.json")
    student = Pipeline.load(train_distilled(config))

    assert student.spec.shares_with == "teacher"
    assert sorted(path.name for path in config.output.iterdir()) == ["pipeline.json", "prior.safetensors"]
    defaults = student.spec.defaults
    assert student.spec == replace(teacher_spec, name="student", defaults=defaults, shares_with="teacher")
    assert (defaults.num_steps, defaults.sampler, defaults.guidance_scale) == (4, "euler", 1.0)
    found = losses(config.folder)
    assert sum(found[-10:]) < 0.8 * sum(found[:10])
    assert (config.folder / "samples/0000060.png").exists()

    teacher = Pipeline.load(config.teacher)
    conditions = teacher.conditions({"style": 1}, "red apple").expand(8)
    noise = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    wanted = cross(teacher, noise, conditions, 0, 1, 16)
    errors = []
    for network in (teacher.prior.network, student.prior.network):
        x = noise
        with torch.inference_mode():
            for window in range(4):
                x = x + network(x, torch.full((8,), window / 4), conditions).float() / 4
        errors.append(float((x - wanted).square().mean()))
    assert errors[1] < errors[0]


@pytest.mark.ci
def test_distillation_resumes_to_the_same_losses(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_distilled(config)
    stopped = replace(config, folder=config.folder.parent / "stopped")
    draw, calls = Paths.draw, iter(range(100))

    def draw_for_a_while(self: Paths, *rest: object) -> object:
        if next(calls) == 20:
            raise KeyboardInterrupt
        return draw(self, *rest)

    monkeypatch.setattr(Paths, "draw", draw_for_a_while)
    with pytest.raises(KeyboardInterrupt):
        train_distilled(stopped)
    monkeypatch.undo()
    train_distilled(stopped, resume=True)
    assert losses(stopped.folder) == losses(config.folder)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_the_teacher_leads_to_where_it_samples(config: DistillConfig, sampler: str) -> None:
    teacher = Pipeline.load(config.teacher)
    options = replace(teacher.spec.defaults, sampler=sampler, num_steps=16, time_easing=0.0)
    teacher.spec = replace(teacher.spec, defaults=options)
    conditions = teacher.conditions({"style": 0}, "blue dog").expand(2)
    noise = torch.stack([draw_noise((4, 4, 4), 3, i) for i in range(2)])
    null = teacher.prior.null_conditions()
    samples = [Sample(SampleSpec(3, options, conditions[i : i + 1], null), i) for i in range(2)]
    run_path([FlowStage(teacher.prior.network, 2)], samples)
    led = cross(teacher, noise, conditions, 0, 1, 16)
    torch.testing.assert_close(led, torch.stack([sample.value for sample in samples]))


def test_windows_start_where_the_student_comes_to(config: DistillConfig) -> None:
    teacher, student = Pipeline.load(config.teacher), Pipeline.load(config.teacher).prior.network.float()
    with torch.no_grad():
        student.to_velocity.weight.mul_(1.5)
    conditions = teacher.conditions({"style": 0}, "blue dog").expand(2)
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    windows = walk(teacher, student, noise, conditions, config)
    x = noise
    for window in range(4):
        t = window / 4
        torch.testing.assert_close(windows.starts[:, window], x)
        led = cross(teacher, x, conditions, t, t + 0.25, config.teacher_steps_per_window)
        torch.testing.assert_close(windows.ends[:, window], led)
        with torch.no_grad(), autocast(torch.device("cpu")):
            x = x + student(x, torch.full((2,), t), conditions).float() / 4


def test_the_shipped_student_is_nearer_to_its_teacher_than_as_many_of_the_teachers_steps() -> None:
    teacher, student = (Pipeline.load(WEIGHTS / name) for name in ("fashion-mnist", "fashion-mnist-turbo"))
    assert student.spec.defaults == FlowOptions(num_steps=4, sampler="euler", guidance_scale=1.0)
    conditions = Conditions(torch.tensor([[3], [8]]))
    wanted = teacher.generate(conditions, 0)
    short = teacher.generate(conditions, 0, replace(teacher.spec.defaults, num_steps=4))
    few = student.generate(conditions, 0)
    assert (few - wanted).square().mean() < 0.5 * (short - wanted).square().mean()


def test_a_teacher_is_not_distilled_on_other_labels(config: DistillConfig, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(config.data, data)
    lines = (data / "captions.jsonl").read_text()
    (data / "captions.jsonl").write_text(lines.replace('"flat"', '"flatter"'))
    said = r"line 9: labels\.style: known are flat, round, small, got 'flatter'"
    with pytest.raises(ConfigError, match=said):
        train_distilled(replace(config, data=str(data)))


def test_old_paths_are_forgotten_and_every_window_is_learnt(config: DistillConfig) -> None:
    teacher = Pipeline.load(config.teacher)
    examples = Examples(
        targets=torch.zeros(5, 4, 4, 4),
        labels=torch.zeros(5, 2, dtype=torch.long),
        captions=Captions(
            rows=torch.arange(5)[:, None],
            counts=torch.ones(5, dtype=torch.long),
            states=torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0)),
        ),
        preview_conditions=Conditions(torch.zeros(0, 2, dtype=torch.long)),
    )
    paths = Paths(teacher, teacher.prior.network, examples, config)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        paths.extend(4, generator)
    assert len(paths.state_dict()["starts"]) == len(paths.state_dict()["labels"]) == 64
    x, t, conditions, target = paths.draw(3, generator)
    assert x.shape == target.shape == (12, 4, 4, 4)
    assert len(conditions) == 12
    assert t.tolist() == [0, 0.25, 0.5, 0.75] * 3
    led = cross(teacher, x[:1], conditions[:1], 0, 0.25, config.teacher_steps_per_window)
    torch.testing.assert_close(x[:1] + target[:1] / 4, led)
