"""Conditions: each may be left out, and what is left out changes nothing."""

from dataclasses import replace

import pytest
import torch

from models.conditioning import Conditions, drop_conditions, stack_conditions
from models.networks.dit import DiT, DiTConfig
from models.options import ConfigError

CONFIG = DiTConfig(
    grid=(4, 4), hidden_size=16, depth=2, num_heads=2, label_sizes=(3, 2),
    text_tokens=5, text_channels=6,
)  # fmt: skip


@pytest.fixture
def prior() -> DiT:
    prior = DiT(CONFIG).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in prior.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    return prior


def ask(num_rows: int, num_words: int = 3) -> Conditions:
    generator = torch.Generator().manual_seed(1)
    labels = torch.stack([torch.arange(num_rows) % 3, torch.arange(num_rows) % 2], dim=1)
    text = torch.randn(num_rows, 5, 6, generator=generator)
    text[:, num_words:] = 0
    return Conditions(labels, text)


def call(prior: DiT, conditions: Conditions) -> torch.Tensor:
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2)).expand(
        len(conditions), -1, -1, -1
    )
    with torch.inference_mode():
        return prior(x, torch.full((len(conditions),), 0.4), conditions)


def test_every_condition_changes_the_velocity(prior: DiT) -> None:
    plain, null = ask(1), prior.null_conditions()
    variants = [
        plain,
        null,
        Conditions(plain.labels, null.text),
        Conditions(torch.tensor([[3, 0]]), plain.text),
        Conditions(torch.tensor([[0, 2]]), plain.text),
    ]
    velocities = call(prior, stack_conditions(variants))
    for i in range(len(variants)):
        for j in range(i):
            assert not torch.allclose(velocities[i], velocities[j], atol=1e-3), (i, j)


def test_empty_tokens_add_nothing_but_weight_to_the_softmax(prior: DiT) -> None:
    """Their values are zero: the context of no prompt leaves attention's sum of values as it was, scaled."""
    context, pooled = prior.embed_text(torch.zeros(1, 5, 6))
    assert not context.any()
    assert not pooled.any()


def test_each_condition_is_dropped_on_its_own_and_all_of_them_together() -> None:
    null = Conditions(torch.tensor([[3, 2]]), torch.zeros(1, 5, 6))
    num_rows, rate = 20_000, 0.2
    dropped = drop_conditions(ask(num_rows), null, rate, torch.Generator().manual_seed(0))
    assert dropped.text is not None
    lost = torch.stack(
        [dropped.labels[:, 0] == 3, dropped.labels[:, 1] == 2, ~dropped.text.flatten(1).any(1)]
    )
    alone = rate + (1 - rate) * rate  # lost with everything, or on its own
    torch.testing.assert_close(lost.float().mean(1), torch.full((3,), alone), atol=0.01, rtol=0)
    all_three = rate + (1 - rate) * rate**3
    assert lost.all(0).float().mean().item() == pytest.approx(all_three, abs=0.01)


def test_a_lone_condition_is_dropped_at_the_rate_alone() -> None:
    labels = Conditions(torch.zeros(20_000, 1, dtype=torch.long))
    null = Conditions(torch.tensor([[7]]))
    dropped = drop_conditions(labels, null, 0.2, torch.Generator().manual_seed(0))
    assert (dropped.labels == 7).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_the_vector_of_a_prompt_goes_wherever_its_tokens_go() -> None:
    null = Conditions(torch.tensor([[3, 2]]), torch.zeros(1, 5, 6), pooled=torch.zeros(1, 4))
    asked = replace(ask(50), pooled=torch.ones(50, 4))
    dropped = drop_conditions(asked, null, 0.4, torch.Generator().manual_seed(0))
    assert torch.equal(dropped.pooled.any(1), dropped.text.flatten(1).any(1))
    assert 0 < dropped.pooled[:, 0].sum() < 50
    both = stack_conditions([asked[:1], null])
    assert both.pooled.tolist() == [[1.0] * 4, [0.0] * 4]
    assert not both[:1].equals(replace(both[:1], pooled=both.pooled[1:]))
    both.write(0, null)
    assert both[:1].equals(null)


def test_gradients_reach_every_parameter(prior: DiT) -> None:
    prior.train()
    x = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    prior(x, torch.rand(4, generator=torch.Generator().manual_seed(1)), ask(4)).square().mean().backward()
    without = [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_half_a_text_configuration_is_refused() -> None:
    with pytest.raises((ConfigError, ValueError), match="must both be 0 or neither, got 5 and 0"):
        DiTConfig(text_tokens=5)
