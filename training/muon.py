"""Muon for many matrices: those of equal shape in one batched Newton-Schulz iteration."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class BatchedMuon(torch.optim.Muon):
    """``torch.optim.Muon`` (Jordan et al. 2024) in as many steps as there are shapes, instead of matrices.

    Settings, state and results are torch's, but for the order of sums in the iteration's bfloat16 products;
    so either goes on from the other's checkpoint. Only the adjustment of the learning rate is always the
    "original".
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take one step. ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._step(parameters, group)

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Move parameters of one shape."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        updates = (
            torch._foreach_lerp(gradients, averages, group["momentum"]) if group["nesterov"] else averages
        )
        directions = orthogonalise(
            torch.stack(list(updates)), group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        rows, columns = parameters[0].shape
        scale = group["lr"] * math.sqrt(max(1, rows / columns))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, directions.to(parameters[0].dtype).unbind(), alpha=-scale)


def orthogonalise(
    matrices: Tensor, coefficients: tuple[float, float, float], num_iterations: int, eps: float
) -> Tensor:
    """Return ``matrices`` (K, M, N) with singular values near 1, in bfloat16: a quintic Newton-Schulz."""
    a, b, c = coefficients
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if is_tall else matrices).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
