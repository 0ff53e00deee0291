"""Files of ``torch.save``, opened in a process of its own with limits of memory and time."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoint import load_tensors
from models.importers.base import ImportFailed

MIN_TORCH = "2.10"

_BYTES_PER_S = 20e6  # of a file: a slow disk and a busy processor
_START_S = 60  # that a child may need to load torch
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "TMPDIR")  # and no key or token
# The child looks for modules where this process does, and nowhere else.
_START = (
    "import sys; sys.path[:] = {path!r};"
    " from models.importers.unpickling import main; main({given!r}, {out!r}, {weights!r}, {memory}, {cpu})"
)


@dataclass(frozen=True)
class Limits:
    """What opening a file may take: fixed parts here, and more for large files.

    memory_bytes: of address space, beyond that of torch, and ``copies`` of the file. cpu_s: of CPU time;
    the wall-clock time is four times that, and a minute.
    """

    memory_bytes: int = 2**30
    copies: int = 4
    cpu_s: int = 60


@dataclass(frozen=True)
class Unpickled:
    """The tensors of a file by the publisher's names, and what they stood under."""

    tensors: dict[str, Tensor]
    wrapper: str
    notes: tuple[str, ...]


def check_torch(version: str = torch.__version__) -> None:
    """Check that this PyTorch opens foreign files safely.

    Raises: ImportFailed.
    """
    if torch.torch_version.TorchVersion(version) < MIN_TORCH:
        raise ImportFailed(
            f"pickles need PyTorch {MIN_TORCH} or newer (CVE-2026-24747 let files run code before), this is"
            f" {version}; update it, or take the weights as safetensors"
        )


def read_pickle(
    path: Path, scratch: Path, weights: str | None = None, limits: Limits = Limits()
) -> Unpickled:
    """Return the tensors of a file of ``torch.save``; nothing of it runs.

    scratch: a folder on a disk with room for the tensors; what is written there is removed before this
    returns, but keeps its room while the tensors are held. weights: see ``unwrap``.

    Raises: ImportFailed saying what the file is instead, or which limit it reached.
    """
    check_torch()
    out = scratch / "tensors.safetensors"
    num_bytes = path.stat().st_size
    cpu_s = limits.cpu_s + int(num_bytes / _BYTES_PER_S)
    wall_s = _START_S + 4 * cpu_s
    code = _START.format(
        path=[str(Path(each).resolve()) for each in sys.path],
        given=str(path.resolve()),
        out=str(out.resolve()),
        weights=weights or "",
        memory=limits.memory_bytes + limits.copies * num_bytes,
        cpu=cpu_s,
    )
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            timeout=wall_s,
        )
        told = _told(done, path, cpu_s)
        return Unpickled(load_tensors(out), told["wrapper"], tuple(told["notes"]))
    except subprocess.TimeoutExpired as expired:
        raise ImportFailed(f"{path} took longer than {wall_s} s to open; it may be hostile") from expired
    finally:
        out.unlink(missing_ok=True)


def _told(done: "subprocess.CompletedProcess[bytes]", path: Path, cpu_s: int) -> dict[str, Any]:
    """Return what the child said. Raises: ImportFailed with its reason, or with how it died."""
    if done.returncode == -signal.SIGXCPU:
        raise ImportFailed(f"{path} took more than {cpu_s} s of CPU time to open; it may be hostile")
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise ImportFailed(
            f"{path} can't be opened: the process that tried ended with status {done.returncode}, within its"
            " limits of memory and time; the file may be damaged or hostile"
        ) from None
    if "refused" in told:
        raise ImportFailed(f"{path}: {told['refused']}")
    if "not_written" in told:
        raise OSError(f"the tensors of {path} can't be written: {told['not_written']}")
    return told
