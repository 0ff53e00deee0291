"""Distil a prior to a few steps: ``smalti train distilled --config training/configs/emoji-64-turbo.toml``.

Piecewise rectified flow (PeRFlow, Yan et al. 2024, arXiv:2405.07510): time is cut into windows, and the
student learns to cross each in one straight step, to where the teacher's guided path leads. So its steps are
as many as windows, and it needs no second guided row. Unlike theirs, a window starts where the student itself
comes to from noise, not from noised data, so that it learns from what it will meet; and only a window's start
is learnt, not the times within.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from models.autoencoders.shuffle import ShuffleAutoencoder
from models.conditioning import Conditions, stack_conditions
from models.networks.dit import DiT
from models.options import Count, FlowOptions, UnitTime
from models.pipeline import PRIOR_FILE, Pipeline, save_pipeline
from models.priors.flow import FlowPrior
from models.priors.samplers import SAMPLERS, guide, is_guided, take_step, time_grid
from models.spec import SPEC_FILE
from training import preflight
from training.checkpoints import State, check_exported, file_digest
from training.compiling import Compiler
from training.config_file import TrainingError
from training.data.bad_files import MAX_BAD_SHARE
from training.examples import Examples, TrainingData, encode_examples, read_training_data
from training.fit import FitConfig, fit
from training.precision import autocast, fast_dtype
from training.prior import data_digest, save_samples
from training.run import Processes, Run, generator_for


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DistillConfig(FitConfig):
    """What ``smalti train distilled`` reads from its TOML file.

    ``teacher`` is a pipeline's folder, whose defaults say how it is guided; ``output``, beside it, is the
    finished pipeline's, which takes its tokenizer and text encoder from there. The teacher crosses a window
    in ``teacher_steps_per_window`` steps. The last ``num_paths`` paths are kept, ``num_new_paths`` are new at
    every step of training, and the student learns from all windows of ``batch_size`` of them.
    """

    teacher: Path
    output: Path
    data: str = "fashion-mnist"
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = MAX_BAD_SHARE
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
    log_every: Count = 10
    samples_every: Count = 100


def train_distilled(config: DistillConfig, *, resume: bool = False) -> Path:
    """Train to the end, write the pipeline and return its folder.

    Raises: TrainingError when the run can't start or go on.
    """
    processes = Processes.join(config.num_threads)
    preflight.check(_problems(config))
    with Run(config, processes, resume=resume) as run:
        if not (resume and run.is_finished(config.output / SPEC_FILE)):
            _train(config, run)
    return config.output


def _problems(config: DistillConfig) -> Iterator[str | None]:
    """Yield what the settings alone show to be wrong."""
    yield preflight.unwritable("folder", config.folder)
    yield preflight.unusable_output(config.output)
    yield preflight.missing_file("teacher", config.teacher / SPEC_FILE)
    teacher, output = config.teacher.resolve(), config.output.resolve()
    if teacher == output:
        yield f"output: {config.output} is the teacher itself, to be overwritten: name another folder"
    elif teacher.parent != output.parent:
        yield (
            f"output: {config.output} must lie beside the teacher, in {teacher.parent}, because it shares the"
            " teacher's tokenizer"
        )


def _train(config: DistillConfig, run: Run) -> None:
    """Take the steps that are left, and write the pipeline."""
    processes = run.processes
    dtype = fast_dtype(processes.device.type)
    teacher = Pipeline.load(config.teacher, device=str(processes.device), dtype=dtype)
    if not isinstance(teacher.prior, FlowPrior):
        raise TrainingError(f"teacher: only a flow prior can be distilled, got {teacher.spec.prior}")
    if teacher.spec.needs_source:
        raise TrainingError(f"teacher: {teacher.spec.name} needs a source, which students are not given")
    data = _read_data(teacher, config)
    student = DiT.load(config.teacher / PRIOR_FILE).float().to(processes.device)
    defaults = FlowOptions(num_steps=config.num_windows, sampler="euler", guidance_scale=1.0)
    spec = replace(
        teacher.spec,
        name=config.output.name,
        defaults=defaults,
        shares_with=teacher.spec.shares_with or config.teacher.resolve().name,
    )
    preflight.check(
        (preflight.other_pipeline(config.output, spec), preflight.too_full(config.folder, student))
    )
    num_examples = len(data.images)
    preflight.say_what_begins(student, num_examples, config.batch_size, config.num_steps, processes)
    examples = encode_examples(None, data, teacher.prompt_encoder, with_flips=False, cache=config.folder)
    compiler = Compiler(is_on=config.is_compiled)
    predict = compiler.compile(processes.wrap(student))
    paths = Paths(teacher, student, examples, config)

    @functools.lru_cache(maxsize=1)  # new paths come once a step, however often its loss is computed
    def draw(step: int) -> tuple[Tensor, Tensor, Conditions, Tensor]:
        generator = generator_for(config.seed, step, processes.rank)
        paths.extend(config.num_new_paths, generator)
        return paths.draw(config.batch_size, generator)

    def loss_of(step: int) -> Tensor:
        x, t, conditions, target = draw(step)
        with autocast(processes.device):
            predicted = predict(x, t, conditions)
        return F.mse_loss(predicted.float(), target)

    fit(
        run,
        compiler,
        student,
        config,
        loss_of,
        save_preview=lambda average, step: save_samples(
            config.folder / "samples" / f"{step:07d}.png",
            teacher.autoencoder,
            average,
            examples.preview_conditions.to(processes.device),
            teacher.spec.prior or "",
            defaults,
            config.seed,
        ),
        made_from={
            "data": data_digest(data),
            "teacher": " ".join(file_digest(config.teacher / name) for name in (SPEC_FILE, PRIOR_FILE)),
        },
        also_saved={"paths": paths},
    )
    if processes.is_main:
        check_exported(student.state_dict(), config.output / PRIOR_FILE)
        assert isinstance(teacher.autoencoder, ShuffleAutoencoder)  # as the prior isn't imported either
        save_pipeline(config.output, spec, teacher.autoencoder, student, in_eight_bits=config.in_eight_bits)


def _read_data(teacher: Pipeline, config: DistillConfig) -> TrainingData:
    """Return training data whose labels are numbered as the teacher's.

    Raises: TrainingError when the data has no captions and the teacher wants some, or the reverse.
    """
    channels, image_size_px, _ = teacher.autoencoder.signal_shape
    data = read_training_data(
        config.data,
        image_size_px=image_size_px,
        channels=channels,
        label_names=teacher.spec.labels,
        max_bad_share=config.max_bad_share,
    )
    if bool(data.captions) != teacher.spec.takes_prompt:
        takes, has = ("a prompt", "no captions") if teacher.spec.takes_prompt else ("no prompt", "captions")
        raise TrainingError(f"data: the teacher takes {takes}, but {config.data} has {has}")
    return data


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class Windows:
    """Where the windows of P paths start, and where the teacher leads from there: (P, windows, d, h, w)."""

    starts: Tensor
    ends: Tensor


class Paths:
    """The last paths of the student from noise, and where the teacher leads from each window's start."""

    def __init__(self, teacher: Pipeline, student: DiT, examples: Examples, config: DistillConfig) -> None:
        self._teacher = teacher
        self._student = student
        self._examples = examples
        self._config = config
        shape = config.num_windows, *teacher.spec.latents
        self._windows = Windows(torch.zeros(0, *shape), torch.zeros(0, *shape))
        self._conditions: Conditions | None = None  # (P rows)

    def extend(self, num_new: int, generator: torch.Generator) -> None:
        """Walk new paths; the oldest are forgotten. At the start, a batch at once."""
        num_new = max(num_new, self._config.batch_size - len(self._windows.starts))
        rows = torch.randint(len(self._examples), (num_new,), generator=generator)
        conditions = self._examples.conditions(rows, generator)
        noise = torch.randn((num_new, *self._teacher.spec.latents), generator=generator)
        device = self._teacher.device
        new = walk(self._teacher, self._student, noise.to(device), conditions.to(device), self._config)
        kept = slice(-self._config.num_paths, None)
        self._windows = Windows(
            torch.cat([self._windows.starts, new.starts.cpu()])[kept],
            torch.cat([self._windows.ends, new.ends.cpu()])[kept],
        )
        known = [] if self._conditions is None else [self._conditions]
        self._conditions = stack_conditions([*known, conditions])[kept]

    def draw(self, num_paths: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Conditions, Tensor]:
        """Return x, t (0 is noise), conditions and the velocity to learn, for every window of some paths."""
        assert self._conditions is not None
        rows = torch.randint(len(self._windows.starts), (num_paths,), generator=generator)
        device = self._teacher.device
        times = torch.tensor(time_grid(self._config.num_windows))
        lengths = times.diff().view(-1, *[1] * len(self._teacher.spec.latents))
        x, ends = self._windows.starts[rows], self._windows.ends[rows]  # (num_paths, windows, d, h, w)
        target = ((ends - x) / lengths).flatten(0, 1)  # (num_paths·windows, d, h, w)
        conditions = self._conditions[rows.repeat_interleave(len(lengths))]
        t = times[:-1].repeat(num_paths)
        return x.flatten(0, 1).to(device), t.to(device), conditions.to(device), target.to(device)

    def state_dict(self) -> State:
        """Return what a checkpoint keeps."""
        assert self._conditions is not None
        return {
            "starts": self._windows.starts,
            "ends": self._windows.ends,
            "labels": self._conditions.labels,
            "text": self._conditions.text,
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from a checkpoint."""
        self._windows = Windows(state["starts"], state["ends"])
        self._conditions = Conditions(state["labels"], state["text"])


@torch.no_grad()
def walk(
    teacher: Pipeline, student: DiT, noise: Tensor, conditions: Conditions, config: DistillConfig
) -> Windows:
    """Let the student step from ``noise`` (B, d, h, w), and the teacher cross each window from there."""
    starts, ends = [], []
    x = noise
    for t, t_end in itertools.pairwise(time_grid(config.num_windows)):
        starts.append(x)
        ends.append(cross(teacher, x, conditions, t, t_end, config.teacher_steps_per_window))
        with autocast(x.device):
            x = x + (t_end - t) * student(x, torch.full((len(x),), t, device=x.device), conditions).float()
    return Windows(torch.stack(starts, dim=1), torch.stack(ends, dim=1))


@torch.no_grad()
def cross(
    teacher: Pipeline, x: Tensor, conditions: Conditions, t: float, t_end: float, num_steps: int
) -> Tensor:
    """Return where the teacher leads latents x (B, d, h, w) from t to t_end, in equal steps.

    Sampler and guidance are those of its own defaults.
    """
    assert isinstance(teacher.prior, FlowPrior)
    options = teacher.spec.defaults
    assert isinstance(options, FlowOptions)
    network = teacher.prior.network
    both = stack_conditions([conditions, teacher.prior.null_conditions(len(x))])
    scale = torch.full((len(x),), options.guidance_scale, device=x.device)
    memory = torch.zeros_like(x)
    times = [t + (t_end - t) * step / num_steps for step in range(num_steps)] + [t_end]
    for call in SAMPLERS[options.sampler](times):
        t_call = torch.full((2 * len(x),), call.t, device=x.device)
        if is_guided(call.t, options.guidance_scale, options.guidance_interval):
            v = guide(*network(torch.cat([x, x]), t_call, both).float().chunk(2), scale)
        else:
            v = network(x, t_call[: len(x)], conditions).float()
        coefficients = torch.tensor(call.coefficients, device=x.device).expand(len(x), -1)
        x, memory = take_step(x, v, memory, coefficients)
    return x
