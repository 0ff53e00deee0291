"""What would fail after the last step of a run, found before its first, and all of it said at once."""

import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import ValidationError

from models.media.image import ImageSpec
from models.options import ConfigError
from models.spec import SPEC_FILE, PipelineSpec
from training.config_file import TrainingError
from training.precision import fast_dtype
from training.run import Processes

logger = logging.getLogger(__name__)

_BYTES_PER_PARAMETER = 4 * 4  # itself, two moments of it, and their average
_NUM_CHECKPOINTS = 3  # the last two, and the one that is being written


def check(problems: Iterable[str | None]) -> None:
    """Raise what isn't None as one TrainingError, a line for each."""
    if found := [problem for problem in problems if problem]:
        raise TrainingError("\n".join(dict.fromkeys(found)))


def unwritable(name: str, folder: Path) -> str | None:
    """Return why nothing can be written to ``folder``, the value of the setting ``name``."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{name}: {folder} can't be written: {there} is a file"
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return f"{name}: {folder} can't be written: {there}: {error.strerror}"


def missing_file(name: str, path: Path | None) -> str | None:
    """Return that a file or folder which a setting names is missing."""
    return None if path is None or path.exists() else f"{name}: {path} is missing"


def unusable_output(output: Path) -> str | None:
    """Return why a pipeline can't be written to the folder ``output``, or overwrites what isn't one."""
    if problem := unwritable("output", output):
        return problem
    name = output.name
    try:
        PipelineSpec(
            name=name,
            makes=(ImageSpec(width_px=8, height_px=8, channels=1),),
            latents=(1, 1, 1),
            autoencoders={"image": "vq"},
        )
    except (ValidationError, ConfigError):
        return (
            f"output: the folder's name is the pipeline's, of at most 64 of a-z, 0-9, '.', '_' and '-' and"
            f" beginning with a letter or digit, got {name!r}"
        )
    if output.is_dir() and any(output.iterdir()) and not (output / SPEC_FILE).exists():
        return f"output: {output} holds other things than a pipeline: name a new folder"
    return None


def other_pipeline(output: Path, spec: PipelineSpec) -> str | None:
    """Return that ``output`` holds a pipeline of another kind than ``spec``; says that a like one goes."""
    if not (output / SPEC_FILE).exists():
        return None
    try:
        there = PipelineSpec.load(output / SPEC_FILE)
    except ConfigError as error:
        return f"output: {output} holds a pipeline that can't be read ({error}): name another folder"
    for what in ("makes", "takes", "labels", "takes_prompt"):
        if getattr(there, what) != getattr(spec, what):
            return (
                f"output: {output} holds another pipeline, whose {what} is {getattr(there, what)} and not"
                f" {getattr(spec, what)}: name another folder, or remove it"
            )
    logger.info("%s holds a pipeline already, which is replaced when training ends", output)
    return None


def too_few(num_examples: int, batch_size: int, processes: Processes) -> str | None:
    """Return that a batch can't be filled, or not shared out to all processes."""
    if num_examples < batch_size:
        return f"batch_size: {batch_size} is more than the {num_examples} images there are to train on"
    if batch_size < processes.count:
        return f"batch_size: {batch_size} is less than the {processes.count} processes that share it"
    return None


def too_full(folder: Path, module: torch.nn.Module) -> str | None:
    """Return that the disk has no room for the checkpoints of ``module``."""
    needed = num_parameters(module) * _BYTES_PER_PARAMETER * _NUM_CHECKPOINTS
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return None
    return f"folder: checkpoints in {folder} take up to {needed >> 20} MiB, and {free >> 20} MiB are free"


def num_parameters(module: torch.nn.Module) -> int:
    """Return how many numbers a module is trained to."""
    return sum(parameter.numel() for parameter in module.parameters())


def say_what_begins(
    module: torch.nn.Module, num_examples: int, batch_size: int, num_steps: int, processes: Processes
) -> None:
    """Say in one line what is trained, on what, and where; and what is missing that a run can do without."""
    if not processes.is_main:
        return
    steps_per_epoch = num_examples // batch_size
    logger.info(
        "training %.2f M parameters on %d images, %d steps of %d (%d an epoch), on %s in %s, %d threads",
        num_parameters(module) / 1e6, num_examples, num_steps, batch_size, steps_per_epoch,
        f"{processes.count} × {processes.device}", fast_dtype(processes.device.type),
        torch.get_num_threads(),
    )  # fmt: skip
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no curves will be drawn: pip install 'smalti[training]' brings what that needs")
