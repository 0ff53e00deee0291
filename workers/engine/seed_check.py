"""The seed contract, checked on the machine that has to keep it.

A row's bits must not depend on how many rows are computed with it, but math libraries choose other kernels,
with another order of sums, for few rows than for many: which, depends on the processor, the library and the
shapes. So a worker compares: for each number of rows that it would like to use, many rows computed that many
at once must equal, bit for bit, the same rows in full calls. The numbers that agree may be used, a call of
fewer rows being padded to the next; everything else is padded to a full call, and the full call itself is
checked with other neighbours. A verdict holds for one set of weights on one kind of processor, under whose
key it is kept on disk.
"""

import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from workers.engine.lanes import Lanes

logger = logging.getLogger(__name__)

CHECK_VERSION = 2  # to be raised when the check or its probes change, so that older verdicts are not believed
LIMITS = (
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
)  # environment variables that change which kernels are chosen


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    agreeing: the numbers of rows whose bits equal a full call's, ascending. Empty when not even full calls
    agree with each other: then nothing can be promised. num_differing: of every number of rows checked, how
    many rows differed until it was given up.
    """

    agreeing: tuple[int, ...]
    full_rows: int
    num_probes: int
    num_differing: Mapping[int, int]
    seconds: float

    @property
    def is_kept(self) -> bool:
        """Whether padding to ``agreeing`` keeps the promise."""
        return self.full_rows in self.agreeing

    @property
    def do_all_agree(self) -> bool:
        """Whether no number of rows was given up."""
        return not any(self.num_differing.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Verdict":
        """Undo ``to_json``. Raises: ValueError when ``text`` is anything else."""
        try:
            data = json.loads(text)
            verdict = cls(
                agreeing=tuple(int(rows) for rows in data["agreeing"]),
                full_rows=int(data["full_rows"]),
                num_probes=int(data["num_probes"]),
                num_differing={int(rows): int(num) for rows, num in data["num_differing"].items()},
                seconds=float(data["seconds"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a verdict: {error!r}") from error
        proven = {rows for rows, num in verdict.num_differing.items() if num == 0}
        if not set(verdict.agreeing) <= proven or (verdict.agreeing and not verdict.is_kept):
            raise ValueError("not a verdict: it contradicts itself")
        return verdict


class SeedCheck:
    """Finds out which numbers of rows agree bit for bit with a full call, a slice of work at a time.

    ``call(indices)`` computes the probe rows of those indices, an int64 tensor in which some may repeat, in
    one call, and returns their outputs (n, …). It has to run as the service's calls do: with the same
    precision and device, in the same ``lanes``. Every number of rows gets the probes in an order of its own,
    so that also a row's place and its neighbours are other than in the full calls.
    """

    def __init__(
        self,
        call: Callable[[Tensor], Tensor],
        num_probes: int,
        full_rows: int,
        candidates: Sequence[int],
        lanes: Lanes | None = None,
    ) -> None:
        if num_probes < 1:
            raise ValueError(f"num_probes must be at least 1, got {num_probes}")
        if any(not 1 <= rows <= full_rows for rows in candidates):
            raise ValueError(f"candidates must be from 1 to {full_rows}, not {list(candidates)}")
        self._call = call
        self._lanes = lanes or Lanes(1)
        self._num_probes = num_probes
        self._full_rows = full_rows
        # The full call first, without which nothing else matters; then small ones, for lone samples.
        self._candidates = [full_rows, *sorted(set(candidates) - {full_rows})]
        self._num_done = 0  # of the candidates
        self._num_calls = 0
        self._num_differing: dict[int, int] = {}
        self._seconds = 0.0
        self._calls = self._work()
        self.verdict: Verdict | None = None

    @property
    def share_done(self) -> float:
        """How much of the check is over, from 0 to 1."""
        if self.verdict is not None:
            return 1.0
        num_calls = sum(-(-self._num_probes // rows) for rows in [self._full_rows, *self._candidates])
        return self._num_calls / num_calls

    def advance(self, budget_s: float) -> Verdict | None:
        """Make calls until ``budget_s`` is over, at least one; return the verdict once it is known."""
        began_s = time.monotonic()
        while self.verdict is None:
            is_over = next(self._calls, True)
            elapsed_s = time.monotonic() - began_s
            if is_over:
                self.verdict = self._conclude(self._seconds + elapsed_s)
            elif elapsed_s >= budget_s:
                break
        self._seconds += time.monotonic() - began_s
        return self.verdict

    def _work(self) -> Iterator[bool]:
        """Make one call between two yields, each of False: not over yet."""
        expected: dict[int, Tensor] = {}
        for calls in self._side_by_side(torch.arange(self._num_probes), self._full_rows):
            for indices, outputs in calls:
                expected.update(zip(indices.tolist(), outputs.clone(), strict=True))
            yield False
        for rows in self._candidates:
            self._num_differing[rows] = 0
            order = torch.randperm(self._num_probes, generator=torch.Generator().manual_seed(rows))
            for calls in self._side_by_side(order, rows):
                for indices, outputs in calls:
                    wanted = torch.stack([expected[index] for index in indices.tolist()])
                    self._num_differing[rows] += count_differing(outputs, wanted)
                yield False
                if self._num_differing[rows]:
                    break
            self._num_done += 1
            if self._num_differing[self._full_rows]:
                return

    def _side_by_side(self, order: Tensor, rows: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Yield indices and outputs of calls of so many rows, one in each lane at a time."""
        parts = list(_split(order, rows))
        for start in range(0, len(parts), self._lanes.count):
            group = parts[start : start + self._lanes.count]
            self._num_calls += len(group)
            yield list(zip(group, self._lanes.map(self._call, group), strict=True))

    @property
    def agreeing(self) -> tuple[int, ...]:
        """The numbers of rows that are proven so far."""
        done = self._candidates[: self._num_done]
        return tuple(sorted(rows for rows in done if not self._num_differing[rows]))

    def _conclude(self, seconds: float) -> Verdict:
        return Verdict(
            self.agreeing, self._full_rows, self._num_probes, dict(self._num_differing), round(seconds, 2)
        )


def count_differing(outputs: Tensor, wanted: Tensor) -> int:
    """Return how many rows of two tensors (n, …) of one dtype are not the same bits: 0 is not -0."""
    if outputs.dtype != wanted.dtype or outputs.shape != wanted.shape:
        raise ValueError(f"outputs are {outputs.dtype} {list(outputs.shape)}, not as those of a full call")
    ours, theirs = (each.reshape(len(each), -1).contiguous().view(torch.uint8) for each in (outputs, wanted))
    return int((ours != theirs).any(1).sum())


def verdict_key(
    weights_digest: str, num_threads: int, device: torch.device, settings: Mapping[str, str | int]
) -> str:
    """Return the name under which a verdict is kept: of everything that may change it.

    ``settings``: what the caller knows besides, such as the dtype, the candidates, the number of probes,
    and a version of the network's code.
    """
    known = {
        "check": CHECK_VERSION,
        "weights": weights_digest,
        "torch": torch.__version__,
        "num_threads": num_threads,
        "processor": describe_processor(device),
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
        "capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.enabled,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "settings": dict(settings),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]


def describe_processor(device: torch.device) -> str:
    """Return what kernels are chosen by: the model, its instructions and its caches; or the GPU's name."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        model = f"{properties.name}, {properties.major}.{properties.minor}"
        return f"{model}, {properties.multi_processor_count} processors, CUDA {torch.version.cuda}"
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "cache size", "flags", "Features")
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    pairs = (line.partition(":") for line in first.splitlines())
    found = {name.strip(): " ".join(sorted(value.split())) for name, _, value in pairs}
    return f"{platform.machine()} " + "; ".join(f"{name}: {found[name]}" for name in wanted if name in found)


class VerdictStore:
    """Verdicts in a folder, a file each. Whatever goes wrong there costs a check, never more."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, key: str) -> Verdict | None:
        """Return the verdict kept under ``key``; None if there is none that can be believed."""
        path = self._path(key)
        try:
            return Verdict.from_json(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s is ignored: %s", path, error)
            return None

    def write(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict, if the disk lets us: written whole, then renamed, as other workers may read it."""
        path = self._path(key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._folder, prefix=f"{key}.", suffix=".part", delete=False
            ) as file:
                file.write(verdict.to_json())
            Path(file.name).replace(path)
        except OSError as error:
            logger.warning("%s could not be written: %s", path, error)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"


def _split(indices: Tensor, num_rows: int) -> Iterator[Tensor]:
    """Yield all ``indices``, ``num_rows`` at a time; the last are filled up with the first."""
    for start in range(0, len(indices), num_rows):
        places = torch.arange(start, start + num_rows) % len(indices)
        yield indices[places]
