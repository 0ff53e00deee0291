"""What a prior learns from: batches drawn by the step, and captions by example."""

import torch

from models.conditioning import Conditions
from training.checkpoints import not_finite
from training.examples import Captions, Examples
from training.run import Processes, batch_rows, generator_for

ALONE = Processes(0, 1, torch.device("cpu"))


def test_each_example_is_drawn_with_its_own_captions_and_all_of_them() -> None:
    own = ((0, 1, 2), (3,), (4, 5))
    examples = Examples(
        targets=torch.zeros(3, 1, 2, 2),
        labels=torch.arange(3)[:, None],
        captions=Captions(
            rows=torch.tensor([[0, 1, 2], [3, 0, 0], [4, 5, 0]]),
            counts=torch.tensor([3, 1, 2]),
            states=torch.arange(6.0).view(6, 1, 1),
        ),
        preview_conditions=Conditions(torch.zeros(0, 1, dtype=torch.long)),
    ).kept_by(ALONE.keep)
    rows = torch.arange(3).repeat(100)
    conditions = examples.conditions(rows, generator_for(0, 1))
    assert conditions.labels[:, 0].tolist() == rows.tolist()
    assert conditions.text is not None
    for row, captions in enumerate(own):
        assert set(conditions.text[rows == row].flatten().tolist()) == set(captions)


def test_an_epoch_takes_every_example_once_and_the_next_in_another_order() -> None:
    epochs = [
        torch.cat([batch_rows(12, 4, 3 * epoch + step, seed=5, processes=ALONE) for step in range(3)])
        for epoch in (0, 1, 0)
    ]
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(12))] * 3
    assert epochs[0].tolist() == epochs[2].tolist() != epochs[1].tolist()
    expected = torch.randperm(12, generator=generator_for(5, -1, 1))
    assert epochs[1].tolist() == expected.tolist()


def test_what_is_not_finite_is_named_whatever_its_kind() -> None:
    state = {
        "network": {"weight": torch.ones(2, 2), "empty": torch.zeros(0), "codes": torch.ones(2).long()},
        "optimizer": [{"step": torch.tensor(3.0), "half": torch.ones(2, dtype=torch.bfloat16)}],
    }
    assert not_finite(state) is None
    for name, bad in (("weight", float("nan")), ("weight", float("-inf"))):
        broken = {**state, "network": {name: torch.tensor([1.0, bad])}}
        assert not_finite(broken) == f"network.{name}"
    state["optimizer"][0]["half"][1] = float("inf")
    assert not_finite(state) == "optimizer.0.half"
    assert not_finite({"large": torch.full((2,), 3e38)}) is None
