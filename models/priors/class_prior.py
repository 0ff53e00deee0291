"""Public priors over classes: a diffusion or a flow by the network of DiT, sampled as its authors do."""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from models.checkpoint import load_checkpoint, load_into
from models.networks.class_dit import ClassDiT, ClassDiTConfig
from models.noise import draw_noise
from models.options import CHECKED, ConfigError, Count, FlowOptions
from models.priors.base import LabelPrior
from models.priors.flow import NUMBERS, PLACES, FlowStage, denoised
from models.priors.known import After
from models.priors.samplers import guide, take_step, times_after
from models.priors.schedules import NUM_NETWORK_NUMBERS, DiffusionSchedule, Schedule
from models.stage import Run, Sample

_NOISE = 4  # the place of ``noise`` among a network's numbers


@dataclass(frozen=True, config=CHECKED)
class ClassPriorConfig:
    """A network, what its times and its output mean, and how many channels are guided, from the first."""

    network: ClassDiTConfig
    schedule: Schedule
    guided_channels: Count

    def __post_init__(self) -> None:
        if self.guided_channels > self.network.latent_channels:
            raise ConfigError(
                f"guided_channels must be at most latent_channels {self.network.latent_channels},"
                f" got {self.guided_channels}"
            )
        if isinstance(self.schedule, DiffusionSchedule):
            needs = self.schedule.variance == "learned_range"
            if needs and not self.network.learns_variance:
                raise ConfigError("variance is learned_range, but the network has no outputs for it")


class ClassStage(FlowStage):
    """Noise → latents (d, *grid), as ``FlowStage``; what a call means to the network is in the plan, too."""

    num_numbers = NUMBERS + NUM_NETWORK_NUMBERS

    def __init__(self, network: ClassDiT, config: ClassPriorConfig, num_slots: int) -> None:
        super().__init__(network, num_slots)
        self._schedule = config.schedule
        self._guided_channels = config.guided_channels
        self._learns_variance = config.network.learns_variance
        self._noise = torch.zeros(num_slots, *self._shape, device=self._state.device)  # of the next update

    def start(self, sample: Sample) -> None:
        """Give the sample a slot, with its noise as the network's first timestep has it."""
        super().start(sample)
        options = sample.spec.options
        assert isinstance(options, FlowOptions)
        if sample.source is None:
            self._state[sample.state.slot, 0] *= self._schedule.noise_scale(options)

    def step(self, samples: Sequence[Sample], run: Run) -> None:
        """Make one call of the network for each sample, after drawing the noise that its update adds."""
        for sample in samples:
            step = sample.calls_done
            if sample.state.numbers[step][NUMBERS + _NOISE]:
                noise = draw_noise(self._shape, sample.spec.seed, sample.index, step + 1)
                self._noise[sample.state.slot] = noise.to(self._noise.device)
        super().step(samples, run)

    def _numbers(self, options: FlowOptions, strength: float) -> tuple[tuple[float, ...], ...]:
        scale = options.guidance_scale
        return tuple(
            (each.call.t, scale, *each.call.coefficients, *each.numbers)
            for each in self._schedule.calls(options, strength)
        )

    def _numbers_of_known(
        self, options: FlowOptions
    ) -> tuple[tuple[tuple[float, ...], ...], tuple[After, ...]]:
        numbers = self._numbers(options, options.strength)
        return numbers, tuple(map(After, times_after([t for t, *_ in numbers])))

    def _advance(self, plan: Tensor) -> Tensor:
        """Return the next x, memory and data (rows, 3, d, *grid) of a plan's rows."""
        slots, places, away_from = plan[:, :PLACES].long().unbind(1)
        numbers = plan[:, PLACES:].view(torch.float32)
        t, scale = numbers[:, 0], numbers[:, 1]
        stretch, time, of_x, of_output, added, low, high = (
            each.view(-1, 1, 1, 1) for each in numbers[:, NUMBERS:].unbind(1)
        )
        x, memory = self._state[slots, :2].unbind(1)  # 2 × (rows, d, *grid)
        output = self._network(stretch * x, time.flatten(), self._conditions[places]).float()
        v = of_x * x + of_output * output[:, : x.shape[1]]
        guided = self._guided_channels
        v[:, :guided] = guide(v[:, :guided], v[away_from, :guided], scale)
        data = denoised(x, v, t)
        x, memory = take_step(x, v, memory, numbers[:, 2:NUMBERS])
        share = (output[:, x.shape[1] :] + 1) / 2 if self._learns_variance else 0
        x = x + added * torch.exp(share * high + (1 - share) * low) * self._noise[slots]
        return torch.stack([x, memory, data], dim=1)


class ClassPrior(LabelPrior[ClassDiT]):
    """A public prior over classes as a pipeline has it: the network, and the stage that samples with it."""

    def __init__(self, network: ClassDiT, config: ClassPriorConfig) -> None:
        self.network = network
        self.config = config

    @classmethod
    def load(cls, path: Path) -> "ClassPrior":
        """Load one safetensors file that knows its own configuration.

        Raises: CheckpointError.
        """
        tensors, config = load_checkpoint(path, ClassPriorConfig)
        network = ClassDiT(config.network)
        load_into(network, tensors, path)
        return cls(network, config)

    def make_stage(self, num_slots: int) -> ClassStage:
        """Return the stage that samples, for at most ``num_slots`` samples at a time."""
        return ClassStage(self.network, self.config, num_slots)
