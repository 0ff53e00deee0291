"""Matrices in eight bits."""

import torch

from models.eight_bits import from_eight_bits, to_eight_bits


def test_large_matrices_come_back_within_half_a_step_of_their_row_and_the_rest_as_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(128, 128, generator=generator) * torch.logspace(-3, 3, 128)[:, None]
    matrix[5] = 0
    tensors = {
        "wide": matrix,
        "small": torch.randn(3, 3),
        "bias": torch.randn(20_000),
        "ids": torch.arange(4),
    }
    packed = to_eight_bits(tensors)
    assert packed["wide"].dtype == torch.int8
    back = from_eight_bits(packed)
    assert set(back) == set(tensors)
    assert all(back[name] is tensors[name] for name in ("small", "bias", "ids"))
    half_step = matrix.abs().amax(1, keepdim=True) / 127 / 2
    rounded = matrix.abs() / 256  # by bfloat16
    assert ((back["wide"].float() - matrix).abs() <= half_step + rounded).all()
    assert (back["wide"][5] == 0).all()
