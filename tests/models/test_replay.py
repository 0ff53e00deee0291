"""Calls as CUDA graphs, where there is a GPU."""

import pytest
import torch
from torch import nn

from models.replay import Replayed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replay_gives_what_a_plain_call_does() -> None:
    """Of several shapes in turn, and no result is overwritten by a later one."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8)).to(device)
    with torch.inference_mode():
        replayed = Replayed(network, device)
        given = [torch.randn(num_rows, 8) for num_rows in (4, 2, 4, 16, 2)]
        results = [replayed(each) for each in given]
        for each, result in zip(given, results, strict=True):
            assert torch.equal(result, network(each.to(device)))
