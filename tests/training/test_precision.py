"""The precision of training: bfloat16 where it is the faster one."""

from collections.abc import Iterator

import pytest
import torch

from training import precision


@pytest.fixture(autouse=True)
def _timed_anew() -> Iterator[None]:
    precision.fast_dtype.cache_clear()
    yield
    precision.fast_dtype.cache_clear()


@pytest.mark.parametrize("faster", [torch.bfloat16, torch.float32])
def test_layers_compute_in_what_is_faster(faster: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_seconds_of_linear", lambda dtype: 1.0 if dtype == faster else 2.0)
    with precision.autocast(torch.device("cpu")):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == faster


def test_accelerators_are_not_timed() -> None:
    assert precision.fast_dtype("cuda") == torch.bfloat16


def test_this_processor_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = precision.fast_dtype("cpu")
    monkeypatch.setattr(precision, "_seconds_of_linear", lambda dtype: pytest.fail("timed again"))
    assert precision.fast_dtype("cpu") == found
