"""What a public prior's network counts as time, and what its output means, in terms of ours.

Our time t: 0 is noise, 1 is data, and latents on the way are x = t·data + (1 − t)·noise. A diffusion that
keeps the variance has √ᾱ·data + √(1 − ᾱ)·noise instead (Ho et al. 2020, arXiv:2006.11239): the same at
t = √ᾱ/s, stretched by s = √ᾱ + √(1 − ᾱ). So every sampler of a flow is one of a diffusion, too: Euler's
method is DDIM (Song et al. 2021, arXiv:2010.02502), and DPM-Solver++ is the same in both.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from models.options import CHECKED, ConfigError, FlowOptions, NotNegative
from models.priors.samplers import SAMPLERS, Call, time_grid

NUM_NETWORK_NUMBERS = 7  # of a call, beside the sampler's
_Share = Annotated[float, Field(gt=0, lt=1)]
_SMALLEST_VARIANCE = 1e-20


@dataclass(frozen=True)
class NetworkCall:
    """One call of a public network, and the update that follows it.

    stretch: what the network is given is so many times x. time: as it counts it. The velocity is of_x·x +
    of_output·output. noise: how much of fresh noise is added, times its standard deviation, whose log lies
    between log_low and log_high, where the network says.
    """

    call: Call
    time: float
    stretch: float = 1.0
    of_x: float = 0.0
    of_output: float = 1.0
    noise: float = 0.0
    log_low: float = 0.0
    log_high: float = 0.0

    @property
    def numbers(self) -> tuple[float, ...]:
        """What a plan has of it after t, the guidance scale and the sampler's coefficients."""
        return (
            self.stretch,
            self.time,
            self.of_x,
            self.of_output,
            self.noise,
            self.log_low,
            self.log_high,
        )


@checked_dataclass(frozen=True, config=CHECKED)
class FlowSchedule:
    """A network that predicts the velocity, at times of its own: t, or 1 − t where it is reversed.

    Steps are shifted: a time t of the grid becomes shift·t / (1 + (shift − 1)·t) (LightningDiT).
    """

    kind: Literal["flow"] = "flow"
    time_scale: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    is_reversed: bool = False
    shift: Annotated[float, Field(gt=0, le=100)] = 1.0

    def noise_scale(self, options: FlowOptions) -> float:
        """Return what the noise that a sample starts from is multiplied by."""
        return 1.0

    def calls(self, options: FlowOptions, strength: float = 1.0) -> list[NetworkCall]:
        """Return the calls of a sampler over the steps of ``time_grid``."""
        times = [
            self.shift * t / (1 + (self.shift - 1) * t)
            for t in time_grid(options.num_steps, options.time_easing, strength)
        ]
        calls = SAMPLERS[options.sampler](times)
        sign = -1.0 if self.is_reversed else 1.0
        return [
            NetworkCall(call, self.time_scale * (1 - call.t if self.is_reversed else call.t), of_output=sign)
            for call in calls
        ]


@checked_dataclass(frozen=True, config=CHECKED)
class DiffusionSchedule:
    """A network that predicts the noise, the data or a mix of both at steps of noise that are numbered.

    spacing: which of the timesteps are taken: three of diffusers' ways, and "respaced", that of OpenAI's
    code, which DiT's authors use. steps_offset: added to those of "leading". ends_at_first: whether DDIM ends
    with the noise of timestep 0 in place of none. variance: of the noise that the ancestral sampler adds.
    """

    kind: Literal["diffusion"] = "diffusion"
    predicts: Literal["epsilon", "v", "sample"] = "epsilon"
    num_timesteps: Annotated[int, Field(ge=2, le=10_000)] = 1000
    betas: Literal["linear", "scaled_linear", "cosine"] = "linear"
    beta_start: _Share = 0.0001
    beta_end: _Share = 0.02
    spacing: Literal["respaced", "leading", "linspace", "trailing"] = "respaced"
    steps_offset: NotNegative = 0
    ends_at_first: bool = False
    variance: Literal["fixed_small", "fixed_large", "learned_range"] = "learned_range"

    def __post_init__(self) -> None:
        if self.steps_offset >= self.num_timesteps:
            raise ConfigError(
                f"steps_offset must be below num_timesteps {self.num_timesteps}, got {self.steps_offset}"
            )

    def kept(self) -> list[float]:
        """Return ᾱ of every timestep: the share of the data in the variance."""
        shares, product = [], 1.0
        for beta in self._betas():
            product *= 1 - beta
            shares.append(product)
        return shares

    def timesteps(self, options: FlowOptions) -> list[int]:
        """Return the timesteps of the calls, noisiest first.

        Raises: ConfigError where there are fewer than the steps asked for.
        """
        num, steps, offset = self.num_timesteps, options.num_steps, 0
        spare = int(
            options.sampler == "dpmpp_2m"
        )  # diffusers makes its grid a step longer, and leaves that out
        if steps + spare > num:
            raise ConfigError(f"num_steps: this pipeline has {num} timesteps, got {steps} steps")
        match self.spacing:
            case "respaced":
                stride = (num - 1) / (steps - 1) if steps > 1 else 1.0
                found = [round(i * stride) for i in range(steps)]
            case "linspace":
                parts = max(1, steps + spare - 1)
                found = [round(i * (num - 1) / parts) for i in range(steps + spare)][spare:]
            case "leading":
                offset = self.steps_offset
                found = [i * (num // (steps + spare)) for i in range(steps + spare)][spare:]
            case "trailing":
                found = [round(num - i * num / steps) - 1 for i in reversed(range(steps))]
        return [min(each + offset, num - 1) for each in reversed(found)]

    def noise_scale(self, options: FlowOptions) -> float:
        """Return what the noise that a sample starts from is multiplied by: ours is not stretched."""
        return 1 / _stretch(_time(self.kept()[self.timesteps(options)[0]]))

    def calls(self, options: FlowOptions, strength: float = 1.0) -> list[NetworkCall]:
        """Return the calls of a sampler over the timesteps; below a ``strength`` of 1, the last of them."""
        kept, timesteps = self.kept(), self.timesteps(options)
        timesteps = timesteps[-max(1, round(len(timesteps) * strength)) :]
        times = [_time(each) for each in kept]
        at = [times[step] for step in timesteps]
        match options.sampler:
            case "ddpm":
                return self._ancestral(kept, timesteps)
            case "ddim":
                calls = self._ddim(times, timesteps, self.num_timesteps // options.num_steps)
            case sampler:
                calls = SAMPLERS[sampler]([*at, times[0] if self.ends_at_first else 1.0])
        numbers = {time: step for step, time in enumerate(times)}
        return [self._network_call(call, numbers[call.t]) for call in calls]

    def _ddim(self, times: list[float], timesteps: list[int], stride: int) -> list[Call]:
        """Return DDIM's steps (η = 0).

        diffusers steps by a fixed number of timesteps, wherever the next call is: what a step leaves is taken
        as it is for the next call's, so it is stretched anew.
        """
        calls = []
        last = times[0] if self.ends_at_first else 1.0
        for step, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            previous = step - stride
            if self.spacing == "respaced":
                previous = -1 if following is None else following
            target = times[previous] if previous >= 0 else last
            stretch = _stretch(target) / (1.0 if following is None else _stretch(times[following]))
            calls.append(Call(times[step], xx=stretch, xv=(target - times[step]) * stretch))
        return calls

    def _ancestral(self, kept: list[float], timesteps: list[int]) -> list[NetworkCall]:
        """Return the ancestral sampler's steps: the posterior's mean, and fresh noise but at timestep 0."""
        calls = []
        for step, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            before = 1.0 if following is None else kept[following]
            beta = 1 - kept[step] / before
            of_data = math.sqrt(before) * beta / (1 - kept[step])
            of_sample = math.sqrt(1 - beta) * (1 - before) / (1 - kept[step])
            t, to = _time(kept[step]), _stretch(_time(before))
            call = Call(t, xx=(of_data + of_sample * _stretch(t)) / to, xv=of_data * (1 - t) / to)
            small = max(beta * (1 - before) / (1 - kept[step]), _SMALLEST_VARIANCE)
            low, high = 0.5 * math.log(small), 0.5 * math.log(beta)
            if self.variance != "learned_range":
                low = high = low if self.variance == "fixed_small" else high
            noise = 1 / to if step else 0.0
            calls.append(self._network_call(call, step, noise, low, high))
        return calls

    def _network_call(
        self, call: Call, step: int, noise: float = 0.0, low: float = 0.0, high: float = 0.0
    ) -> NetworkCall:
        t, stretch = call.t, _stretch(call.t)
        match self.predicts:
            case "epsilon":  # data − noise, where x = t·data + (1 − t)·noise
                of_x, of_output = 1 / t, -1 / t
            case "sample":
                of_x, of_output = -1 / (1 - t), 1 / (1 - t)
            case "v":  # √ᾱ·noise − √(1 − ᾱ)·data (Salimans and Ho 2022, arXiv:2202.00512)
                of_x, of_output = (2 * t - 1) * stretch**2, -stretch
        return NetworkCall(call, float(step), stretch, of_x, of_output, noise, low, high)

    def _betas(self) -> list[float]:
        num = self.num_timesteps
        match self.betas:
            case "linear":
                return _spread(self.beta_start, self.beta_end, num)
            case "scaled_linear":
                return [
                    root**2 for root in _spread(math.sqrt(self.beta_start), math.sqrt(self.beta_end), num)
                ]
            case "cosine":
                return [min(1 - _cosine((i + 1) / num) / _cosine(i / num), 0.999) for i in range(num)]


Schedule = Annotated[FlowSchedule | DiffusionSchedule, Field(discriminator="kind")]


def _time(kept: float) -> float:
    """Return our time of ᾱ."""
    return math.sqrt(kept) / (math.sqrt(kept) + math.sqrt(1 - kept))


def _stretch(t: float) -> float:
    """Return s = √ᾱ + √(1 − ᾱ) of our time t."""
    return 1 / math.sqrt(t * t + (1 - t) * (1 - t))


def _spread(low: float, high: float, num: int) -> list[float]:
    return [low + (high - low) * i / (num - 1) for i in range(num)]


def _cosine(share: float) -> float:
    """Return ᾱ of the cosine schedule (Nichol and Dhariwal 2021, arXiv:2102.09672)."""
    return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2
