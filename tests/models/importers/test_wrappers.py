"""Which weights of several in a checkpoint are meant."""

import pytest
import torch

from models.importers.base import ImportFailed
from models.importers.wrappers import unwrap


def named(value: float, *names: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name in names or ("a.b", "a.c")}


def test_moving_averages_go_first_where_both_are_there() -> None:
    both = {"model": named(1), "ema": named(2), "opt": {"state": {}}, "step": 3}
    assert (unwrap(both, None).wrapper, unwrap(both, None).tensors["a.b"]) == ("ema", 2)
    assert unwrap(both, "model").tensors["a.b"] == 1
    assert "ema was taken" in unwrap(both, None).notes[0]
    assert unwrap({"state_dict": named(1)}, None).wrapper == "state_dict"
    assert unwrap(named(1), None).wrapper == ""


def test_latent_diffusions_averages_are_found_by_names_without_dots() -> None:
    weights = named(1, "model.diffusion.in", "model.diffusion.out", "first_stage_model.in")
    averages = named(2, "model_ema.diffusionin", "model_ema.diffusionout", "model_ema.decay")
    saved = {"state_dict": weights | averages}
    taken = unwrap(saved, "ema").tensors
    assert {name: float(value) for name, value in taken.items()} == {
        "model.diffusion.in": 2, "model.diffusion.out": 2, "first_stage_model.in": 1,
    }  # fmt: skip
    left = unwrap(saved, "model")
    assert all(value == 1 for value in left.tensors.values())
    assert left.tensors.keys() == weights.keys()
    assert unwrap(saved, None).tensors == saved["state_dict"]
    autoencoder = named(1, "encoder.in") | named(2, "model_ema.encoderin")
    assert unwrap(autoencoder, "ema").tensors == {"encoder.in": 2}


def test_the_prefix_that_all_names_share_because_of_training_is_dropped() -> None:
    assert unwrap({"model": named(1, "module.a", "module.b")}, None).tensors.keys() == {"a", "b"}
    assert unwrap(named(1, "module.a", "b"), None).tensors.keys() == {"module.a", "b"}


@pytest.mark.parametrize(
    ("loaded", "weights", "told"),
    [
        ([1], None, "a whole module was saved"),
        ({"epoch": 3, "model": None}, None, "no tensors by name, but epoch, model"),
        ({}, None, "but nothing"),
        ({"model": named(1)}, "ema", "there are no moving averages"),
        (named(1), "ema", "there are no moving averages"),
        ({"ema": named(1)}, "model", "only those under ema"),
        (named(1), "both", "weights must be ema or model, got 'both'"),
        (named(1, "a.b", "ab", "model_ema.ab"), "ema", "may be of"),
        (named(1, "a", "model_ema.b"), "ema", "1 under model_ema. belong to no tensor, such as b"),
    ],
)
def test_what_is_not_there_is_told(loaded: object, weights: str | None, told: str) -> None:
    with pytest.raises(ImportFailed, match=told.replace("(", r"\(")):
        unwrap(loaded, weights)
