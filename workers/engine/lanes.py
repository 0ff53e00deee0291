"""Lanes: compute threads that each take a part of a batch from its first layer to its last.

A step of a small model is hundreds of short operations. Spread over all cores one by one, they spend much
of their time waking threads and waiting for the slowest; a lane waits once a step. On two cores, 16 rows of
a 5.5 M prior took 42 ms in two lanes and 77 ms otherwise.
"""

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")

MAX_LANES = 4  # more would queue for Python's lock
SWITCH_EVERY_S = 2e-4  # a lane wants Python's lock for every operation; other threads are not to keep it long


class Lanes:
    """``count`` threads that share the compute threads of the one that makes them: ``num_threads`` each.

    With one lane, everything runs in the calling thread.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.num_threads = torch.get_num_threads() if count == 1 else max(1, torch.get_num_threads() // count)
        self._executors: list[ThreadPoolExecutor] = []
        if count > 1:
            num_threads = torch.get_num_threads()
            self._executors = [ThreadPoolExecutor(1, f"lane-{i}") for i in range(count)]
            for executor in self._executors:
                executor.submit(_settle_threads, self.num_threads).result()
            torch.set_num_threads(num_threads)  # a lane's also became the default of threads to come
            sys.setswitchinterval(min(SWITCH_EVERY_S, sys.getswitchinterval()))

    @classmethod
    def for_device(cls, device: torch.device) -> "Lanes":
        """Return as many lanes as are worth having: on a GPU one, which keeps its order of work."""
        return cls(min(MAX_LANES, torch.get_num_threads()) if device.type == "cpu" else 1)

    def map(self, compute: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
        """Return ``compute`` of each part, in order; at most ``count`` parts, side by side.

        Runs in inference mode. Raises what ``compute`` raises.
        """
        if not self._executors:
            return [_infer(compute, part) for part in parts]
        pairs = zip(self._executors, parts, strict=False)
        futures = [executor.submit(_infer, compute, part) for executor, part in pairs]
        return [future.result() for future in futures]


def _settle_threads(count: int) -> None:
    """Give the calling thread so many compute threads for good."""
    torch.set_num_threads(count)
    torch.get_num_threads()  # a thread takes over what is set at its first question, and keeps it


@torch.inference_mode()
def _infer(compute: Callable[[Part], Result], part: Part) -> Result:
    return compute(part)
