"""Matrices in eight bits a value, with a scale for each row: a file of half the size that bfloat16 takes.

They are for files alone: loading expands them, and what computes is bfloat16 or float32.
"""

import torch
from torch import Tensor

MIN_VALUES = 2**14  # of a matrix that is worth it
_SCALE = ".row_scale"  # behind the matrix's name
_LARGEST = 127


def to_eight_bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` with large matrices (rows, columns) as int8, and beside each its scales (rows,)."""
    packed = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and tensor.is_floating_point() and tensor.numel() >= MIN_VALUES:
            scales = tensor.float().abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
            packed[name] = (tensor.float() / scales[:, None]).round().to(torch.int8)
            packed[name + _SCALE] = scales
    return packed


def from_eight_bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` as they were before ``to_eight_bits``, but for rounding, in bfloat16.

    Scales that fit no matrix stay, so that whoever takes the tensors finds them left over.
    """
    whole = dict(tensors)
    for name, tensor in tensors.items():
        scales = tensors.get(name + _SCALE)
        if scales is not None and tensor.dtype == torch.int8 and scales.shape == tensor.shape[:1]:
            whole[name] = (tensor.float() * whole.pop(name + _SCALE)[:, None]).to(torch.bfloat16)
    return whole
