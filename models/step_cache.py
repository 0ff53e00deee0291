"""Step caching: the prior's middle blocks are computed only at some of a sampler's calls.

Between neighbouring calls the blocks' contribution changes little, so what the middle ones add (their
residual) is computed at every ``interval``-th call and added again at those between, where only the first
and the last block are computed, which see the new latents and the new time. After DeepCache (Ma et al.
2023, arXiv:2312.00858), with the residual of Δ-DiT (Chen et al. 2024, arXiv:2406.01125) in place of a
U-Net's deep features, and a fixed interval as in FORA (Selvaraju et al. 2024, arXiv:2407.01425).

It pays where a call is dominated by the blocks and the schedule is long: at an interval of 2, half of the
calls cost 2 blocks instead of ``depth``. With few steps, fewer steps are the better bargain: calls lie far
apart, and the residual of one says little about the next.
"""

from dataclasses import dataclass

from torch import Tensor

from models.conditioning import Conditions
from models.prior import DiT


@dataclass
class StepCache:
    """The middle blocks' residual of a row, or of rows in step, from one call to later ones."""

    interval: int
    residual: Tensor | None = None
    computed_at: int = 0

    def at(self, position: int) -> Tensor | None:
        """Return the residual for call number ``position`` of the schedule; None if it has to be computed."""
        return self.residual if position - self.computed_at < self.interval else None

    def keep(self, residual: Tensor, position: int) -> None:
        """Keep what was computed at call number ``position``."""
        self.residual, self.computed_at = residual, position


def call_cached(
    prior: DiT, x: Tensor, t: Tensor, conditions: Conditions, cache: StepCache, position: int
) -> Tensor:
    """Return the prior's velocity at call number ``position``, all rows from one cache."""
    residual = cache.at(position)
    velocity, computed = prior.forward_cached(x, t, conditions, residual)
    if residual is None:
        cache.keep(computed, position)
    return velocity
