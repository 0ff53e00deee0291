"""Calls that a GPU replays as CUDA graphs: the host starts one thing where it would start hundreds.

On any other device they are plain calls.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.transfers import send

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    given: Tensor
    result: Tensor


class Replayed:
    """``compute`` of one tensor, as a graph for each shape that it is given, captured at the first.

    ``compute`` must be pure: besides what it is given it reads only tensors that stay where they are, and
    the host may not ask for a value in it. What is given may be on the CPU. All graphs share one pool of
    memory, as one thread replays them one after another.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._compute = compute
        self._device = device
        self._graphs: dict[tuple[torch.Size, torch.dtype], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __call__(self, given: Tensor) -> Tensor:
        """Return what ``compute`` makes of ``given``, in memory of its own.

        Raises: torch.OutOfMemoryError when a graph is to be captured and doesn't fit; it may be tried again.
        """
        if self._device.type != "cuda":
            return self._compute(send(given, self._device))
        key = given.shape, given.dtype
        if key not in self._graphs:
            self._graphs[key] = self._capture(given)
        captured = self._graphs[key]
        captured.given.copy_(send(given, self._device))
        captured.graph.replay()
        return captured.result.clone()  # the next replay writes there again

    def _capture(self, given: Tensor) -> _Graph:
        began_s, free_before = time.perf_counter(), torch.cuda.mem_get_info(self._device)[0]
        with torch.cuda.device(self._device):
            buffer = given.to(self._device, copy=True)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            # Once without capture: this loads kernels, which can't be captured, and runs out of memory if so.
            with torch.cuda.stream(stream):
                self._compute(buffer)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                result = self._compute(buffer)
            torch.cuda.empty_cache()
        taken_mb = (free_before - torch.cuda.mem_get_info(self._device)[0]) / 2**20
        logger.info(
            "captured a call of %d rows in %.2f s, %.0f MB",
            len(given),
            time.perf_counter() - began_s,
            taken_mb,
        )
        return _Graph(graph, buffer, result)
