"""Train a tokenizer: ``smalti train tokenizer --config training/configs/fashion-mnist-tokenizer.toml``."""

import dataclasses
import math
from pathlib import Path

import torch

from models.autoencoders.quantizers import VectorQuantizer
from models.autoencoders.vq import Tokenizer
from models.checkpoint import save_checkpoint
from training import preflight
from training.bottlenecks import Bottleneck, Codebook, FrozenCodebook
from training.checkpoints import check_exported
from training.config_file import TrainingError
from training.reconstruction import fit_autoencoder, load_pictures, prepare, show_result
from training.run import Processes, Run
from training.searched_codes import search_training_codes
from training.tokenizer_config import TokenizerTrainingConfig, problems


def train_tokenizer(config: TokenizerTrainingConfig, *, resume: bool = False) -> Path:
    """Train to the end and return the path of ``tokenizer.safetensors``.

    Raises: TrainingError when the run can't start or go on.
    """
    processes = Processes.join(config.num_threads)
    preflight.check(problems(config))
    path = config.folder / "tokenizer.safetensors"
    with Run(config, processes, resume=resume) as run:
        if not (resume and run.is_finished(path)):
            _train(config, run, path)
    return path


def _train(config: TokenizerTrainingConfig, run: Run, path: Path) -> None:
    """Take the steps that are left, and write the tokenizer to ``path``."""
    processes = run.processes
    pictures = load_pictures(config, config.tokenizer)
    torch.manual_seed(config.seed)
    tokenizer = prepare(_start(config), config, pictures, processes)
    searched = None
    if config.num_searched_images:
        searched = search_training_codes(
            tokenizer,
            pictures.train.images,
            config.num_searched_images,
            config.folder,
            config.seed,
            processes,
        )
    bottleneck: Bottleneck = FrozenCodebook(tokenizer.quantizer)
    if config.finetune_decoder is None:
        bottleneck = Codebook(tokenizer.quantizer, config)
    fit_autoencoder(config, run, pictures, tokenizer, bottleneck, searched)
    if processes.is_main:
        check_exported(tokenizer.exported(), path)
        save_checkpoint(path, tokenizer.exported(), config.tokenizer)
        show_result(config, tokenizer, pictures, path)


def _start(config: TokenizerTrainingConfig) -> Tokenizer:
    """Return the tokenizer to train: a new one, or a finished one to train on, whole or its decoder alone."""
    if config.finetune_decoder is not None:
        tokenizer = Tokenizer.load(config.finetune_decoder)
        if tokenizer.config != config.tokenizer:
            raise TrainingError(
                f"finetune_decoder: {config.finetune_decoder} has another shape: {tokenizer.config}"
            )
        tokenizer.decoder.requires_grad_(True)
        return tokenizer
    tokenizer = Tokenizer(config.tokenizer)
    if config.start_from is not None:
        finished = Tokenizer.load(config.start_from)
        num_blocks = finished.config.num_blocks
        if (
            dataclasses.replace(config.tokenizer, num_blocks=num_blocks) != finished.config
            or num_blocks > config.tokenizer.num_blocks
        ):
            raise TrainingError(f"start_from: {config.start_from} has another shape: {finished.config}")
        _copy_weights(finished, tokenizer)
        if isinstance(tokenizer.quantizer, VectorQuantizer):
            tokenizer.quantizer.start_averages(config.batch_size * math.prod(config.tokenizer.grid))
    return tokenizer


def _copy_weights(finished: Tokenizer, tokenizer: Tokenizer) -> None:
    """Copy all weights into a tokenizer of as many blocks, or more: those it has more stay the identity."""
    weights = {name: w for name, w in finished.exported().items() if ".stages." not in name}
    tokenizer.load_state_dict(weights, strict=False)
    for old, new in ((finished.encoder, tokenizer.encoder), (finished.decoder, tokenizer.decoder)):
        layers = iter(new.stages)
        for old_layer in old.stages:
            layer = next(layer for layer in layers if type(layer) is type(old_layer))
            layer.load_state_dict(old_layer.state_dict())
