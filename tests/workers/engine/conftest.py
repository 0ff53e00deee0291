"""The device that the engine's tests compute on: the CPU, or what TEST_DEVICE names, as device-check does."""

import os
from collections.abc import Iterator

import pytest

from models.pipeline import Pipeline


@pytest.fixture(scope="session", autouse=True)
def _device() -> Iterator[None]:
    """Let pipelines be loaded on it by default."""
    load = Pipeline.load.__func__  # type: ignore[attr-defined]
    before = load.__defaults__
    load.__defaults__ = (os.environ.get("TEST_DEVICE", "cpu"), *before[1:])
    yield
    load.__defaults__ = before
