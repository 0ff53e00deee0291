"""The quantisers: exact round trips, and a codebook that is used."""

import pytest
import torch

from models.autoencoders.quantizers import FSQ, VectorQuantizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learnt_quantizer(codebook_size: int = 64) -> VectorQuantizer:
    quantizer = VectorQuantizer(codebook_size, 4)
    quantizer.initialise(torch.randn(8, 4, 16, 16, generator=generator()), generator(1))
    return quantizer.eval()


@pytest.mark.parametrize(
    "quantizer", [learnt_quantizer(), FSQ((8, 5, 5, 5)).eval(), FSQ((2, 3, 4, 7)).eval()]
)
@pytest.mark.parametrize("grid", [(9,), (4, 6), (2, 3, 4)])
def test_quantized_latents_are_the_lookup_of_their_codes(quantizer, grid) -> None:
    latents = quantizer.squash(3 * torch.randn(2, 4, *grid, generator=generator(2)))
    quantized = quantizer.quantize(latents)
    assert quantized.codes.shape == (2, *grid)
    assert 0 <= quantized.codes.min() <= quantized.codes.max() < quantizer.codebook_size
    assert torch.equal(quantized.latents, quantizer.lookup(quantized.codes))
    assert torch.equal(quantizer.quantize(quantized.latents).codes, quantized.codes)


def test_vector_quantizer_takes_the_nearest_entry() -> None:
    quantizer = learnt_quantizer()
    latents = torch.randn(2, 4, 5, 5, generator=generator(3))
    distances = torch.cdist(latents.movedim(1, -1).reshape(-1, 4), quantizer.codebook)
    assert torch.equal(quantizer.quantize(latents).codes.flatten(), distances.argmin(1))


def test_fsq_reaches_every_code() -> None:
    quantizer = FSQ((8, 5, 4)).eval()
    latents = quantizer.squash(4 * torch.randn(1, 3, 20_000, generator=generator()))
    assert len(quantizer.quantize(latents).codes.unique()) == quantizer.codebook_size


def test_gradients_pass_straight_through() -> None:
    for quantizer in (VectorQuantizer(8, 4, commitment=0.0), FSQ((3, 3, 3, 3))):
        quantizer.train()
        latents = torch.randn(1, 4, 3, 3, generator=generator()).requires_grad_()
        weights = torch.randn(1, 4, 3, 3, generator=generator(1))
        (quantizer.quantize(latents).latents * weights).sum().backward()
        assert torch.equal(latents.grad, weights)


def test_dead_codes_are_revived_and_the_codebook_fits_the_data() -> None:
    """A codebook that starts as copies of one entry ends with every code in use, near the data."""
    quantizer = VectorQuantizer(16, 4, decay=0.8).train()
    quantizer.codebook.fill_(50.0)
    quantizer.sum_assigned.copy_(quantizer.codebook)
    for step in range(100):
        latents = torch.rand(1, 4, 512, generator=generator(step))
        quantizer.update(latents, quantizer.quantize(latents).codes, generator(step))
    latents = torch.rand(1, 4, 4096, generator=generator(1000))
    quantized = quantizer.eval().quantize(latents)
    assert len(quantized.codes.unique()) == 16
    # One entry for all has the uniform distribution's variance, 1/12; 16 cells of 4 halved sides, 1/48.
    assert (quantized.latents - latents).square().mean() < 1 / 40


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_squashing_does_not_hide_what_is_not_finite(value) -> None:
    squashed = FSQ((5, 4)).squash(torch.tensor([value, 1.0]).view(1, 2, 1, 1))
    assert squashed.isfinite().flatten().tolist() == [False, True]
