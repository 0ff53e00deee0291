"""The checkpoints of a run: the last two, each written whole, so that one can always be gone on from."""

import hashlib
import logging
import math
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.config_file import TrainingError

State = dict[str, Any]

logger = logging.getLogger(__name__)


class Checkpoints:
    """``checkpoint.pt`` of a run's folder, and the one before it, ``checkpoint.previous.pt``."""

    def __init__(self, folder: Path) -> None:
        self.newest = folder / "checkpoint.pt"
        self.previous = folder / "checkpoint.previous.pt"

    def exist(self) -> bool:
        """Whether there is one, readable or not."""
        return self.newest.exists() or self.previous.exists()

    def save(self, state: State) -> None:
        """Write ``state``; whatever happens meanwhile, a whole checkpoint is there.

        Raises: TrainingError where it can't be written; those before stay as they are.
        """
        partial = self.newest.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            if self.newest.exists():
                self.newest.replace(self.previous)
            partial.replace(self.newest)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
            partial.unlink(missing_ok=True)
            reason = (getattr(error, "strerror", None) or str(error)).partition("\n")[0]
            raise TrainingError(
                f"{self.newest} can't be written: {reason}. Make room, then go on with --resume"
            ) from error

    def load(self, *, is_main: bool = True) -> State | None:
        """Return the newest that is whole, or None where there is none at all.

        is_main: whether this process is the one that writes.

        Raises: TrainingError when there are some, and none can be read.
        """
        unreadable: dict[Path, str] = {}
        for path in (self.newest, self.previous):
            if not path.exists():
                continue
            state = _read(path)
            if isinstance(state, str):
                unreadable[path] = state
                continue
            for other, reason in unreadable.items() if is_main else ():
                set_aside = other.with_suffix(".unreadable")
                other.replace(set_aside)  # or the next one saved would take the place of the good one
                logger.warning(
                    "%s %s: going on from the one before, of step %d; it is now %s",
                    other, reason, state["step"], set_aside.name,
                )  # fmt: skip
            return state
        if unreadable:
            reasons = "; ".join(f"{path} {reason}" for path, reason in unreadable.items())
            raise TrainingError(f"{reasons}: there is nothing to go on from, start in a new folder")
        return None


def _read(path: Path) -> State | str:
    """Return the state that a file holds, or in some words why it has none."""
    try:
        if path.stat().st_size == 0:
            return "is empty"
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError):
        return "is cut, damaged or not a checkpoint"
    if not isinstance(state, dict) or not {"step", "config"} <= state.keys():
        return "is not a checkpoint of a training"
    return state


def not_finite(state: Any, name: str = "") -> str | None:
    """Return the name of a tensor in ``state`` (nested) that holds NaN or an infinity, or None."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[tuple[str, Tensor]]] = {}
    for each, tensor in _tensors(state, name):
        by_kind.setdefault((tensor.device, tensor.dtype), []).append((each, tensor))
    for pairs in by_kind.values():  # one read of each kind
        largest = torch._foreach_norm([tensor.detach() for _, tensor in pairs], ord=math.inf)
        are_finite = torch.stack(largest).isfinite().tolist()
        for (each, _), is_finite in zip(pairs, are_finite, strict=True):
            if not is_finite:
                return each
    return None


def file_digest(path: Path) -> str:
    """Return 16 hexadecimal digits that tell a file's contents from all others."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def check_exported(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check weights before they are written.

    Raises: TrainingError naming one that holds NaN or an infinity.
    """
    if bad := not_finite(dict(tensors)):
        raise TrainingError(f"{path} was not written: {bad} is not finite. Lower learning_rate")


def _tensors(state: Any, name: str) -> list[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        return [(name, state)] if state.is_floating_point() and state.numel() else []
    if isinstance(state, Mapping):
        items = [(f"{name}.{key}" if name else str(key), value) for key, value in state.items()]
    elif isinstance(state, list | tuple):
        items = [(f"{name}.{number}", value) for number, value in enumerate(state)]
    else:
        return []
    return [found for key, value in items for found in _tensors(value, key)]
