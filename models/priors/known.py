"""What is known of samples that are drawn anew in parts only: the rest of their sources, at any time.

Time t: 0 is noise, 1 is data.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.options import FlowOptions
from models.priors.samplers import SAMPLERS, Call, make_calls, time_grid, times_after
from models.transfers import send

_MAX_REPEATS = 3  # of a step
_STEPS_FOR_A_REPEAT = 5  # of a request: of fewer than ten steps each is taken once


@dataclass(frozen=True)
class After:
    """What follows a call: x is at ``time``, and goes back to ``back_to``, if set, with fresh noise."""

    time: float
    back_to: float | None = None

    @property
    def shares(self) -> tuple[float, float]:
        """Of x and of noise on the way back, whose sum has the noise of the time that it goes back to."""
        if self.back_to is None:
            return 1.0, 0.0
        share = self.back_to / self.time
        return share, math.sqrt(max(0.0, (1 - self.back_to) ** 2 - (share * (1 - self.time)) ** 2))


def resampled_calls(options: FlowOptions, strength: float) -> list[tuple[Call, After]]:
    """Return the calls of a sample in which parts are known, and what follows each.

    Steps are taken up to three times, each time from fresh noise, so that what is new comes to fit what is
    known; there are the fewer of them, so that it takes no more calls (RePaint, Lugmayr et al. 2022,
    arXiv:2201.09865). It goes back by one step, and each step is taken as a sampler's first: DPM-Solver++ is
    of first order then.
    """
    repeats = min(_MAX_REPEATS, options.num_steps // _STEPS_FOR_A_REPEAT)
    if repeats <= 1:
        calls = make_calls(options, strength)
        return list(zip(calls, map(After, times_after([call.t for call in calls])), strict=True))
    found: list[tuple[Call, After]] = []
    for t, t_next in itertools.pairwise(
        time_grid(options.num_steps // repeats, options.time_easing, strength)
    ):
        step = SAMPLERS[options.sampler]([t, t_next])
        *amid, _ = times_after([call.t for call in step])
        for number in range(repeats if t > 0 else 1, 0, -1):
            afters = [*map(After, amid), After(t_next, t if number > 1 else None)]
            found += zip(step, afters, strict=True)
    return found


def interpolate(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t = t·latents + (1 − t)·noise for latents, noise (B, …) and t (B,) in [0, 1].

    Lipman et al. 2023 (arXiv:2210.02747), with the straight path of Liu et al. 2023 (arXiv:2209.03003).
    """
    t = t.view(-1, *[1] * (latents.ndim - 1))
    return t * latents + (1 - t) * noise


def new_places(mask: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return which places of a grid are drawn anew (1, h, w), by a mask of pixels (1, H, W).

    A place is known if none of its pixels is drawn anew.
    """
    return F.adaptive_max_pool2d(mask.float(), (grid[-2], grid[-1])) > 0


class KnownParts:
    """Latents, noise and known places of running samples, in slots of tensors that stay where they are.

    After each call of the prior, what is known is put back as it is at that time, on the straight path from
    the sample's own noise to its source's latents.
    """

    def __init__(self, num_slots: int, shape: Sequence[int], device: torch.device) -> None:
        self._latents = torch.zeros(num_slots, *shape, device=device)
        self._noise = torch.zeros(num_slots, *shape, device=device)
        self._is_known = torch.zeros(num_slots, 1, *shape[1:], dtype=torch.bool, device=device)

    def write(self, slot: int, latents: Tensor, noise: Tensor, mask: Tensor) -> None:
        """Keep a sample's latents and noise (d, h, w), and its mask (1, H, W): see ``new_places``."""
        is_new = new_places(mask, self._is_known.shape)  # (1, h, w)
        self._latents[slot] = latents
        self._noise[slot] = noise
        self._is_known[slot] = send(~is_new, self._is_known.device)

    def restore(self, x_and_data: Tensor, slots: Sequence[int], times: Sequence[float]) -> Tensor:
        """Return x at ``times`` and data (B, 2, d, h, w) with what is known of the samples in ``slots``."""
        places = send(torch.tensor(slots), self._latents.device)
        t = send(torch.tensor(times, dtype=torch.float32), self._latents.device)
        latents = self._latents[places]
        known = torch.stack([interpolate(latents, self._noise[places], t), latents], 1)  # (B, 2, d, h, w)
        return torch.where(self._is_known[places][:, None], known, x_and_data)
