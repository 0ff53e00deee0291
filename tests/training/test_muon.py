"""Muon in batches gives what torch's gives, matrix by matrix."""

import pytest
import torch

from training.muon import BatchedMuon

SHAPES = ((24, 8), (8, 8), (8, 24), (24, 8), (8, 8), (16, 8))


def take_steps(optimizer: torch.optim.Optimizer, num_steps: int, seed: int) -> torch.Tensor:
    """Take steps along random gradients, the third matrix having none; return all numbers."""
    generator = torch.Generator().manual_seed(seed)
    parameters = optimizer.param_groups[0]["params"]
    for _ in range(num_steps):
        for number, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if number == 2 else gradient
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def make(kind: type[torch.optim.Muon], **settings: object) -> torch.optim.Muon:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    return kind(parameters, lr=0.02, **settings)


@pytest.mark.parametrize("settings", [{"weight_decay": 0.1}, {"nesterov": False, "momentum": 0.8}])
def test_steps_are_those_of_torch(settings: dict[str, object]) -> None:
    wanted, got = (take_steps(make(kind, **settings), 5, seed=1) for kind in (torch.optim.Muon, BatchedMuon))
    # A step's directions are of bfloat16, whose last bit is 1/256 of about 1/√8, times lr and five steps.
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-3)
    assert not torch.allclose(got, take_steps(make(BatchedMuon, **settings), 4, seed=1), atol=1e-3)


def test_it_goes_on_from_a_checkpoint_of_torchs() -> None:
    whole, begun, resumed = make(torch.optim.Muon), make(torch.optim.Muon), make(BatchedMuon)
    take_steps(whole, 3, seed=1)
    take_steps(begun, 3, seed=1)
    resumed.load_state_dict(begun.state_dict())
    for ours, theirs in zip(resumed.param_groups[0]["params"], begun.param_groups[0]["params"], strict=True):
        ours.data.copy_(theirs.data)
    torch.testing.assert_close(
        take_steps(resumed, 2, seed=2), take_steps(whole, 2, seed=2), rtol=0, atol=1e-3
    )
