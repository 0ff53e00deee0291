"""Draws of codes, against a plain loop over the codes of one row."""

import math

import pytest
import torch

from models.options import AutoregressiveOptions
from models.priors.code_draws import DrawSettings, draw_codes, draw_next, generator_of, least_kept

SIZE = 48
CPU = torch.device("cpu")


def kept_by_loop(shares: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    """Return which codes are drawn, as their authors describe it."""
    order = sorted(range(len(shares)), key=lambda code: -shares[code])
    kept = order[: top_k or None]
    total = math.fsum(shares[code] for code in kept)
    reached, nucleus = 0.0, []
    for code in kept:
        nucleus.append(code)
        reached += shares[code]
        if reached >= top_p * total:
            break
    return {code for code in nucleus if shares[code] >= min_p * shares[order[0]]}


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(0, 1.0, 0.0), (1, 1.0, 0.0), (7, 1.0, 0.0), (900, 1.0, 0.0), (0, 0.4, 0.0), (0, 1e-6, 0.0),
     (0, 1.0, 0.05), (0, 1.0, 1.0), (20, 0.7, 0.02)],
)  # fmt: skip
def test_the_codes_that_are_drawn_are_those_of_a_plain_loop(top_k: int, top_p: float, min_p: float) -> None:
    logits = 3 * torch.randn(20, SIZE, generator=torch.Generator().manual_seed(0))
    shares = logits.softmax(-1)
    settings = DrawSettings.of([AutoregressiveOptions(top_k=top_k, top_p=top_p, min_p=min_p)] * 20, CPU)
    least = least_kept(shares, settings.top_k, settings.top_p, settings.min_p)
    for row, kept in zip(shares.tolist(), (shares >= least).tolist(), strict=True):
        wanted = kept_by_loop(row, top_k, top_p, min_p)
        assert {code for code, is_kept in enumerate(kept) if is_kept} == wanted


def draw(logits: torch.Tensor, options: AutoregressiveOptions, num_draws: int) -> torch.Tensor:
    """Return so many draws from logits (codebook,)."""
    uniforms = torch.rand(num_draws, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    settings = DrawSettings.of([options] * num_draws, CPU)
    none = torch.full((num_draws, 9), SIZE)
    return draw_next(logits.expand(num_draws, -1), settings, uniforms, none, torch.zeros(num_draws).long())


@pytest.mark.parametrize("options", [AutoregressiveOptions(temperature=0.7), AutoregressiveOptions(top_k=5)])
def test_codes_are_drawn_as_often_as_they_are_likely(options: AutoregressiveOptions) -> None:
    """Within 5 standard deviations of a count, of 20,000 draws."""
    logits = 2 * torch.randn(SIZE, generator=torch.Generator().manual_seed(2))
    shares = (logits / options.temperature).softmax(-1)
    if options.top_k:
        shares[shares < shares.sort().values[-5]] = 0
        shares /= shares.sum()
    found = torch.bincount(draw(logits, options, 20_000), minlength=SIZE) / 20_000
    assert ((found - shares).abs() <= 5 * (shares * (1 - shares) / 20_000).sqrt() + 1e-9).all()


def test_no_code_without_a_chance_is_drawn_at_either_end() -> None:
    shares = torch.tensor([[0.0, 0.0, 0.25, 0.0, 0.75, 0.0]]).expand(3, -1)
    uniforms = torch.tensor([0.0, 0.25, 1 - 2**-53], dtype=torch.float64)
    assert draw_codes(shares, uniforms).tolist() == [2, 4, 4]


def test_a_temperature_of_0_takes_the_first_of_the_likeliest() -> None:
    logits = torch.tensor([0.0, 2.0, 5.0, 1.0, 5.0])
    assert set(draw(logits, AutoregressiveOptions(temperature=0), 50).tolist()) == {2}


def test_only_a_code_that_is_repeated_within_the_window_is_drawn_once_more() -> None:
    logits = torch.zeros(1, SIZE)
    uniforms = torch.tensor([[0.5, 0.999]], dtype=torch.float64)  # the code in the middle, then the last
    drawn = int(draw_codes(logits.softmax(-1), uniforms[:, 0]))
    codes = torch.full((1, 40), SIZE)
    codes[0, 20:23] = drawn

    def draw_at(position: int, window: int) -> int:
        settings = DrawSettings.of([AutoregressiveOptions(repetition_window=window)], CPU)
        return int(draw_next(logits, settings, uniforms, codes, torch.tensor([position])))

    assert draw_at(23, 0) == drawn  # off
    assert draw_at(23, 10) == SIZE - 1  # three of ten
    assert draw_at(31, 10) == SIZE - 1  # two of ten
    assert draw_at(32, 10) == drawn  # one of ten is a tenth, and no more
    assert draw_at(39, 40) == drawn  # three of forty


def test_a_row_is_drawn_alike_whatever_is_drawn_beside_it() -> None:
    """Of sizes that vectors of a processor don't divide, where a row's place decides how it is computed."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(33, 1027, generator=generator)
    uniforms = torch.rand(33, 2, generator=generator, dtype=torch.float64)
    options = [
        AutoregressiveOptions(temperature=[1, 0.9, 0][i % 3], top_p=[1, 0.8][i % 2], repetition_window=i % 5)
        for i in range(33)
    ]
    codes, positions = torch.randint(1027, (33, 9), generator=generator), torch.arange(33) % 9
    together = draw_next(logits, DrawSettings.of(options, CPU), uniforms, codes, positions)
    for i in range(33):
        part = slice(i, i + 1)
        settings = DrawSettings.of(options[part], CPU)
        alone = draw_next(logits[part], settings, uniforms[part], codes[part], positions[part])
        assert torch.equal(alone, together[part])


def test_every_sample_of_a_request_has_numbers_of_its_own() -> None:
    drawn = {
        tuple(torch.rand(4, generator=generator_of(seed, index)).tolist())
        for seed in range(9)
        for index in range(9)
    }
    assert len(drawn) == 81
