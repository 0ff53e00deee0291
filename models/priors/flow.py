"""A flow prior: how it learns (``flow_loss``) and how it samples (``FlowStage``).

Time t: 0 is noise, 1 is data.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.conditioning import Conditions, drop_conditions
from models.networks.dit import DiT
from models.noise import draw_noise
from models.options import FlowOptions
from models.priors.base import TransformerPrior
from models.priors.known import After, KnownParts, interpolate, resampled_calls
from models.priors.samplers import guide, is_guided, make_calls, take_step
from models.replay import Replayed
from models.stage import NotFinite, Rows, Run, Sample, padded
from models.transfers import send

logger = logging.getLogger(__name__)

# --- learning --------------------------------------------------------------------------------------------


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
    return torch.sigmoid(mean + std * torch.randn(num_samples, generator=generator, device=generator.device))


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
    source_dropout: float = 0.0,
) -> Tensor:
    """Return the mean squared error of the predicted velocity at random times.

    latents: (B, C, *grid) scaled. conditions: B rows; ``condition_dropout`` of them are left out, and
    ``source_dropout`` of their sources (``drop_conditions``), in favour of ``null``, one row.
    """
    noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents.device)
    t = draw_times(len(latents), generator, mean=time_mean, std=time_std).to(latents.device)
    kept = drop_conditions(conditions, null, condition_dropout, generator, source_rate=source_dropout)
    predicted = predict(interpolate(latents, noise, t), t, kept)
    return F.mse_loss(predicted.float(), velocity(latents, noise))


# --- sampling --------------------------------------------------------------------------------------------


PLACES, NUMBERS = 3, 8  # of a plan's row; the numbers are t, guidance scale and six coefficients


@dataclass(frozen=True)
class _Course:
    """Where a running sample is kept, and the numbers of its calls."""

    slot: int
    numbers: tuple[tuple[float, ...], ...]  # t, guidance scale, coefficients
    guided: tuple[bool, ...]  # which calls need the unconditional row, too
    afters: tuple[After, ...] = ()  # of each call, where parts of the sample are known


class _Shaped(Protocol):
    """The latents that a network is made for."""

    @property
    def latent_channels(self) -> int: ...
    @property
    def grid(self) -> tuple[int, ...]: ...


class _Network(Protocol):
    """What a stage needs of a network; how it is called is between the two."""

    @property
    def config(self) -> _Shaped: ...
    def null_conditions(self, num_rows: int = 1) -> Conditions: ...
    def __call__(self, latents: Tensor, t: Tensor, conditions: Conditions, /) -> Tensor: ...


class FlowStage:
    """Noise → latents (d, *grid): one call of the network for each sample, each at a step of its own.

    Running samples live in slots of tensors that stay where they are. A call is one function of them and of
    a small plan (``_advance``): prior, guidance and update together. It is pure; what it returns is written
    into the slots after it.
    """

    reports_progress = True
    num_numbers = NUMBERS  # of a call

    def __init__(self, network: _Network, num_slots: int) -> None:
        self.fixed_rows: Sequence[int] | None = None
        self.max_samples = num_slots
        self._network = network
        device = network.null_conditions().labels.device
        self._shape = (network.config.latent_channels, *network.config.grid)
        self._free = list(reversed(range(num_slots)))
        self._num_slots = num_slots
        self._state = torch.zeros(num_slots, 3, *self._shape, device=device)  # x, memory, data
        self._conditions = network.null_conditions(2 * num_slots).clone()  # a sample's own, then its nulls
        self._known = KnownParts(num_slots, self._shape, device)
        self._replay = Replayed(self._advance, device)

    def start(self, sample: Sample) -> None:
        """Give the sample a slot, with its noise and conditions.

        It starts from the noise of (seed, index), or from noise (d, *grid) that it brings as its value. Of a
        sample with a source, the value is the source's latents: where the network takes some, they are a
        condition; else it starts on the way from noise to them.
        """
        spec = sample.spec
        options, conditions = spec.options, spec.conditions
        assert isinstance(options, FlowOptions)
        assert conditions is not None
        assert spec.null is not None
        slot = self._free.pop()
        is_edit = sample.source is not None
        if is_edit and conditions.source is not None:
            assert sample.value is not None
            conditions = replace(conditions, source=send(sample.value, self._state.device)[None])
            sample.value, is_edit = None, False
        afters: tuple[After, ...] = ()
        if is_edit and spec.mask is not None:
            numbers, afters = self._numbers_of_known(options)
        else:
            numbers = self._numbers(options, options.strength if is_edit else 1.0)
        if is_edit or sample.value is None:
            noise = draw_noise(self._shape, spec.seed, sample.index)
        else:
            noise = sample.value
        start = noise = send(noise, self._state.device)
        if is_edit:
            assert sample.value is not None
            latents = send(sample.value, self._state.device)
            start = interpolate(latents[None], noise[None], latents.new_tensor([numbers[0][0]]))[0]
            if spec.mask is not None:
                self._known.write(slot, latents, noise, spec.mask)
            sample.value = None
        self._state[slot] = 0
        self._state[slot, 0] = start
        self._conditions.write(slot, conditions)
        self._conditions.write(self._num_slots + slot, spec.null)
        scale, interval = options.guidance_scale, options.guidance_interval
        can_be_guided = not conditions.equals(spec.null)
        sample.state = _Course(
            slot,
            numbers,
            tuple(can_be_guided and is_guided(t, scale, interval) for t, *_ in numbers),
            afters,
        )

    def _numbers(self, options: FlowOptions, strength: float) -> tuple[tuple[float, ...], ...]:
        """Return the numbers of each call: t, the guidance scale and the sampler's coefficients."""
        calls = make_calls(options, strength)
        return tuple((call.t, options.guidance_scale, *call.coefficients) for call in calls)

    def _numbers_of_known(
        self, options: FlowOptions
    ) -> tuple[tuple[tuple[float, ...], ...], tuple[After, ...]]:
        """Return the numbers of each call, and what follows it, of a sample in which parts are known."""
        calls, afters = zip(*resampled_calls(options, options.strength), strict=True)
        return tuple((call.t, options.guidance_scale, *call.coefficients) for call in calls), afters

    def num_calls(self, sample: Sample) -> int:
        course: _Course = sample.state
        return len(course.numbers)

    def release(self, sample: Sample) -> None:
        """Free the sample's slot."""
        if sample.state is not None:
            self._free.append(sample.state.slot)
            sample.state = None

    def preview(self, samples: Sequence[Sample]) -> Tensor:
        """Return the latents (B, d, *grid) that the last call pointed to."""
        return self._state[[sample.state.slot for sample in samples], 2]

    def latents(self, samples: Sequence[Sample]) -> Tensor:
        """Return where the samples are now (B, d, *grid)."""
        return self._state[[sample.state.slot for sample in samples], 0]

    def step(self, samples: Sequence[Sample], run: Run) -> None:
        """Make one call of the network for each sample, and the update that follows it."""
        sizes = [1 + sample.state.guided[sample.calls_done] for sample in samples]
        results = run(
            lambda items: self._call([samples[i] for i in items]), len(samples), self.fixed_rows, sizes
        )
        self._write(samples, results)

    @torch.inference_mode()
    def capture(self) -> None:
        """Let a GPU capture calls of all numbers of rows in ``fixed_rows`` that fit in its memory, now."""
        if self._state.is_cuda:
            for num_rows in sorted(self.fixed_rows or ()):
                try:
                    self._replay(torch.zeros(num_rows, PLACES + self.num_numbers, dtype=torch.int32))
                except torch.OutOfMemoryError:
                    logger.warning("calls of %d rows and more don't fit in memory", num_rows)
                    return

    def _call(self, samples: Sequence[Sample]) -> Tensor:
        """Return the next x, memory and data (B, 3, d, *grid) of samples.

        Only calls of fixed numbers of rows are worth a graph each.
        """
        plan = self._plan(samples)
        if self.fixed_rows is None:
            return self._advance(send(plan, self._state.device))[: len(samples)]
        return self._replay(plan)[: len(samples)]

    def _plan(self, samples: Sequence[Sample]) -> Tensor:
        """Return what a call is to do (rows, places and numbers) int32; floats as integers of the same bits.

        A row has its slot, its place in the conditions, the row that guidance leads away from (its own where
        there is none), then t, the guidance scale and the coefficients. The samples' own rows come first,
        then the unconditional ones, then padding: of these nothing is used but the velocity.
        """
        courses: list[_Course] = [sample.state for sample in samples]
        guided = [i for i, sample in enumerate(samples) if courses[i].guided[sample.calls_done]]
        num_rows = len(samples) + len(guided)
        padding = padded(num_rows, self.fixed_rows) - num_rows
        places = [[course.slot, course.slot, row] for row, course in enumerate(courses)]
        numbers = [course.numbers[sample.calls_done] for course, sample in zip(courses, samples, strict=True)]
        for i in guided:
            slot, row = courses[i].slot, len(places)
            places[i][2] = row
            places.append([slot, self._num_slots + slot, row])
            numbers.append(numbers[i])
        places += padding * places[-1:]
        numbers += padding * numbers[-1:]
        whole = torch.tensor(places, dtype=torch.int32)
        return torch.cat([whole, torch.tensor(numbers, dtype=torch.float32).view(torch.int32)], dim=1)

    def _advance(self, plan: Tensor) -> Tensor:
        """Return the next x, memory and data (rows, 3, d, *grid) of a plan's rows."""
        slots, places, away_from = plan[:, :3].long().unbind(1)
        numbers = plan[:, 3:].view(torch.float32)
        x, memory = self._state[slots, :2].unbind(1)  # 2 × (rows, d, *grid)
        v = self._network(x, numbers[:, 0], self._conditions[places]).float()
        v = guide(v, v[away_from], numbers[:, 1])
        data = denoised(x, v, numbers[:, 0])
        return torch.stack([*take_step(x, v, memory, numbers[:, 2:]), data], dim=1)

    def _write(self, samples: Sequence[Sample], results: Rows) -> None:
        """Put what a call gave into the slots, and end the samples that had their last."""
        for row, error in results.failures.items():
            samples[row].error = error
        if results.values is None:
            return
        slots = torch.tensor([sample.state.slot for sample in samples])
        self._restore_known(samples, results.values)
        self._state[send(slots, self._state.device)] = results.values
        ended = []
        for row, sample in enumerate(samples):
            sample.calls_done += 1
            if sample.calls_done == len(sample.state.numbers) and sample.error is None:
                ended.append(row)
        if not ended:
            return
        values = results.values[ended, 0]
        are_finite = values.isfinite().flatten(1).all(1).tolist()
        for row, value, is_finite in zip(ended, values, are_finite, strict=True):
            sample = samples[row]
            sample.value = value
            if not is_finite:
                sample.error = NotFinite(f"output {sample.index} became infinite or not a number")

    def _restore_known(self, samples: Sequence[Sample], values: Tensor) -> None:
        """Put what is known of samples into what a call gave for them (B, 3, d, *grid).

        This is done for x at the time that the call leaves it at, also amid a step of Heun's, which then
        looks from there; and for the data, which is shown. Then x goes back, where its step is taken again.
        """
        rows = [row for row, sample in enumerate(samples) if sample.state.afters]
        if not rows:
            return
        courses: list[_Course] = [samples[row].state for row in rows]
        afters = [course.afters[samples[row].calls_done] for row, course in zip(rows, courses, strict=True)]
        slots, times = [course.slot for course in courses], [after.time for after in afters]
        x_and_data = values[rows][:, ::2]  # (rows, 2, d, *grid)
        values[rows, 0], values[rows, 2] = self._known.restore(x_and_data, slots, times).unbind(1)
        for row, after in zip(rows, afters, strict=True):
            if after.back_to is not None:
                of_x, of_noise = after.shares
                sample = samples[row]
                noise = draw_noise(self._shape, sample.spec.seed, sample.index, sample.calls_done + 1)
                values[row, 0] = of_x * values[row, 0] + of_noise * send(noise, values.device)


class FlowPrior(TransformerPrior[DiT]):
    """A flow prior as a pipeline has it: the network, and the stage that samples with it."""

    @classmethod
    def load(cls, path: Path) -> "FlowPrior":
        """Load one safetensors file that knows its own configuration.

        Raises: CheckpointError.
        """
        return cls(DiT.load(path))

    def make_stage(self, num_slots: int) -> FlowStage:
        """Return the stage that samples, for at most ``num_slots`` samples at a time."""
        return FlowStage(self.network, num_slots)
