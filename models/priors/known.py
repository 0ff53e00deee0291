"""What is known of samples that are drawn anew in parts only: the rest of their sources, at any time.

Time t: 0 is noise, 1 is data.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.transfers import send


def interpolate(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t = t·latents + (1 − t)·noise for latents, noise (B, …) and t (B,) in [0, 1].

    Lipman et al. 2023 (arXiv:2210.02747), with the straight path of Liu et al. 2023 (arXiv:2209.03003).
    """
    t = t.view(-1, *[1] * (latents.ndim - 1))
    return t * latents + (1 - t) * noise


class KnownParts:
    """Latents, noise and known places of running samples, in slots of tensors that stay where they are.

    After each call of the prior, what is known is put back as it is at that time, on the straight path from
    the sample's own noise to its source's latents: replacement, as Lugmayr et al. 2022 (RePaint,
    arXiv:2201.09865) have it, with one noise for all times.
    """

    def __init__(self, num_slots: int, shape: Sequence[int], device: torch.device) -> None:
        self._latents = torch.zeros(num_slots, *shape, device=device)
        self._noise = torch.zeros(num_slots, *shape, device=device)
        self._is_known = torch.zeros(num_slots, 1, *shape[1:], dtype=torch.bool, device=device)

    def write(self, slot: int, latents: Tensor, noise: Tensor, mask: Tensor) -> None:
        """Keep a sample's latents and noise (d, h, w), and its mask (1, H, W), true where it is drawn anew.

        A place of the grid is known if none of its pixels is drawn anew.
        """
        grid = (self._is_known.shape[-2], self._is_known.shape[-1])
        is_new = F.adaptive_max_pool2d(mask.float(), grid) > 0  # (1, h, w)
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
