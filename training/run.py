"""A training run: its folder, log, checkpoints and processes, the same for tokenizers and priors."""

import json
import logging
import math
import os
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from tqdm import tqdm

from models.options import ConfigError
from training.evaluation.plots import Curve, save_curves

Config = TypeVar("Config")

logger = logging.getLogger(__name__)


class TrainingError(ConfigError):
    """A run that can't start; the message says what to change."""


def load_config(path: Path, config_class: type[Config]) -> Config:
    """Read a TOML file into ``config_class``.

    Raises: TrainingError when it can't be read, or has missing, unknown or bad fields.
    """
    try:
        return TypeAdapter(config_class).validate_python(tomllib.loads(path.read_text()))
    except OSError as error:
        raise TrainingError(f"{path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise TrainingError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Processes:
    """The processes that train together, one a device; started by torchrun, or just this one."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @classmethod
    def join(cls, num_threads: int | None) -> "Processes":
        """Join torchrun's group if it started us; choose this process's device and threads."""
        if num_threads:
            torch.set_num_threads(num_threads)
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
            torch.backends.cuda.matmul.allow_tf32 = True
        if "RANK" in os.environ and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(0, 1, device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return ``module`` with its gradients averaged over the processes."""
        if self.count == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=devices)


def generator_for(seed: int, *stream: int) -> torch.Generator:
    """Return a CPU generator for one (seed, step, …): a resumed run draws what the first one drew."""
    mixed = seed
    for number in stream:
        mixed = (mixed * 6364136223846793005 + number * 1442695040888963407 + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def batch_rows(num_images: int, batch_size: int, step: int, seed: int, processes: Processes) -> Tensor:
    """Return this process's rows of the batch of ``step``: every image once an epoch, shuffled anew."""
    per_epoch = num_images // batch_size
    if per_epoch == 0:
        raise TrainingError(f"batch_size {batch_size} is more than the {num_images} images there are")
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(num_images, generator=generator_for(seed, -1, epoch))
    return order[position * batch_size : (position + 1) * batch_size][processes.rank :: processes.count]


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Return what to multiply the learning rate by: warm-up, constant, then a fall to 0.

    The fall takes the last ``decay_fraction`` of the run, as 1 − √(progress) (Hägele et al. 2024,
    arXiv:2405.18392).
    """
    decay_steps = max(1, int(decay_fraction * num_steps))
    falling = max(0.0, (step - (num_steps - decay_steps)) / decay_steps)
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (1 - math.sqrt(falling))


class Run:
    """The folder of a run: ``checkpoint.pt``, ``losses.jsonl``, TensorBoard files.

    Used by the main process only, but for ``load``.
    """

    def __init__(
        self, folder: Path, config: Any, processes: Processes, *, num_steps: int, resume: bool
    ) -> None:
        self.folder = folder
        self.num_steps = num_steps
        self.processes = processes
        self._config = json.loads(TypeAdapter(type(config)).dump_json(config))
        self._checkpoint = folder / "checkpoint.pt"
        self._last_saved = time.monotonic()
        if self._checkpoint.exists() and not resume:
            raise TrainingError(f"{folder} holds a run already: give --resume to go on with it, or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = _tensorboard(folder) if processes.is_main else None
        self._bar: tqdm[Any] | None = None

    def load(self) -> dict[str, Any] | None:
        """Return the last checkpoint's state, or None where there is none."""
        if not self._checkpoint.exists():
            return None
        state: dict[str, Any] = torch.load(self._checkpoint, weights_only=True, map_location="cpu")
        if (saved := state["config"]) != self._config:
            changed = sorted(key for key in self._config if saved.get(key) != self._config[key])
            raise TrainingError(
                f"{self._checkpoint} was made with other settings ({', '.join(changed)});"
                " put them back, or start in a new folder"
            )
        self._forget_losses_after(state["step"])
        return state

    def _forget_losses_after(self, step: int) -> None:
        """Drop what a killed run logged past its last checkpoint; it will be logged again."""
        path = self.folder / "losses.jsonl"
        if self.processes.is_main and path.exists():
            kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] < step]
            path.write_text("".join(f"{line}\n" for line in kept))

    def save(self, step: int, state: dict[str, Any], *, every_s: float = 0.0) -> None:
        """Write the state after ``step`` steps if ``every_s`` have passed since the last time."""
        if not self.processes.is_main or time.monotonic() - self._last_saved < every_s:
            return
        partial = self._checkpoint.with_suffix(".partial")
        torch.save({"step": step, "config": self._config, **state}, partial)
        partial.replace(self._checkpoint)
        self._last_saved = time.monotonic()

    def log(self, step: int, **scalars: float) -> None:
        """Record ``scalars`` at ``step`` in losses.jsonl, TensorBoard and the progress bar."""
        if not self.processes.is_main:
            return
        with (self.folder / "losses.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 1), **scalars}) + "\n")
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in scalars.items()})

    def draw_losses(self) -> None:
        """Draw what was logged as pictures, one for each name; needs matplotlib, of the extra "training"."""
        if not self.processes.is_main:
            return
        entries = [json.loads(line) for line in (self.folder / "losses.jsonl").read_text().splitlines()]
        names = [name for name in entries[-1] if name not in ("step", "time")]
        try:
            for name in names:
                having = [entry for entry in entries if name in entry]  # some begin later than others
                curve = Curve([entry["step"] for entry in having], [entry[name] for entry in having])
                save_curves(self.folder / f"{name}.png", {name: curve}, is_log=name == "loss")
        except ImportError:
            logger.warning("no curves drawn: pip install 'smalti[training]' brings what that needs")

    def steps(self, start: int) -> "tqdm[int]":
        """Return the steps that are left, behind a progress bar."""
        bar = tqdm(
            range(start, self.num_steps),
            initial=start,
            total=self.num_steps,
            desc=self.folder.name,
            mininterval=1.0,
            disable=not self.processes.is_main,
        )
        self._bar = bar
        return bar


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the extra "training" is not installed
        return None
    return SummaryWriter(str(folder))
