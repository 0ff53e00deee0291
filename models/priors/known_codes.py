"""What of a source's codes a masked prior draws anew, and in how many steps."""

import math

import torch
from torch import Tensor

from models.options import MaskedOptions
from models.priors.known import new_places


def new_codes(
    grid: tuple[int, ...], mask: Tensor | None, strength: float, generator: torch.Generator
) -> Tensor:
    """Return which codes (*grid) are drawn anew: a share of ``strength``, at least one.

    mask: (1, H, W), true for the pixels that may be; the share is of the codes that have any of those.
    Nothing is drawn from the generator where all of them are, so that they come out as without a source.
    """
    may_be = torch.ones(grid, dtype=torch.bool) if mask is None else new_places(mask.cpu(), grid)[0]
    if strength == 1:
        return may_be
    order = torch.rand(math.prod(grid), generator=generator).masked_fill(~may_be.flatten(), -1)
    num_allowed = int(may_be.sum())
    chosen = order.topk(min(num_allowed, max(1, round(strength * num_allowed)))).indices
    return torch.zeros_like(may_be).flatten().index_fill(0, chosen, True).view(grid)


def num_edit_steps(options: MaskedOptions, num_new: int, num_codes: int) -> int:
    """Return the steps in which so many of a source's codes are drawn anew.

    A share of ``strength``, rounded, and of parts of a source no more than there are codes to draw.
    """
    num_steps = max(1, round(options.num_steps * options.strength))
    return num_steps if num_new == num_codes else min(num_steps, max(1, num_new))
