"""Drawing codes from logits, so that a draw depends on its logits, its request and one number alone.

Everything works on rows (…, codebook) by operations that round each value by itself or sum along a row, so
that a row's draws don't depend on the rows beside it.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from models.options import AutoregressiveOptions
from models.transfers import send

REPEATED_SHARE = 0.1  # of the window, from which on a code counts as repeated


def generator_of(seed: int, index: int) -> torch.Generator:
    """Return the CPU generator of sample ``index`` of a request with ``seed``."""
    mixed = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(mixed)


def draw_codes(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return codes (…) of probabilities (…, codebook), which need not sum to 1, by uniforms (…) in [0, 1).

    A code is drawn where the sum of those up to it passes the uniform number's share of the whole.
    """
    sums = probabilities.cumsum(-1, dtype=torch.float64)  # (…, codebook)
    wanted = uniforms[..., None].double() * sums[..., -1:]
    codes = torch.searchsorted(sums, wanted, right=True)[..., 0]
    return codes.clamp(max=probabilities.shape[-1] - 1)


def least_kept(probabilities: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Return the least probability (B, 1) that is still drawn of each row of probabilities (B, codebook).

    top_k (B,): only so many of the likeliest; 0 is all. top_p (B,): of these only the likeliest that reach
    such a share of theirs together (Holtzman et al. 2020, arXiv:1904.09751). min_p (B,): of these only those
    of at least such a share of the likeliest one's (Nguyen et al. 2024, arXiv:2407.01082). What is exactly
    as likely as the last that is kept is kept, too.
    """
    size = probabilities.shape[-1]
    falling = probabilities.sort(-1, descending=True).values  # (B, codebook)
    num_kept = torch.where(top_k > 0, top_k, size).clamp(max=size)[:, None]  # (B, 1)
    ranks = torch.arange(size, device=probabilities.device)
    sums = torch.where(ranks < num_kept, falling, 0).cumsum(-1, dtype=torch.float64)  # (B, codebook)
    before = sums - falling.double()
    has_enough = before >= top_p[:, None].double() * sums[:, -1:]  # without this one already
    is_kept = (ranks < num_kept) & (~has_enough | (ranks == 0)) & (falling >= min_p[:, None] * falling[:, :1])
    return falling.gather(-1, is_kept.sum(-1, keepdim=True) - 1)


@dataclass(frozen=True)
class DrawSettings:
    """How each row (B,) draws; see ``AutoregressiveOptions``."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition_window: Tensor

    @classmethod
    def of(cls, options: list[AutoregressiveOptions], device: torch.device) -> Self:
        """Return the settings of rows."""
        whole = torch.tensor([[each.top_k, each.repetition_window] for each in options])
        others = torch.tensor([[each.temperature, each.top_p, each.min_p] for each in options])
        (top_k, window), (temperature, top_p, min_p) = (
            send(table, device).unbind(1) for table in (whole, others)
        )
        return cls(temperature, top_k, top_p, min_p, window)


def draw_next(
    logits: Tensor, settings: DrawSettings, uniforms: Tensor, codes: Tensor, positions: Tensor
) -> Tensor:
    """Return the codes (B,) at ``positions`` (B,), drawn from logits (B, codebook) float32.

    uniforms: (B, 2) in [0, 1). codes: (B, N), so far. A temperature of 0 takes the likeliest code, of several
    the first. Within a window of repetition, a code that makes up more than a tenth of it is drawn once more,
    from all codes, as in VALL-E 2 (Chen et al. 2024, arXiv:2406.05370): so that runs of one code end.
    """
    is_greedy = settings.temperature == 0
    temperature = torch.where(is_greedy, 1, settings.temperature)[:, None]
    whole = (logits / temperature).softmax(-1)  # (B, codebook)
    min_p = torch.where(is_greedy, 1, settings.min_p)
    is_cut = (settings.top_k > 0) | (settings.top_p < 1) | (min_p > 0)
    kept = whole
    if logits.is_cuda or bool(is_cut.any()):  # sorting is dear on a CPU, asking is on a GPU
        least = least_kept(whole, settings.top_k, settings.top_p, min_p)
        kept = torch.where((whole >= least) | ~is_cut[:, None], whole, 0)
    first = torch.where(is_greedy, 0, uniforms[:, 0])
    drawn = draw_codes(kept, first)
    if logits.is_cuda or bool((settings.repetition_window > 0).any()):
        age = positions[:, None] - torch.arange(codes.shape[1], device=codes.device)  # (B, N), from 1 on
        window = settings.repetition_window
        is_repeated = (codes == drawn[:, None]) & (age >= 1) & (age <= window[:, None])
        is_drawn_again = is_repeated.sum(1) > REPEATED_SHARE * window
        drawn = torch.where(is_drawn_again, draw_codes(whole, uniforms[:, 1]), drawn)
    return drawn
