"""Distil a prior to a few steps: ``smalti train distilled --config training/configs/emoji-64-turbo.toml``.

Piecewise rectified flow (PeRFlow, Yan et al. 2024, arXiv:2405.07510): time is cut into windows, and the
student learns to cross each in one straight step, to where the teacher's guided path leads. So its steps are
as many as windows, and it needs no second guided row. Unlike theirs, the teacher's paths start from noise and
not from noised data, so that the student learns at each window's start from what it will meet there; and only
a window's start is learnt, not the times within.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from models.conditioning import Conditions, stack_conditions
from models.config import Count, PipelineConfig, Sampling, UnitTime
from models.pipeline import Pipeline, load_prior, save_pipeline
from models.prior import DiT
from models.samplers import Call, guide, is_guided, make_calls, take_step
from training.examples import Examples, load_examples
from training.fit import FitConfig, State, fit
from training.precision import autocast, fast_dtype
from training.prior import save_samples
from training.run import Processes, Run, generator_for


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DistillConfig(FitConfig):
    """What ``smalti train distilled`` reads from its TOML file.

    ``teacher`` is a pipeline's folder, whose defaults say how it is guided; ``output``, beside it, is the
    finished pipeline's, which takes its tokenizer and text encoder from there. The teacher crosses a window
    in ``teacher_steps_per_window`` steps. The last ``num_paths`` of its paths are kept, ``num_new_paths`` are
    new at every step of training, and the student learns from all windows of ``batch_size`` of them.
    """

    teacher: Path
    output: Path
    data: str = "fashion-mnist"
    num_windows: Count = 4
    teacher_steps_per_window: Count = 4
    num_paths: Count = 2048
    num_new_paths: Count = 8
    batch_size: Count = 32
    num_steps: Count = 600
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    muon_learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    decay_fraction: UnitTime = 0.5
    ema_decay: UnitTime = 0.98
    horizontal_flips: bool = False
    log_every: Count = 10
    samples_every: Count = 100


def train_distilled(config: DistillConfig, *, resume: bool = False) -> Path:
    """Train to the end, write the pipeline and return its folder.

    Raises: TrainingError when the run can't start or go on.
    """
    processes = Processes.join(config.num_threads)
    run = Run(config.folder, config, processes, num_steps=config.num_steps, resume=resume)
    dtype = fast_dtype(processes.device.type)
    teacher = Pipeline.load(config.teacher, device=str(processes.device), dtype=dtype)
    examples = load_examples(
        teacher.tokenizer,
        config.data,
        with_flips=config.horizontal_flips,
        text_encoder=config.teacher,
        cache=config.folder,
    )
    student = load_prior(config.teacher / "prior.safetensors").float().to(processes.device)
    predict: Any = processes.wrap(student)
    if config.is_compiled:
        predict = torch.compile(predict)
    paths = TeacherPaths(teacher, examples, config)

    def loss_of(step: int) -> Tensor:
        generator = generator_for(config.seed, step, processes.rank)
        paths.extend(config.num_new_paths, generator)
        x, t, conditions, target = paths.draw(config.batch_size, generator)
        with autocast(processes.device):
            predicted = predict(x, t, conditions)
        return F.mse_loss(predicted.float(), target)

    defaults = Sampling(num_steps=config.num_windows, sampler="euler", guidance_scale=1.0)
    fit(
        run,
        student,
        config,
        loss_of,
        show=lambda average, step: save_samples(
            config.folder / "samples" / f"{step:07d}.png",
            teacher.tokenizer,
            average,
            examples.shown.to(processes.device),
            defaults,
            config.seed,
        ),
        own_state=lambda: {"paths": paths.state()},
        resumed=lambda state: paths.restore(state["paths"]),
    )
    if processes.is_main:
        known = teacher.config
        pipeline_config = PipelineConfig(
            name=config.output.name,
            class_names=known.class_names,
            tokenizer=known.tokenizer,
            tokenizer_fingerprint=known.tokenizer_fingerprint,
            prior=student.config,
            defaults=defaults,
            style_names=known.style_names,
            group_names=known.group_names,
            example_prompt=known.example_prompt,
            shares_with=known.shares_with or config.teacher.resolve().name,
        )
        save_pipeline(config.output, pipeline_config, teacher.tokenizer, student)
    return config.output


class TeacherPaths:
    """The last paths of the teacher from noise to data, as its states at the edges of the windows."""

    def __init__(self, teacher: Pipeline, examples: Examples, config: DistillConfig) -> None:
        self._teacher = teacher
        self._examples = examples
        self._config = config
        shape = (teacher.config.prior.latent_channels, *teacher.config.prior.grid)
        self._edges = torch.zeros(0, config.num_windows + 1, *shape)  # (P, windows + 1, d, h, w)
        self._conditions: Conditions | None = None  # (P rows)

    def extend(self, num_new: int, generator: torch.Generator) -> None:
        """Let the teacher walk new paths; the oldest are forgotten. At the start, a batch at once."""
        num_new = max(num_new, self._config.batch_size - len(self._edges))
        rows = torch.randint(len(self._examples), (num_new,), generator=generator)
        conditions = self._examples.conditions(rows, generator)
        noise = torch.randn((num_new, *self._edges.shape[2:]), generator=generator)
        edges = walk(self._teacher, noise, conditions.to(self._teacher.device), self._config)
        known = [] if self._conditions is None else [self._conditions]
        self._edges = torch.cat([self._edges, edges.cpu()])[-self._config.num_paths :]
        self._conditions = stack_conditions([*known, conditions])[slice(-self._config.num_paths, None)]

    def draw(self, num_paths: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Conditions, Tensor]:
        """Return x, t (0 is noise), conditions and the velocity to learn, for every window of some paths."""
        assert self._conditions is not None
        rows = torch.randint(len(self._edges), (num_paths,), generator=generator)
        num_windows, device = self._config.num_windows, self._teacher.device
        edges = self._edges[rows]
        x = edges[:, :-1].flatten(0, 1)  # (num_paths·windows, d, h, w)
        target = (edges[:, 1:] - edges[:, :-1]).flatten(0, 1) * num_windows
        t = torch.arange(num_windows).repeat(num_paths) / num_windows
        conditions = self._conditions[rows.repeat_interleave(num_windows)]
        return x.to(device), t.to(device), conditions.to(device), target.to(device)

    def state(self) -> State:
        """Return what a checkpoint keeps."""
        assert self._conditions is not None
        return {"edges": self._edges, "labels": self._conditions.labels, "text": self._conditions.text}

    def restore(self, state: State) -> None:
        """Go on from a checkpoint."""
        self._edges = state["edges"]
        self._conditions = Conditions(state["labels"], state["text"])


@torch.inference_mode()
def walk(teacher: Pipeline, noise: Tensor, conditions: Conditions, config: DistillConfig) -> Tensor:
    """Return the teacher's states (B, windows + 1, d, h, w) at the windows' edges, from ``noise`` on.

    It samples as its own defaults say, but for the steps, which are equal, as the windows are. Its solver's
    memory crosses edges.
    """
    num_steps = config.num_windows * config.teacher_steps_per_window
    sampling = replace(teacher.config.defaults, num_steps=num_steps, time_easing=0.0)
    calls, prior = make_calls(sampling), teacher.prior
    x, m = noise.to(teacher.device), torch.zeros_like(noise, device=teacher.device)
    null = prior.null_conditions(len(x))
    edges = [x]
    for position, call in enumerate(calls):
        v = _guided(prior, x, call, conditions, null, sampling)
        x, m = take_step(x, v, m, x.new_tensor([call.coefficients]).expand(len(x), 6))
        following = calls[position + 1].t if position + 1 < len(calls) else 1.0
        if following > call.t and round(following * config.num_windows, 6) % 1 == 0:
            edges.append(x)
    return torch.stack(edges, dim=1)


def _guided(
    prior: DiT, x: Tensor, call: Call, conditions: Conditions, null: Conditions, sampling: Sampling
) -> Tensor:
    t = x.new_full((len(x),), call.t)
    if not is_guided(call.t, sampling.guidance_scale, sampling.guidance_interval):
        return prior(x, t, conditions).float()
    both = stack_conditions([conditions, null])
    v, null_v = prior(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
    return guide(v, null_v, x.new_full((len(x),), sampling.guidance_scale))
