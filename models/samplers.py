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

import torch
from torch import Tensor

from models.conditioning import Conditions, stack_conditions
from models.config import SamplerName, Sampling
from models.prior import DiT
from models.step_cache import StepCache, call_cached


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
    """Return Heun's method: two calls a step but one for the last (Karras et al. 2022, arXiv:2206.00364)."""
    calls = []
    for t, t_next in itertools.pairwise(times):
        if t_next == times[-1]:
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
        if i >= 2 and t_next < 1:  # times[0] is 0, so the step from there has no finite length
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


_SAMPLERS: dict[SamplerName, Callable[[list[float]], list[Call]]] = {
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}


def time_grid(num_steps: int, time_easing: float = 0.0) -> list[float]:
    """Return the ``num_steps + 1`` times between steps, from 0 to 1.

    A ``time_easing`` of 0 spaces them equally, 1 like half a cosine's: close together at both ends, where
    steps of one length err most. Values between mix the two.
    """
    shares = [i / num_steps for i in range(num_steps + 1)]
    return [u + time_easing * ((1 - math.cos(math.pi * u)) / 2 - u) for u in shares]


def make_calls(sampling: Sampling) -> list[Call]:
    """Return the calls of a sampler over the steps of ``time_grid``."""
    return _SAMPLERS[sampling.sampler](time_grid(sampling.num_steps, sampling.time_easing))


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


@torch.inference_mode()
def sample(
    prior: Callable[[Tensor, Tensor, Conditions], Tensor],
    noise: Tensor,
    conditions: Conditions,
    null_conditions: Conditions,
    sampling: Sampling,
    *,
    cache_interval: int = 1,
) -> Tensor:
    """Return latents (B, C, *grid) float32 from ``noise``, all of the batch in step.

    ``prior(x, t, conditions)`` gives the velocity; guidance leads away from ``null_conditions``, of as many
    rows. With a ``cache_interval`` above 1 the prior must be a DiT, and ``models/step_cache.py`` says what
    happens. For training and evaluation; the service's engine takes the same steps, each sample at its own.
    """
    cache, null_cache = StepCache(cache_interval), StepCache(cache_interval)
    x, m = noise.float(), torch.zeros_like(noise, dtype=torch.float32)
    for position, call in enumerate(make_calls(sampling)):
        needs_both = is_guided(call.t, sampling.guidance_scale, sampling.guidance_interval)
        t = x.new_full((len(x),), call.t)
        if cache_interval > 1:
            assert isinstance(prior, DiT), "only the blocks of a DiT can be cached"
            v = call_cached(prior, x, t, conditions, cache, position).float()
            if needs_both:
                null_v = call_cached(prior, x, t, null_conditions, null_cache, position).float()
        elif needs_both:
            both = stack_conditions([conditions, null_conditions])
            v, null_v = prior(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
        else:
            v = prior(x, t, conditions).float()
        if needs_both:
            v = guide(v, null_v, x.new_full((len(x),), sampling.guidance_scale))
        x, m = take_step(x, v, m, x.new_tensor([call.coefficients]).expand(len(x), 6))
    return x


def _log_snr(t: float) -> float:
    return math.log(t / (1 - t))
