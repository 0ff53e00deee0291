"""A training run: its folder, log, checkpoints and processes, the same for tokenizers and priors."""

import functools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor, nn
from tqdm import tqdm

from models.allocator import keep_freed_memory
from training.checkpoints import Checkpoints, State, not_finite
from training.config_file import TrainingError
from training.config_file import load_config as load_config  # its callers know it from here
from training.evaluation.plots import Curve, save_curves
from training.folder_lock import hold
from training.losses_log import Losses, read_losses
from training.resuming import RunConfig, check_resumable, decay_start
from training.stopping import Stopped, StopRequest

logger = logging.getLogger(__name__)


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
        """Join torchrun's group if it started us; choose this process's device, threads and allocator."""
        if num_threads:
            torch.set_num_threads(num_threads)
        keep_freed_memory()
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cuda.enable_cudnn_sdp(False)  # 1.5 ms of the host a call, where flash takes 0.03
        if "RANK" in os.environ and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        if dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(0, 1, device)

    def keep(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` on this process's GPU if that has room for four such, else where it is."""
        if self.device.type != "cuda" or 4 * tensor.nbytes > torch.cuda.mem_get_info(self.device)[0]:
            return tensor
        return tensor.to(self.device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return ``module`` with its gradients averaged over the processes."""
        if self.count == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=devices)


def generator_for(seed: int, *stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for one (seed, step, …): a resumed run draws what the first one drew."""
    mixed = seed
    for number in stream:
        mixed = (mixed * 6364136223846793005 + number * 1442695040888963407 + 1) % 2**63
    return torch.Generator(device).manual_seed(mixed)


def batch_rows(num_images: int, batch_size: int, step: int, seed: int, processes: Processes) -> Tensor:
    """Return this process's rows of the batch of ``step``: every image once an epoch, shuffled anew."""
    per_epoch = num_images // batch_size
    if per_epoch == 0:
        raise TrainingError(f"batch_size {batch_size} is more than the {num_images} images there are")
    epoch, position = divmod(step, per_epoch)
    order = _order_of(num_images, seed, epoch)
    return order[position * batch_size : (position + 1) * batch_size][processes.rank :: processes.count]


@functools.lru_cache(maxsize=2)  # of the images, and of those whose codes were searched
def _order_of(num_images: int, seed: int, epoch: int) -> Tensor:
    """Return the order (N,) that an epoch takes the images in."""
    return torch.randperm(num_images, generator=generator_for(seed, -1, epoch))


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Return what to multiply the learning rate by: warm-up, constant, then a fall to 0.

    The fall takes the last ``decay_fraction`` of the run, as 1 − √(progress) (Hägele et al. 2024,
    arXiv:2405.18392).
    """
    start = decay_start(num_steps, decay_fraction)
    falling = max(0.0, (step - start) / (num_steps - start))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (1 - math.sqrt(falling))


class Run:
    """The folder of a run: its checkpoints, ``losses.jsonl``, TensorBoard files; held while it is entered."""

    def __init__(self, config: RunConfig, processes: Processes, *, resume: bool) -> None:
        self.config = config
        self.folder = config.folder
        self.processes = processes
        self._resume = resume
        self._checkpoints = Checkpoints(self.folder)
        self._log_file = self.folder / "losses.jsonl"
        self._losses = Losses()
        self._lock: int | None = None
        self._made_from: Mapping[str, str] = {}
        self._last_saved = time.monotonic()
        self._stop = StopRequest()
        self._writer: Any = None
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> "Run":
        """Make the folder this run's own.

        Raises: TrainingError when it can't be written, or holds another run.
        """
        if self._checkpoints.exist() and not self._resume:
            raise TrainingError(
                f"{self.folder} holds a run already: give --resume to go on with it, or another folder"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.processes.is_main:
                self._lock = hold(self.folder)
        except OSError as error:
            raise TrainingError(f"folder: {self.folder} can't be written: {error.strerror}") from error
        if self.processes.is_main:
            self._writer = _tensorboard(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.restore()
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def is_finished(self, product: Path) -> bool:
        """Whether all steps are taken and ``product``, the last file written, is there; says so.

        Raises: TrainingError when the run had other settings.
        """
        if not product.exists():
            return False
        state = self._checkpoints.load(is_main=self.processes.is_main)
        if state is None or state["step"] != self.config.num_steps:
            return False
        newest = self._checkpoints.newest
        if not newest.exists() or product.stat().st_mtime < newest.stat().st_mtime:
            return False  # a damaged one was set aside; or the product is of a shorter run
        check_resumable(state, self.config, None)
        logger.info("%s: all %d steps are taken; the weights are in %s", self.folder, state["step"], product)
        return True

    def load(self, made_from: Mapping[str, str]) -> State | None:
        """Return the last checkpoint's state, or None where there is none.

        made_from: digests of what paths in the settings name, so that it may be found elsewhere later.

        Raises: TrainingError when it was made with other settings, or can't be read.
        """
        self._made_from = made_from
        state = self._checkpoints.load(is_main=self.processes.is_main)
        if state is not None:
            check_resumable(state, self.config, made_from)
        elif self._resume:
            logger.info("%s holds no checkpoint yet: starting from the beginning", self.folder)
        self._forget_losses_from(0 if state is None else state["step"])
        return state

    def _forget_losses_from(self, step: int) -> None:
        """Drop what a killed run logged past its last checkpoint, and a line that it left unfinished."""
        if not self._log_file.exists():
            return
        entries = [entry for entry in read_losses(self._log_file) if entry["step"] < step]
        for entry in entries:
            self._losses.check(entry)
        if self.processes.is_main:
            partial = self._log_file.with_suffix(".partial")
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
            partial.replace(self._log_file)

    def is_logged(self, step: int) -> bool:
        """Whether the losses of ``step`` are to be logged."""
        return step % self.config.log_every == 0 or step == self.config.num_steps - 1

    def log(self, step: int, **scalars: float) -> None:
        """Record ``scalars`` at ``step`` in losses.jsonl, TensorBoard and the progress bar.

        Raises: TrainingError when one isn't finite.
        """
        if not self.processes.is_main:
            return
        entry = {"step": step, "time": round(time.time(), 1), **scalars}
        if problem := self._losses.check(entry):
            raise self._diverged(problem)
        with self._log_file.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in scalars.items()})

    def end_step(self, step: int, trained: nn.Module, state_of: Callable[[], State]) -> None:
        """End ``step``: save a checkpoint where it is time for one, or a signal asked for an end.

        trained: what is checked where losses are logged. state_of: what a checkpoint keeps, checked before
        it is written.

        Raises: TrainingError when something checked isn't finite; Stopped after a signal.
        """
        config, stopped_by = self.config, self._stop.signal_number()
        is_last = step == config.num_steps - 1
        is_due = is_last or time.monotonic() - self._last_saved >= config.checkpoint_every_s
        is_saved = bool(is_due or stopped_by)
        if self.processes.is_main and (is_saved or self.is_logged(step)):
            state = state_of() if is_saved else trained.state_dict()
            if bad := not_finite(state):
                raise self._diverged(f"after step {step}, {bad} is not finite")
            if is_saved:
                saved = TypeAdapter(type(config)).dump_python(config, mode="json")
                self._checkpoints.save(
                    {"step": step + 1, "config": saved, "made_from": dict(self._made_from), **state}
                )
                self._last_saved = time.monotonic()
        if stopped_by:
            raise Stopped(
                f"stopped after {step + 1} of {config.num_steps} steps, which"
                f" {self._checkpoints.newest} keeps: the same command with --resume goes on",
                stopped_by,
            )

    def _diverged(self, what: str) -> TrainingError:
        kept = "no checkpoint was written yet"
        if self._checkpoints.exist():
            kept = f"the last good checkpoint is kept in {self._checkpoints.newest}"
        settings = vars(self.config)
        names = ["learning_rate", "muon_learning_rate"]
        if settings.get("adversarial_weight"):
            names.append("adversarial_learning_rate")
        rates = " or ".join(f"{name} (now {settings[name]})" for name in names if name in settings)
        return TrainingError(
            f"training diverged: {what} (last finite loss: {self._losses.last_finite}). Start in a new folder"
            f" with a lower {rates}, or more warmup_steps; {kept}"
        )

    def draw_losses(self) -> None:
        """Draw what was logged as pictures, one for each name; needs matplotlib, of the extra "training"."""
        if not self.processes.is_main or not (entries := read_losses(self._log_file)):
            return
        names = [name for name in entries[-1] if name not in ("step", "time")]
        try:
            for name in names:
                having = [entry for entry in entries if name in entry]  # some begin later than others
                curve = Curve([entry["step"] for entry in having], [entry[name] for entry in having])
                save_curves(self.folder / f"{name}.png", {name: curve}, is_log=name == "loss")
        except ImportError:
            logger.warning("no curves drawn: pip install 'smalti[training]' brings what that needs")

    def steps(self, start: int) -> Iterator[int]:
        """Yield the steps that are left, behind a progress bar; signals wait for the end of a step."""
        self._bar = tqdm(
            range(start, self.config.num_steps),
            initial=start,
            total=self.config.num_steps,
            desc=self.folder.name,
            mininterval=1.0,
            disable=not self.processes.is_main,
        )
        self._stop.listen()
        yield from self._bar
        self._stop.restore()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the extra "training" is not installed
        return None
    return SummaryWriter(str(folder))
