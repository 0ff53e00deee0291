"""Codes that were searched for."""

from dataclasses import replace

import torch
from torch import Tensor

from models.autoencoders.code_search import CALLS_PER_SWEEP, CodeSearch, search_codes
from models.autoencoders.vq import Tokenizer
from tests.tiny import TOKENIZER


def untrained() -> Tokenizer:
    generator = torch.Generator().manual_seed(0)
    tokenizer = Tokenizer(replace(TOKENIZER, image_size_px=32)).eval().requires_grad_(False)
    for parameter in tokenizer.parameters():
        parameter.normal_(std=0.2, generator=generator)
    tokenizer.quantizer.codebook.normal_(generator=generator)
    return tokenizer


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def squared_errors(tokenizer: Tokenizer, codes: Tensor, targets: Tensor) -> Tensor:
    return (tokenizer.decode_codes(codes) - targets).square().mean((1, 2, 3))


def test_each_sweep_decodes_better() -> None:
    tokenizer, targets = untrained(), images(3)
    errors = [squared_errors(tokenizer, search_codes(tokenizer, targets, n), targets) for n in range(3)]
    assert (errors[1] < errors[0]).all()
    assert (errors[2] <= errors[1]).all()


def test_no_sweep_gives_the_nearest_codes() -> None:
    tokenizer, targets = untrained(), images(2)
    nearest = tokenizer.quantize(tokenizer.encode(targets)).codes
    assert torch.equal(search_codes(tokenizer, targets, 0), nearest)


def test_a_call_changes_codes_far_apart_and_a_sweep_may_change_all() -> None:
    tokenizer = untrained()
    search = CodeSearch(tokenizer, images(1))
    changed = torch.zeros(8, 8, dtype=torch.bool)
    codes = search.nearest
    for call in range(CALLS_PER_SWEEP):
        better = search.improve(codes, call)
        places = (better != codes)[0]
        rows, columns = places.nonzero().unbind(1)
        assert {
            (row % 5, column % 5) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        } <= {divmod(call, 5)}
        changed |= places
        codes = better
    assert changed.float().mean() > 0.3


def test_images_are_searched_for_by_themselves() -> None:
    tokenizer, targets = untrained(), images(3)
    together = search_codes(tokenizer, targets, 1)
    alone = torch.cat([search_codes(tokenizer, target[None], 1) for target in targets])
    assert (together == alone).float().mean() > 0.99, "but for rounding"


def test_codes_that_can_not_be_decoded_are_never_chosen_and_images_without_others_are_told() -> None:
    tokenizer = untrained()
    whole = tokenizer.decode_codes
    search = CodeSearch(tokenizer, images(2))
    bad = next(code for code in range(32) if code not in search.nearest)
    tokenizer.decode_codes = lambda codes: (
        whole(codes) / (codes != bad).all((1, 2)).float()[:, None, None, None]
    )
    codes = search.nearest
    for call in range(CALLS_PER_SWEEP):
        codes = search.improve(codes, call)
    assert bad not in codes
    assert search.is_finite.tolist() == [True, True]
    spoilt = torch.stack([codes[0], codes[1].masked_fill(codes[1] == codes[1, 0, 0], bad)])
    search.improve(spoilt, 0)
    assert search.is_finite.tolist() == [True, False]
