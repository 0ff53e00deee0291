"""What an evaluation needs, checked before it computes for minutes."""

import tempfile
from pathlib import Path

import torch

from models.allocator import keep_freed_memory
from models.autoencoders.similarity import WINDOW_PX
from models.options import ConfigError
from models.pipeline import Pipeline
from training.evaluation.model_card import CARD_FILE, read_card
from training.evaluation.options import EvaluationOptions
from training.lite0 import missing_weights


def load_pipeline(folder: Path, options: EvaluationOptions) -> Pipeline:
    """Load the pipeline to measure, where it can be measured and the results can be written.

    Raises: ConfigError saying what is missing.
    """
    _check_device(options.device)
    keep_freed_memory()
    pipeline = Pipeline.load(folder, device=options.device)
    name = pipeline.spec.name
    if pipeline.spec.medium.medium != "image":
        raise ConfigError(f"{name} makes no pictures: only pipelines that do are measured")
    if pipeline.prior is None:
        raise ConfigError(f"{name} has no prior: there is nothing that it could generate")
    if (size_px := pipeline.autoencoder.signal_shape[1]) < WINDOW_PX:
        raise ConfigError(f"{name}: at least {WINDOW_PX} pixels a side can be measured, got {size_px}")
    if options.effort and not pipeline.spec.can_search:
        raise ConfigError(f"effort: {name} can't search for codes: leave it out")
    options.sampling(pipeline.spec.defaults)
    if options.with_lite0 and (problem := missing_weights()):
        raise ConfigError(problem)
    for written in (folder, options.classifier_folder):
        _check_writable(written)
    read_card(folder / CARD_FILE, name)
    return pipeline


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device: {device!r} can't be used here ({reason}); cpu always can") from error


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{folder} can't be written: {error.strerror}; make it so, or copy it") from error
