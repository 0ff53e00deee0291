"""Step caching: the prior's middle blocks are computed only at some of a sampler's calls.

Between neighbouring calls the blocks' contribution changes little, so what the middle ones add (their
residual) is computed at every ``cache_interval``-th call and added again at those between, where only the
first and the last block are computed, which see the new latents and the new time. After DeepCache (Ma et al.
2023, arXiv:2312.00858), with the residual of Δ-DiT (Chen et al. 2024, arXiv:2406.01125) instead of a
U-Net's deep features, and a fixed interval as in FORA (Selvaraju et al. 2024, arXiv:2407.01425).

It pays where a call is dominated by the blocks and the schedule is long: at an interval of 2, half of the
calls cost 2 blocks instead of ``depth``. With few steps, fewer steps are the better bargain: calls lie far
apart, and the residual of one says little about the next.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.conditioning import Conditions
from models.networks.dit import DiT
from models.stage import Rows, Run


class StepCache:
    """Residuals of the rows of a stage, in slots, from one call to later ones."""

    def __init__(self, network: DiT, num_slots: int) -> None:
        self._network = network
        self._num_slots = num_slots
        self._residuals: Tensor | None = None  # (slots, N, hidden), from the first use on
        self._computed_at = [-1] * num_slots  # the call that each residual is of; −1: there is none

    def forget(self, slots: Sequence[int]) -> None:
        """Let slots be used for other rows."""
        for slot in slots:
            self._computed_at[slot] = -1

    def velocities(
        self,
        x: Tensor,
        t: Tensor,
        conditions: Conditions,
        slots: Sequence[int],
        intervals: Sequence[int],
        positions: Sequence[int],
        run: Run,
        fixed_rows: Sequence[int] | None,
    ) -> Rows:
        """Return the velocities (B, C, *grid) of rows, each with its slot, interval and call number.

        Rows that compute their middle blocks and rows that reuse them are two calls.
        """
        reusing = [
            row
            for row, slot in enumerate(slots)
            if self._computed_at[slot] >= 0 and positions[row] - self._computed_at[slot] < intervals[row]
        ]
        reuses = set(reusing)
        fresh = [row for row in range(len(slots)) if row not in reuses]
        velocities = torch.zeros_like(x)
        failures: dict[int, Exception] = {}
        residuals = self._table(x) if reusing or any(intervals[row] > 1 for row in fresh) else None

        def call_fresh(chosen: list[int]) -> Tensor:
            rows = [fresh[i] for i in chosen]
            given, computed = self._network.forward_cached(x[rows], t[rows], conditions[rows])
            for row, residual in zip(rows, computed, strict=True):
                if residuals is not None and intervals[row] > 1:
                    residuals[slots[row]] = residual
            return given

        def call_reusing(chosen: list[int]) -> Tensor:
            rows = [reusing[i] for i in chosen]
            assert residuals is not None
            kept = residuals[[slots[row] for row in rows]]
            return self._network.forward_cached(x[rows], t[rows], conditions[rows], kept)[0]

        for part, call in ((fresh, call_fresh), (reusing, call_reusing)):
            if part:
                results = run(call, len(part), fixed_rows)
                failures.update({part[row]: error for row, error in results.failures.items()})
                if results.values is not None:
                    velocities[part] = results.values.to(velocities.dtype)
        for row in fresh:
            if intervals[row] > 1:
                self._computed_at[slots[row]] = positions[row]
        return Rows(velocities, failures)

    def _table(self, x: Tensor) -> Tensor:
        if self._residuals is None:
            config = self._network.config
            dtype = next(self._network.parameters()).dtype
            shape = self._num_slots, config.num_tokens, config.hidden_size
            self._residuals = torch.zeros(shape, dtype=dtype, device=x.device)
        return self._residuals
