"""How many images fit in memory at once, measured.

On CUDA: the peak of what torch allocates, and what is free. On a CPU under Linux: the peak of the process's
resident memory, and what the machine or the container has available. Elsewhere nothing is known, and
nothing bounded.
"""

import os
import re
from collections.abc import Callable, Generator
from pathlib import Path

import torch

from models.stage import Caching, Stage

SHARE = 0.8  # of what is free; other processes want some, and memory comes in pieces
FEW = 8  # images, which tell more of the memory that each takes than fewer do


def measure_fit(
    compute: Callable[[int], object], device: torch.device, at_most: int, few: int = FEW
) -> Generator[None, None, int]:
    """Return how many images fit on ``device``; ``compute(n)`` has to do what n of them take.

    What each image adds is the growth of the peak from one image to a few. Where it yields, others may
    compute.

    Raises: torch.OutOfMemoryError when not even one does.
    """
    few = min(few, at_most)
    compute(1)  # loads kernels, which is not to be counted
    yield
    free = free_bytes(device)
    if at_most == 1 or free is None:
        return at_most
    peak_of_one = _peak_bytes(device, compute, 1)
    while few > 1:
        yield
        try:
            growth = _peak_bytes(device, compute, few) - peak_of_one
        except torch.OutOfMemoryError:
            few //= 2
        else:
            return min(at_most, 1 + int(SHARE * free * (few - 1) / growth)) if growth > 0 else at_most
    return 1


def slots_that_fit(stage: Stage | None, device: torch.device, at_most: int, per_sample: int) -> int:
    """Return how many samples there is memory for, of a stage that keeps much for each; else ``at_most``.

    per_sample: slots for each. A GPU gives their memory at once, before anything can be measured.
    """
    free = free_bytes(device)
    if not isinstance(stage, Caching) or free is None:
        return at_most
    return max(1, min(at_most, int(SHARE * free / (per_sample * stage.bytes_per_sample))))


def _peak_bytes(device: torch.device, compute: Callable[[int], object], num_images: int) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        compute(num_images)
        return torch.cuda.max_memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    compute(num_images)
    return _kibibytes(Path("/proc/self/status"), "VmHWM")


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory is free on a device; None where nobody knows."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu" or not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    free = _kibibytes(Path("/proc/meminfo"), "MemAvailable")
    group = Path("/sys/fs/cgroup")  # the container's, if this is one with control groups v2
    try:
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # there is none, or no limit: "max"
        pass
    return free


def _kibibytes(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path} has no {name}"
    return 1024 * int(found[1])
