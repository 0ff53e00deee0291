"""The network of public class-conditional priors: a row's bits, and what is fused."""

import pytest
import torch
import torch.nn.functional as F

from models.conditioning import Conditions
from models.networks.class_dit import ClassDiT, ClassDiTConfig
from models.networks.layers import Linear, SampleLinear, VectorLinear
from models.options import ConfigError

WIDE = ClassDiTConfig(
    grid=(16, 16), hidden_size=768, num_heads=12, mlp_size=3072, depth=1, out_channels=4, num_labels=5
)


@torch.inference_mode()
def test_a_row_has_its_bits_whatever_is_computed_beside_it() -> None:
    """In bfloat16 and 768 channels wide, where a library would sum few rows in another order than many."""
    torch.manual_seed(0)
    network = ClassDiT(WIDE).to(torch.bfloat16).eval()
    x, times = torch.randn(24, 4, 16, 16), torch.rand(24) * 1000
    conditions = Conditions(torch.randint(0, 6, (24, 1)))
    together = network(x, times, conditions)
    for num_rows in (1, 2, 5, 8):
        for first in (0, 11):
            rows = slice(first, first + num_rows)
            assert torch.equal(network(x[rows], times[rows], conditions[rows]), together[rows])


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide_layers_are_linear_layers(dtype: torch.dtype) -> None:
    """bfloat16 has 8 bits: within 1 % of the largest output."""
    torch.manual_seed(0)
    for layer, x in (
        (SampleLinear(512, 24), torch.randn(3, 7, 512)),
        (VectorLinear(512, 24), torch.randn(19, 512)),
        (Linear(64, 24, has_gelu=True), torch.randn(3, 7, 64)),
    ):
        expected = F.linear(x, layer.weight, layer.bias)
        if layer.has_gelu:
            expected = F.gelu(expected, approximate="tanh")
        torch.testing.assert_close(layer.to(dtype)(x.to(dtype)).float(), expected, atol=0.04, rtol=0.01)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": (32, 16)}, "grid must be square"),
        ({"patch_size": 5}, "a multiple of patch_size 5"),
        ({"num_heads": 5}, "hidden_size must give each of num_heads 5"),
        ({"out_channels": 5}, "out_channels must be latent_channels 4 or twice as many, got 5"),
        ({"depth": 1000}, "less than or equal to 256"),
    ],
)
def test_a_shape_that_no_network_has_is_refused(fields, message) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        ClassDiTConfig(**fields)
