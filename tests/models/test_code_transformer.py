"""The network over codes: with a cache it computes what it computes of all codes at once."""

import pytest
import torch
from pydantic import ValidationError

from models.conditioning import Conditions
from models.networks.code_transformer import CodeCache, CodeTransformer, CodeTransformerConfig


def make_network(**changed: object) -> CodeTransformer:
    """Return a small random network of three labels and prompts of five tokens."""
    config = CodeTransformerConfig(
        **{
            "is_causal": True, "grid": (4, 3), "codebook_size": 32, "hidden_size": 32, "depth": 2,
            "num_heads": 2, "label_sizes": (3,), "text_tokens": 5, "text_channels": 8, **changed,
        }
    )  # fmt: skip
    network = CodeTransformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.normal_(std=0.3, generator=generator)
    return network


def make_inputs(network: CodeTransformer, num_rows: int) -> tuple[torch.Tensor, Conditions]:
    generator = torch.Generator().manual_seed(1)
    config = network.config
    codes = torch.randint(config.codebook_size, (num_rows, *config.grid), generator=generator)
    labels = torch.randint(config.label_sizes[0] + 1, (num_rows, 1), generator=generator)
    text = None
    if config.takes_prompt:
        text = torch.randn(num_rows, config.text_tokens, config.text_channels, generator=generator)
    return codes, Conditions(labels, text)


@torch.inference_mode()
@pytest.mark.parametrize("changed", [{}, {"text_tokens": 0, "text_channels": 0}, {"grid": (8,)}])
def test_codes_one_after_another_have_the_logits_of_all_at_once(changed: dict[str, object]) -> None:
    """To 1e-5, as sums are made in another order; logits are about 2."""
    network = make_network(**changed)
    codes, conditions = make_inputs(network, 3)
    at_once = network(codes, conditions).flatten(2)
    cache, rows = CodeCache(network.config, 6, network.embed_places), torch.tensor([4, 0, 1])
    for row, of_cache in enumerate(rows.tolist()):
        cache.begin(of_cache, network.prefix(conditions[row : row + 1]))
    before, found = torch.full((3,), network.no_code), []
    for position in range(network.config.num_codes):
        found.append(network.decode(before, torch.full((3,), position), rows, cache))
        before = codes.flatten(1)[:, position]
    torch.testing.assert_close(torch.stack(found, dim=-1), at_once, atol=1e-5, rtol=1e-5)
    assert at_once.std() > 1


@torch.inference_mode()
def test_rows_at_any_positions_share_a_call_that_may_be_made_twice() -> None:
    network = make_network()
    codes, conditions = make_inputs(network, 2)
    at_once = network(codes, conditions).flatten(2)
    cache, flat = CodeCache(network.config, 4, network.embed_places), codes.flatten(1)
    for row in range(2):
        cache.begin(row, network.prefix(conditions[row : row + 1]))
    for position in range(7):  # the first row alone, then both, the second far behind
        before = flat[:1, position - 1] if position else torch.tensor([network.no_code])
        network.decode(before, torch.tensor([position]), torch.tensor([0]), cache)
    positions, before = torch.tensor([7, 0]), torch.stack([flat[0, 6], torch.tensor(network.no_code)])
    once, twice = (network.decode(before, positions, torch.tensor([0, 1]), cache) for _ in range(2))
    assert torch.equal(once, twice)
    torch.testing.assert_close(once[0], at_once[0, :, 7], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(once[1], at_once[1, :, 0], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_row_begins_without_a_trace_of_one_that_failed() -> None:
    network = make_network()
    _, conditions = make_inputs(network, 1)
    cache = CodeCache(network.config, 1, network.embed_places)
    given = torch.tensor([network.no_code]), torch.tensor([0]), torch.tensor([0])
    cache.begin(0, network.prefix(conditions))
    clean = network.decode(*given, cache)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    cache.begin(0, network.prefix(conditions))
    assert torch.equal(network.decode(*given, cache), clean)


@torch.inference_mode()
def test_a_causal_network_sees_no_code_from_the_one_it_predicts_on() -> None:
    network = make_network()
    codes, conditions = make_inputs(network, 1)
    changed = codes.clone()
    changed[0, 2, 0] = (changed[0, 2, 0] + 1) % 32  # the seventh
    logits, others = (network(each, conditions).flatten(2) for each in (codes, changed))
    assert torch.equal(logits[..., :7], others[..., :7])
    assert not torch.equal(logits[..., 7], others[..., 7])


@torch.inference_mode()
@pytest.mark.parametrize("patch_size", [1, 2])
def test_any_other_network_sees_all_codes(patch_size: int) -> None:
    network = make_network(is_causal=False, grid=(4, 4), patch_size=patch_size)
    codes, conditions = make_inputs(network, 1)
    codes[0, 0, 0] = network.no_code
    logits = network(codes, conditions)
    assert logits.shape == (1, 32, 4, 4)
    codes[0, 3, 3] = (codes[0, 3, 3] + 1) % 32
    assert not torch.equal(network(codes, conditions)[0, :, 0, 0], logits[0, :, 0, 0])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"patch_size": 2, "grid": (4, 4)}, "patch_size must be 1 where codes are drawn in turn"),
        ({"is_causal": False, "patch_size": 2}, "every side of grid must be a multiple of patch_size 2"),
        ({"hidden_size": 30}, "hidden_size 30 must give each of num_heads 2"),
        ({"text_channels": 0}, "text_tokens and text_channels must both be 0 or neither"),
        ({"common_code": 32}, "common_code must be below 32, got 32"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changed: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        make_network(**changed)
