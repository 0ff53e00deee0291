"""Train a KL autoencoder: ``smalti train autoencoder --config training/configs/fashion-mnist-kl.toml``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from models.autoencoders.vae import VariationalAutoencoder
from models.checkpoint import save_checkpoint
from models.networks.shuffle_autoencoder import ShuffleConfig
from models.pipeline import AUTOENCODER_FILE, autoencoder_spec
from models.spec import SPEC_FILE, PipelineSpec
from training import preflight, reconstruction_config
from training.bottlenecks import NormalLatents
from training.checkpoints import check_exported
from training.reconstruction import fit_autoencoder, load_pictures, prepare, show_result
from training.reconstruction_config import ReconstructionConfig
from training.run import Processes, Run


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AutoencoderTrainingConfig(ReconstructionConfig):
    """What ``smalti train autoencoder`` reads from its TOML file.

    ``output`` is the finished pipeline's folder, named as it, which encodes and decodes. What latents tell
    costs ``kl_weight``, in nats a pixel value beside the reconstruction's loss; ``free_nats`` a latent value,
    as the mean of a channel, cost nothing (``bottlenecks.py``).
    """

    autoencoder: ShuffleConfig
    output: Path
    kl_weight: Annotated[float, Field(ge=0)] = 1e-3
    free_nats: Annotated[float, Field(ge=0)] = 0.0


def train_autoencoder(config: AutoencoderTrainingConfig, *, resume: bool = False) -> Path:
    """Train to the end, write the pipeline and return its folder.

    Raises: TrainingError when the run can't start or go on.
    """
    processes = Processes.join(config.num_threads)
    preflight.check(_problems(config))
    with Run(config, processes, resume=resume) as run:
        if not (resume and run.is_finished(config.output / SPEC_FILE)):
            _train(config, run)
    return config.output


def _problems(config: AutoencoderTrainingConfig) -> Iterator[str | None]:
    """Yield what the settings alone show to be wrong."""
    yield from reconstruction_config.problems(config, "autoencoder", config.autoencoder)
    yield preflight.unusable_output(config.output)


def _train(config: AutoencoderTrainingConfig, run: Run) -> None:
    """Take the steps that are left, and write the pipeline."""
    processes = run.processes
    pictures = load_pictures(config, config.autoencoder)
    torch.manual_seed(config.seed)
    autoencoder = prepare(VariationalAutoencoder(config.autoencoder), config, pictures, processes)
    preflight.check((preflight.other_pipeline(config.output, _spec(config, autoencoder)),))
    bottleneck = NormalLatents(config.kl_weight, config.free_nats, config.seed, processes.rank)
    fit_autoencoder(config, run, pictures, autoencoder, bottleneck)
    if processes.is_main:
        path = config.output / AUTOENCODER_FILE
        check_exported(autoencoder.exported(), path)
        save_checkpoint(path, autoencoder.exported(), autoencoder.config)
        _spec(config, autoencoder).save(config.output / SPEC_FILE)
        show_result(config, autoencoder, pictures, path)


def _spec(config: AutoencoderTrainingConfig, autoencoder: VariationalAutoencoder) -> PipelineSpec:
    return autoencoder_spec(config.output.name, autoencoder.kind, autoencoder)
