"""A flow prior: how it learns (``flow_loss``) and how it samples (``FlowStage``).

Time t: 0 is noise, 1 is data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.conditioning import Conditions, drop_conditions
from models.networks.dit import DiT
from models.options import FlowOptions
from models.priors.samplers import Call, guide, is_guided, make_calls, take_step
from models.priors.step_cache import StepCache
from models.stage import NotFinite, Rows, Run, Sample

# --- learning --------------------------------------------------------------------------------------------


def interpolate(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t = t·latents + (1 − t)·noise for latents, noise (B, …) and t (B,) in [0, 1].

    Lipman et al. 2023 (arXiv:2210.02747), with the straight path of Liu et al. 2023 (arXiv:2209.03003).
    """
    t = t.view(-1, *[1] * (latents.ndim - 1))
    return t * latents + (1 - t) * noise


def velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """Return dx_t/dt = latents − noise: what the prior is trained to predict, the same at every t."""
    return latents - noise


def denoised(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Return the data that ``velocity`` at ``x`` (B, …) and time t (B,) points to."""
    return x + (1 - t).view(-1, *[1] * (x.ndim - 1)) * velocity


def draw_times(num_samples: int, generator: torch.Generator, *, mean: float, std: float) -> Tensor:
    """Return logit-normal times (B,) for training (Esser et al. 2024, arXiv:2403.03206).

    A ``mean`` below 0 spends more of the training near the noise.
    """
    return torch.sigmoid(mean + std * torch.randn(num_samples, generator=generator))


def flow_loss(
    predict: Callable[[Tensor, Tensor, Conditions], Tensor],
    latents: Tensor,
    conditions: Conditions,
    null: Conditions,
    generator: torch.Generator,
    *,
    time_mean: float,
    time_std: float,
    condition_dropout: float,
) -> Tensor:
    """Return the mean squared error of the predicted velocity at random times.

    latents: (B, C, *grid) scaled. conditions: B rows; ``condition_dropout`` of them are left out
    (``drop_conditions``) in favour of ``null``, one row.
    """
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    t = draw_times(len(latents), generator, mean=time_mean, std=time_std).to(latents.device)
    kept = drop_conditions(conditions, null, condition_dropout, generator)
    predicted = predict(interpolate(latents, noise, t), t, kept)
    return F.mse_loss(predicted.float(), velocity(latents, noise))


# --- sampling --------------------------------------------------------------------------------------------


def draw_noise(shape: tuple[int, ...], seed: int, index: int) -> Tensor:
    """Return the noise (C, *grid) float32 that sample ``index`` of a request with ``seed`` starts from.

    Drawn on the CPU from a generator of its own, so that it depends on nothing but (seed, index).
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
    return torch.randn(shape, generator=torch.Generator().manual_seed(mixed))


@dataclass(frozen=True)
class _Course:
    """Where a running sample is kept, and the calls that it takes."""

    slot: int
    calls: tuple[Call, ...]
    options: FlowOptions
    can_be_guided: bool  # what is asked for differs from what guidance leads away from

    def is_guided(self, position: int) -> bool:
        """Whether call number ``position`` needs the unconditional row, too."""
        options = self.options
        t = self.calls[position].t
        return self.can_be_guided and is_guided(t, options.guidance_scale, options.guidance_interval)


class FlowStage:
    """Noise → latents (d, *grid): one call of the network for each sample, each at a step of its own.

    Running samples live in slots of tensors that stay where they are; a step writes the numbers of all its
    samples in one copy and reads nothing back. Each sample has two rows: its own, and the unconditional one,
    which is computed where guidance is applied.
    """

    reports_progress = True

    def __init__(self, network: DiT, num_slots: int) -> None:
        self.fixed_rows: Sequence[int] | None = None
        self.max_samples = num_slots
        self._network = network
        config = network.config
        device = network.cosines.device
        self._shape = (config.latent_channels, *config.grid)
        self._free = list(reversed(range(num_slots)))
        self._num_slots = num_slots
        self._x = torch.zeros(num_slots, *self._shape, device=device)
        self._memory = torch.zeros_like(self._x)  # the sampler's: see ``take_step``
        self._data = torch.zeros_like(self._x)  # what the last call pointed to, for previews
        self._conditions = network.null_conditions(2 * num_slots).clone()  # a sample's own, then its nulls
        self._cache = StepCache(network, 2 * num_slots)

    def start(self, sample: Sample) -> None:
        """Give the sample a slot, with its noise and conditions.

        It starts from the noise of (seed, index), or from noise (d, *grid) that it brings as its value.
        """
        spec = sample.spec
        assert isinstance(spec.options, FlowOptions)
        assert spec.conditions is not None
        assert spec.null is not None
        slot = self._free.pop()
        noise = draw_noise(self._shape, spec.seed, sample.index) if sample.value is None else sample.value
        self._x[slot] = noise.to(self._x.device)
        self._memory[slot] = 0
        self._conditions.write(slot, spec.conditions)
        self._conditions.write(self._num_slots + slot, spec.null)
        self._cache.forget((slot, self._num_slots + slot))
        can_be_guided = not spec.conditions.equals(spec.null)
        sample.state = _Course(slot, tuple(make_calls(spec.options)), spec.options, can_be_guided)

    def num_calls(self, sample: Sample) -> int:
        course: _Course = sample.state
        return len(course.calls)

    def release(self, sample: Sample) -> None:
        """Free the sample's slot."""
        if sample.state is not None:
            self._free.append(sample.state.slot)
            sample.state = None

    def preview(self, samples: Sequence[Sample]) -> Tensor:
        """Return the latents (B, d, *grid) that the last call pointed to."""
        return self._data[[sample.state.slot for sample in samples]]

    def latents(self, samples: Sequence[Sample]) -> Tensor:
        """Return where the samples are now (B, d, *grid)."""
        return self._x[[sample.state.slot for sample in samples]]

    def step(self, samples: Sequence[Sample], run: Run) -> None:
        """Make one call of the network for each sample, and the update that follows it."""
        courses: list[_Course] = [sample.state for sample in samples]
        calls = [course.calls[sample.calls_done] for course, sample in zip(courses, samples, strict=True)]
        guided = [i for i, course in enumerate(courses) if course.is_guided(samples[i].calls_done)]
        slots = [course.slot for course in courses]
        numbers = torch.tensor(
            [
                (call.t, course.options.guidance_scale, *call.coefficients)
                for call, course in zip(calls, courses, strict=True)
            ]
        ).to(self._x.device)  # (B, 8) float32
        x, t = self._x[slots], numbers[:, 0]
        results = self._velocities(samples, courses, guided, x, t, run)
        num_samples = len(samples)
        for row, error in results.failures.items():
            samples[row if row < num_samples else guided[row - num_samples]].error = error
        if results.values is None:
            return
        velocities = results.values.float()
        v = velocities[:num_samples]
        if guided:
            v[guided] = guide(v[guided], velocities[num_samples:], numbers[guided, 1])
        self._data[slots] = denoised(x, v, t)
        self._x[slots], self._memory[slots] = take_step(x, v, self._memory[slots], numbers[:, 2:])
        for sample, course in zip(samples, courses, strict=True):
            sample.calls_done += 1
            if sample.calls_done == len(course.calls) and sample.error is None:
                sample.value = self._x[course.slot].clone()
                if not sample.value.isfinite().all():
                    sample.error = NotFinite(f"output {sample.index} became infinite or not a number")

    def _velocities(
        self,
        samples: Sequence[Sample],
        courses: Sequence[_Course],
        guided: Sequence[int],
        x: Tensor,
        t: Tensor,
        run: Run,
    ) -> Rows:
        """Return the velocities (B + guided, d, *grid) of all samples, then of their unconditional rows."""
        order = [*range(len(samples)), *guided]
        slots = [course.slot for course in courses] + [self._num_slots + courses[i].slot for i in guided]
        x, t, conditions = x[order], t[order], self._conditions[slots]
        intervals = [courses[i].options.cache_interval for i in order]
        if max(intervals) > 1:
            positions = [samples[i].calls_done for i in order]
            return self._cache.velocities(x, t, conditions, slots, intervals, positions, run, self.fixed_rows)
        return run(
            lambda rows: self._network(x[rows], t[rows], conditions[rows]), len(order), self.fixed_rows
        )


class FlowPrior:
    """A flow prior as a pipeline has it: the network, and the stage that samples with it."""

    def __init__(self, network: DiT) -> None:
        self.network = network

    @classmethod
    def load(cls, path: Path) -> "FlowPrior":
        """Load one safetensors file that knows its own configuration.

        Raises: CheckpointError.
        """
        return cls(DiT.load(path))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d, *grid) of one sample's latents."""
        return (self.network.config.latent_channels, *self.network.config.grid)

    @property
    def label_sizes(self) -> tuple[int, ...]:
        """The numbers of labels in each set."""
        return self.network.config.label_sizes

    @property
    def text_shape(self) -> tuple[int, int] | None:
        """(tokens, channels) of a prompt's states; None where it takes no prompt."""
        config = self.network.config
        return (config.text_tokens, config.text_channels) if config.takes_prompt else None

    def null_conditions(self, num_rows: int = 1) -> Conditions:
        """Return rows that ask for nothing: any label, no prompt."""
        return self.network.null_conditions(num_rows)

    def make_stage(self, num_slots: int) -> FlowStage:
        """Return the stage that samples, for at most ``num_slots`` samples at a time."""
        return FlowStage(self.network, num_slots)
