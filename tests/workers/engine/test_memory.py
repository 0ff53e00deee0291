"""How many images are said to fit, against what they take."""

import numpy as np
import pytest
import torch

from workers.engine import memory

CPU = torch.device("cpu")
MIB = 2**20


def take(num_mib: int) -> None:
    np.ones(num_mib * MIB, np.uint8)


def num_that_fit(compute, device, at_most):
    """Return what is measured in the end."""
    measuring = memory.measure_fit(compute, device, at_most)
    while True:
        try:
            next(measuring)
        except StopIteration as end:
            return end.value


def test_what_fits_is_what_is_free_by_what_each_image_takes(monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2000 * MIB)
    fit = num_that_fit(lambda num_images: take(20 * num_images), CPU, at_most=1000)
    # One in five too few at most: malloc may keep the first image's memory, and not use it for eight.
    assert 4 / 5 <= (fit - 1) / (0.8 * 2000 / 20) <= 1.01


def test_what_takes_next_to_nothing_is_bounded_by_the_setting() -> None:
    assert num_that_fit(lambda num_images: None, CPU, at_most=32) == 32


def test_one_image_is_tried_however_little_is_free(monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: 0)
    assert num_that_fit(lambda num_images: take(20 * num_images), CPU, at_most=32) == 1


def test_running_out_of_memory_while_measuring_is_no_failure(monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: 160 * MIB)

    def compute(num_images: int) -> None:
        if num_images > 5:
            raise torch.OutOfMemoryError("out of memory")
        take(40 * num_images)  # more than 32 MiB, which malloc may have kept of what was freed before

    assert 3 <= num_that_fit(compute, CPU, at_most=32) <= 5


@pytest.mark.gpu
def test_what_fits_on_a_gpu_fits() -> None:
    cuda = torch.device("cuda")

    def compute(num_images: int) -> None:
        torch.empty(num_images, 2**30, dtype=torch.uint8, device=cuda)

    fit = num_that_fit(compute, cuda, at_most=1000)
    compute(fit)
    assert fit > 0.7 * torch.cuda.mem_get_info()[1] / 2**30 * 0.8
