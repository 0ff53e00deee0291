"""What is counted. The front end shows the counts as sums over all workers, kept in Redis.

A sum outlives the worker that counted it, so a counter never goes back when one dies. What follows a job's
life is counted by the scripts that change it (``workers/queue/lua/``): once, whatever is sent again.
"""

import resource
import sys
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SEPARATOR = "|"
INFINITY = "inf"


@dataclass(frozen=True)
class Metric:
    """A counter; or a histogram, if it has ``buckets``, whose last and open one is not named.

    In Redis, a counter is a field ``name|label values``; a histogram has a field
    ``name|label values|bound`` for each bucket (not cumulative) and ``name|label values|sum``.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


JOBS_SUBMITTED = Metric("jobs_submitted", "Jobs that were accepted.", ("operation", "priority"))
JOBS_ENDED = Metric(
    "jobs_ended", "Jobs by how they ended: succeeded, cancelled, or an error's code.", ("operation", "code")
)
TRIES = Metric("tries", "Times that a worker took a job.", ("operation",))
WAIT_SECONDS = Metric(
    "queue_wait_seconds",
    "From the acceptance of a job to its first try.",
    ("priority",),
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
IMAGES = Metric("images", "Images made.", ("operation",))
STEPS = Metric("denoising_steps", "Denoising steps of all images.")
CODES = Metric("codes", "Codes made of images by /encode, and images of codes by /decode.", ("operation",))
WEBHOOK_ATTEMPTS = Metric(
    "webhook_attempts", "Attempts to deliver a webhook, by what came of it.", ("status",)
)
STEP_SECONDS = Metric(
    "engine_step_seconds",
    "One step of the running batch.",
    (),
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
BATCH_SIZE = Metric(
    "engine_batch_size", "Images that a step of the running batch was for.", (), (1, 2, 4, 8, 16, 32, 64, 128)
)
LOADS = Metric(
    "pipeline_loads", "Times that a worker loaded a pipeline: loaded, or failed.", ("pipeline", "outcome")
)
UNLOADS = Metric("pipeline_unloads", "Times that a worker let go of a pipeline.", ("pipeline",))
LOAD_SECONDS = Metric(
    "pipeline_load_seconds",
    "From the start of a load to the first job that it allows.",
    (),
    (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
METRICS = (
    JOBS_SUBMITTED,
    JOBS_ENDED,
    TRIES,
    WAIT_SECONDS,
    IMAGES,
    STEPS,
    CODES,
    WEBHOOK_ATTEMPTS,
    STEP_SECONDS,
    BATCH_SIZE,
    LOADS,
    UNLOADS,
    LOAD_SECONDS,
)


class Meter:
    """Sums up what one process counts, until they are taken to be sent. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = defaultdict(float)

    def count(self, metric: Metric, amount: float = 1, *label_values: str) -> None:
        """Add to a counter."""
        self.add({field(metric, *label_values): amount})

    def observe(self, metric: Metric, value: float, *label_values: str) -> None:
        """Put a value into a histogram."""
        position = bisect_left(metric.buckets, value)
        bound = str(metric.buckets[position]) if position < len(metric.buckets) else INFINITY
        self.add({field(metric, *label_values, bound): 1, field(metric, *label_values, "sum"): value})

    def take(self) -> dict[str, float]:
        """Return what was added since the last time; ``add`` it again if it could not be sent."""
        with self._lock:
            taken = dict(self._sums)
            self._sums.clear()
        return taken

    def add(self, sums: Mapping[str, float]) -> None:
        """Add sums by field."""
        with self._lock:
            for name, amount in sums.items():
                self._sums[name] += amount


def memory_bytes() -> int:
    """Return the resident memory of this process; where there is no /proc, the most it ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
    return pages * resource.getpagesize()


def device_memory_bytes() -> int:
    """Return the memory of GPUs that this process holds; 0 in one that has not loaded torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count()))


def field(metric: Metric, *values: str) -> str:
    """Return the field of a sum: the metric, its label values, and what is summed."""
    return SEPARATOR.join((metric.name, *values))
