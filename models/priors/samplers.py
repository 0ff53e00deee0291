"""Samplers: from noise (t = 0) to data (t = 1) in a few calls of the prior.

Every sampler here is linear in the running latents ``x``, the velocity ``v`` and one tensor of memory
``m``. So a sampler is a table with one row a call of the prior: the time of the call and the six
coefficients of the update

    x ← xx·x + xv·v + xm·m          m ← mx·x + mv·v + mm·m     (both from the old x and m)

and one function steps a batch in which every sample has a sampler, a number of steps and a time of
its own.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from models.options import FlowOptions, SamplerName


@dataclass(frozen=True)
class Call:
    """One call of the prior at time ``t``, and the update that follows it."""

    t: float
    xx: float
    xv: float
    xm: float = 0.0
    mx: float = 0.0
    mv: float = 0.0
    mm: float = 0.0

    @property
    def coefficients(self) -> tuple[float, float, float, float, float, float]:
        return self.xx, self.xv, self.xm, self.mx, self.mv, self.mm


def euler(times: list[float]) -> list[Call]:
    """Return Euler's method: one call a step."""
    return [Call(t, xx=1, xv=t_next - t) for t, t_next in itertools.pairwise(times)]


def heun(times: list[float]) -> list[Call]:
    """Return Heun's method: two calls a step but one for that to 1 (Karras et al. 2022, arXiv:2206.00364)."""
    calls = []
    for t, t_next in itertools.pairwise(times):
        if t_next == 1:
            calls.append(Call(t, xx=1, xv=t_next - t))
            break
        half = (t_next - t) / 2
        calls.append(Call(t, xx=1, xv=t_next - t, mx=1, mv=half))  # m keeps x + half·v
        calls.append(Call(t_next, xx=0, xv=half, xm=1))
    return calls


def dpmpp_2m(times: list[float]) -> list[Call]:
    """Return DPM-Solver++(2M): one call a step, second order (Lu et al. 2022, arXiv:2211.01095).

    Here α = t and σ = 1 − t. The memory is the last prediction of the data, x + (1 − t)·v. The first and
    the last step are of first order, where the log of the signal-to-noise ratio is infinite.
    """
    calls = []
    for i, (t, t_next) in enumerate(itertools.pairwise(times)):
        shrink = (1 - t_next) / (1 - t)
        growth = t_next - t * shrink  # −α'·(exp(−h) − 1)
        extrapolation = 0.0
        if i >= 1 and times[i - 1] > 0 and t_next < 1:  # a step from 0 or to 1 has no finite length
            step = _log_snr(t_next) - _log_snr(t)
            extrapolation = step / (2 * (_log_snr(t) - _log_snr(times[i - 1])))
        data = growth * (1 + extrapolation)
        calls.append(
            Call(
                t,
                xx=shrink + data,
                xv=data * (1 - t),
                xm=-growth * extrapolation,
                mx=1,
                mv=1 - t,
            )
        )
    return calls


SAMPLERS: dict[SamplerName, Callable[[list[float]], list[Call]]] = {  # over any times
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}


def time_grid(num_steps: int, time_easing: float = 0.0, strength: float = 1.0) -> list[float]:
    """Return the ``num_steps + 1`` times between steps, from 0 to 1.

    A ``time_easing`` of 0 spaces them equally, 1 like half a cosine's: close together at both ends, where
    steps of one length err most. Values between mix the two. A ``strength`` below 1 leaves the end of them:
    the last num_steps · strength steps, rounded to a whole number of at least one, stretched so that they
    begin at 1 − strength exactly.
    """
    shares = [i / num_steps for i in range(num_steps + 1)]
    times = [u + time_easing * ((1 - math.cos(math.pi * u)) / 2 - u) for u in shares]
    if strength == 1:
        return times
    end = times[-1 - max(1, round(num_steps * strength)) :]
    return [1 - (1 - t) * strength / (1 - end[0]) for t in end]


def make_calls(options: FlowOptions, strength: float = 1.0) -> list[Call]:
    """Return the calls of a sampler over the steps of ``time_grid``."""
    return SAMPLERS[options.sampler](time_grid(options.num_steps, options.time_easing, strength))


def times_after(times: list[float]) -> list[float]:
    """Return the time at which each call leaves x, of their times: that of the next call, or 1.

    The first call of a step of Heun's leaves a guess at the step's end, which is at that time, too.
    """
    return [*times[1:], 1.0]


def take_step(x: Tensor, v: Tensor, m: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next x and m for x, v, m (B, …) and coefficients (B, 6), in float32."""
    xx, xv, xm, mx, mv, mm = (c.view(-1, *[1] * (x.ndim - 1)) for c in coefficients.unbind(1))
    return xx * x + xv * v + xm * m, mx * x + mv * v + mm * m


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """Return the guided velocity (B, …) for a guidance scale (B,) per sample.

    Ho and Salimans 2022 (arXiv:2207.12598), with 1 for no guidance.
    """
    scale = scale.view(-1, *[1] * (conditional.ndim - 1))
    return unconditional + scale * (conditional - unconditional)


def is_guided(t: float, scale: float, interval: tuple[float, float]) -> bool:
    """Tell whether a call at time ``t`` needs the unconditional row."""
    return scale != 1.0 and interval[0] <= t <= interval[1]


def _log_snr(t: float) -> float:
    return math.log(t / (1 - t))
