"""A GPU's figures: what was measured, what is aimed at, and how a time is taken."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "weights" / "fashion-mnist"
MIN_REPEATS, WARM_UP = 5, 3


@dataclass(frozen=True)
class Figure:
    """What was measured: at least ``aim`` is aimed at, or at most where a time is measured."""

    name: str
    value: float
    unit: str
    aim: float | None = None
    share_of_matrix_rate: float | None = None
    aimed_share: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether every aim is reached; None where there is none."""
        met = []
        if self.aim is not None:
            met.append(self.value <= self.aim if self.unit == "ms" else self.value >= self.aim)
        if self.aimed_share is not None and self.share_of_matrix_rate is not None:
            met.append(self.share_of_matrix_rate >= self.aimed_share)
        return all(met) if met else None


@dataclass(frozen=True)
class Bench:
    """Where and how long it is measured."""

    device: torch.device
    is_small: bool
    matrix_rate: float

    @property
    def seconds(self) -> float:
        """For each figure, after it has been warmed up."""
        return 0.05 if self.is_small else 1.0

    def median_s(self, do: Callable[[], object], num_calls: int = 1) -> float:
        """Return how long a call takes: the median of repeats, each of ``num_calls`` and their end."""

        def once() -> float:
            began_at = time.perf_counter()
            for _ in range(num_calls):
                do()
            self.wait()
            return (time.perf_counter() - began_at) / num_calls

        num_warm_up, min_repeats = (1, 1) if self.is_small else (WARM_UP, MIN_REPEATS)
        for _ in range(num_warm_up):
            once()
        ends_at, taken = time.perf_counter() + self.seconds, [once()]
        while time.perf_counter() < ends_at or len(taken) < min_repeats:
            taken.append(once())
        return statistics.median(taken)

    def wait(self) -> None:
        """Let the device end what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
