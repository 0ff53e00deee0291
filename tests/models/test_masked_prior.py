"""What a masked prior learns by, and which of its draws it keeps."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from models.conditioning import Conditions
from models.priors.masked import (
    draw_masked_shares,
    keep_at_random,
    keep_surest,
    masked_loss,
    num_masked_after,
)

NULL = Conditions(torch.tensor([[1]]))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_schedule_is_maskgits_cosine() -> None:
    found = [num_masked_after(step, 8, 256) for step in range(8)]
    assert found == [int(256 * math.cos(math.pi / 2 * (step + 1) / 8)) for step in range(7)] + [0]


@pytest.mark.parametrize("num_steps", [1, 2, 16, 40])
def test_every_step_fills_in_a_code_while_there_are_any(num_steps: int) -> None:
    left = [16, *(num_masked_after(step, num_steps, 16) for step in range(num_steps))]
    assert left[-1] == 0
    assert all(after < before or before == 0 for before, after in itertools.pairwise(left))


def test_the_surest_draws_are_kept_and_only_of_masked_codes() -> None:
    log_shares = torch.tensor([-1.0, -0.1, -3.0, -0.2, -0.5])
    is_masked = torch.tensor([True, False, True, True, True])
    kept = keep_surest(log_shares, is_masked, 2, 0.0, seeded())
    assert kept.tolist() == [False, False, False, True, True]
    kinds = {tuple(keep_surest(log_shares, is_masked, 2, 50.0, seeded(i)).tolist()) for i in range(200)}
    assert len(kinds) == 6  # two of four, all of them now and then
    assert not any(kind[1] for kind in kinds)


def test_draws_are_kept_with_the_chance_of_the_reverse_process() -> None:
    """Of 20,000 codes, a share of 1 − i/S is masked after step i: within 5 standard deviations."""
    is_masked = torch.ones(20_000, dtype=torch.bool)
    generator = seeded()
    for step in range(8):
        is_masked &= ~keep_at_random(is_masked, step, 8, generator)
        share = 1 - (step + 1) / 8
        assert abs(is_masked.float().mean() - share) <= 5 * math.sqrt(share * (1 - share) / 20_000)
    assert not is_masked.any()


def test_masked_shares_spread_over_a_batch() -> None:
    for seed in range(20):
        shares = draw_masked_shares(8, seeded(seed))
        assert (shares > 0).all()
        assert (shares <= 1).all()
        assert sorted((8 * shares).ceil().int().tolist()) == list(range(1, 9))


def true_logits(chance: float, codes: Tensor) -> Tensor:
    """Return what a network says that knows two codes of independent places: 0 with this chance, or 1."""
    logs = torch.tensor([math.log(chance), math.log(1 - chance)])
    return logs.view(1, 2, 1).expand(len(codes), -1, codes.shape[1])


def test_the_loss_of_the_true_model_is_the_entropy_of_the_codes() -> None:
    """Where places are independent and the model is right, the bound is tight, whatever is masked.

    Of 4,000 samples of 64 codes, within 1 %.
    """
    chance = 0.2
    codes = (torch.rand(4000, 64, generator=seeded(1)) >= chance).long()
    conditions = Conditions(torch.zeros(4000, 1, dtype=torch.long))
    entropy = -(chance * math.log(chance) + (1 - chance) * math.log(1 - chance))

    def loss(weight: float) -> float:
        return masked_loss(
            lambda masked, _: true_logits(chance, masked), codes, conditions, NULL, seeded(2),
            no_code=2, condition_dropout=0.0, likelihood_weight=weight,
        ).item()  # fmt: skip

    assert loss(1.0) == pytest.approx(entropy, rel=0.01)
    assert loss(0.0) == pytest.approx(entropy / 2, rel=0.01)  # half of all codes are masked


def test_only_masked_codes_are_hidden_and_only_they_count() -> None:
    codes = torch.randint(5, (16, 64), generator=seeded(3))
    seen: list[Tensor] = []

    def sure(masked: Tensor, conditions: Conditions) -> Tensor:
        """Know every code that is shown, and be wrong of the others for sure."""
        seen.append(masked)
        shown = torch.where(masked == 5, (codes + 1) % 5, masked)
        return 30 * torch.nn.functional.one_hot(shown, 5).float().transpose(1, 2)

    conditions = Conditions(torch.zeros(16, 1, dtype=torch.long))
    loss = masked_loss(
        sure, codes, conditions, NULL, seeded(4), no_code=5, condition_dropout=0.0, likelihood_weight=0.0
    )
    is_hidden = seen[0] == 5
    assert torch.equal(seen[0][~is_hidden], codes[~is_hidden])
    assert loss.item() == pytest.approx(30 * is_hidden.float().mean().item(), rel=1e-4)
