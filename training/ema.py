"""Exponential moving averages of weights."""

import torch
from torch import Tensor, nn


class WeightAverage:
    """A moving average of a module's parameters, in float32.

    The decay grows with the steps taken, min(decay, (1 + n) / (10 + n)), so that the first weights are
    soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = list(module.parameters())
        self.tensors = {name: p.detach().float().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the module's parameters after training step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current: list[Tensor] = [parameter.float() for parameter in self._parameters]
        torch._foreach_lerp_(list(self.tensors.values()), current, 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        """Set the parameters of ``module`` to the average."""
        module.load_state_dict(self.tensors, strict=False)
