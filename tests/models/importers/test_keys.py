"""Names and shapes of a checkpoint are taken over whole, or refused with what was found and expected."""

import pytest
import torch

from models.importers.base import ImportFailed
from models.importers.keys import shapes_of, take, under, without

EXPECTED = {"first.weight": (4, 2), "first.bias": (4,)}
RENAME = {"conv_in.weight": "first.weight", "conv_in.bias": "first.bias"}


def published() -> dict[str, torch.Tensor]:
    return {"conv_in.weight": torch.ones(4, 2), "conv_in.bias": torch.zeros(4)}


def test_every_tensor_is_taken_by_its_house_name() -> None:
    taken = take(published(), RENAME, EXPECTED)
    assert shapes_of(taken) == EXPECTED
    assert take(published(), lambda name: name.replace("conv_in", "first"), EXPECTED).keys() == taken.keys()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"conv_in.bias": None}, "1 were found, 2 expected; 1 missing (conv_in.bias (4,))"),
        ({"more": torch.ones(3)}, "3 were found, 2 expected; 1 left over (more (3,))"),
        (
            {"conv_in.weight": torch.ones(2, 4)},
            "1 of another shape (conv_in.weight (2, 4), expected (4, 2))",
        ),
        (
            {f"more.{i}": torch.ones(1) for i in range(5)},
            "5 left over (more.0 (1,), more.1 (1,), more.2 (1,) and 2 more)",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_counted(change: dict[str, torch.Tensor | None], told: str) -> None:
    changed = {name: tensor for name, tensor in {**published(), **change}.items() if tensor is not None}
    with pytest.raises(ImportFailed) as failed:
        take(changed, RENAME, EXPECTED)
    assert told in str(failed.value)


def test_two_tensors_for_one_place_are_refused() -> None:
    with pytest.raises(ImportFailed, match=r"1 there twice \(b and a\)"):
        take({"a": torch.ones(1), "b": torch.ones(1)}, {"a": "x", "b": "x"}, {"x": (1,)})


def test_a_part_is_told_by_its_prefix() -> None:
    tensors = {"first_stage_model.a": torch.ones(1), "loss.b": torch.ones(1)}
    assert list(under(tensors, "first_stage_model.")) == ["a"]
    assert list(without(tensors, "loss.", "model_ema.")) == ["first_stage_model.a"]
