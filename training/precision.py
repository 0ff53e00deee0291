"""The precision that training computes in: bfloat16, or float32 on processors that are faster with it."""

import functools
import logging
import time

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)


def autocast(device: torch.device) -> torch.autocast:
    """Return a context in which layers compute in ``fast_dtype``; their weights stay in float32."""
    is_bfloat16 = fast_dtype(device.type) == torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bfloat16)


@functools.cache
def fast_dtype(device_type: str) -> torch.dtype:
    """Return bfloat16, or float32 on a CPU where a linear layer takes less time in it.

    No flag of a processor tells: of two with AVX-512 bf16, one was four times as fast in bfloat16 and the
    other half as fast. It is timed once a process, for 20 to 200 ms.
    """
    if device_type != "cpu":
        return torch.bfloat16
    seconds = {torch.bfloat16: float("inf"), torch.float32: float("inf")}
    for _ in range(5):  # in turn, and the best of each, as other work may interrupt
        for dtype in seconds:
            seconds[dtype] = min(seconds[dtype], _seconds_of_linear(dtype))
    logger.info("a linear layer takes %s", {str(dtype): f"{s * 1e3:.1f} ms" for dtype, s in seconds.items()})
    return min(seconds, key=lambda dtype: seconds[dtype])


@torch.inference_mode()
def _seconds_of_linear(dtype: torch.dtype) -> float:
    x, weight = torch.ones(2048, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    started = time.perf_counter()
    F.linear(x, weight)
    return time.perf_counter() - started
