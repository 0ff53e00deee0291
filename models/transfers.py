"""Tensors between the host and a GPU, without waiting where nothing has to be waited for."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``; the host doesn't wait for a GPU to have it."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # only such memory is copied beside the host


def fetch(*tensors: Tensor) -> list[Tensor]:
    """Return tensors on the CPU; those of a GPU, which is all or none, after one wait."""
    if not tensors[0].is_cuda:
        return [tensor.cpu() for tensor in tensors]
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]  # into pinned memory
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
