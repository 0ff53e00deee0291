"""Train a prior: ``smalti train prior --config training/configs/fashion-mnist-prior.toml``."""

from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.checkpoint import fingerprint
from models.conditioning import Conditions, drop_conditions
from models.config import Count, PipelineConfig, PriorConfig, Sampling, UnitTime
from models.flow import draw_noise, draw_times, interpolate, velocity
from models.pipeline import load_prior, load_tokenizer, save_pipeline
from models.prior import DiT
from models.samplers import sample
from models.tokenizer import Tokenizer
from training.examples import Examples, load_examples
from training.fit import FitConfig, fit
from training.plots import save_grid
from training.precision import autocast
from training.run import Processes, Run, TrainingError, batch_rows, generator_for


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PriorTrainingConfig(FitConfig):
    """What ``smalti train prior`` reads from its TOML file.

    ``tokenizer`` is a ``tokenizer.safetensors``; ``output`` is the finished pipeline's folder, named as it.
    For a prior that takes prompts, ``data`` is a folder with captions, and ``text_encoder`` one with
    ``text_encoder.safetensors``; without it, all-MiniLM-L6-v2 comes from its package. A share of
    ``condition_dropout`` of the samples is trained without conditions. ``start_from`` is a
    ``prior.safetensors`` whose weights the run starts with, in place of random ones. With
    ``horizontal_flips`` each image is also learnt from flipped; not in a folder with captions, where what is
    said of an image may not hold of its mirror image.
    """

    prior: PriorConfig
    tokenizer: Path
    output: Path
    defaults: Sampling
    data: str = "fashion-mnist"
    text_encoder: Path | None = None
    start_from: Path | None = None
    example_prompt: str | None = None
    batch_size: Count = 256
    num_steps: Count = 4000
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    muon_learning_rate: Annotated[float, Field(gt=0)] = 2e-2
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    decay_fraction: UnitTime = 0.4
    ema_decay: UnitTime = 0.999
    condition_dropout: UnitTime = 0.1
    time_mean: float = 0.0
    time_std: Annotated[float, Field(gt=0)] = 1.0
    horizontal_flips: bool = True
    log_every: Count = 50
    samples_every: Count = 1000


def train_prior(config: PriorTrainingConfig, *, resume: bool = False) -> Path:
    """Train to the end, write the pipeline and return its folder.

    Raises: TrainingError when the run can't start or go on.
    """
    processes = Processes.join(config.num_threads)
    run = Run(config.folder, config, processes, num_steps=config.num_steps, resume=resume)
    tokenizer = load_tokenizer(config.tokenizer).to(processes.device)
    examples = load_examples(
        tokenizer,
        config.data,
        with_flips=config.horizontal_flips,
        text_encoder=config.text_encoder,
        cache=config.folder,
    )
    pipeline_config = _pipeline_config(config, tokenizer, examples)

    torch.manual_seed(config.seed)
    prior = _first_prior(config).to(processes.device)
    predict: Any = processes.wrap(prior)
    if config.is_compiled:
        predict = torch.compile(predict)

    def loss_of(step: int) -> Tensor:
        rows = batch_rows(len(examples), config.batch_size, step, config.seed, processes)
        generator = generator_for(config.seed, step, processes.rank)
        latents = examples.latents[rows].to(processes.device).float()
        conditions = examples.conditions(rows, generator).to(processes.device)
        return flow_loss(predict, latents, conditions, prior.null_conditions(), config, generator)

    fit(
        run,
        prior,
        config,
        loss_of,
        show=lambda average, step: save_samples(
            config.folder / "samples" / f"{step:07d}.png",
            tokenizer,
            average,
            examples.shown.to(processes.device),
            config.defaults,
            config.seed,
        ),
    )
    if processes.is_main:
        save_pipeline(config.output, pipeline_config, tokenizer, prior, examples.prompt_encoder)
    return config.output


def _first_prior(config: PriorTrainingConfig) -> DiT:
    if config.start_from is None:
        return DiT(config.prior)
    prior = load_prior(config.start_from)
    if prior.config != config.prior:
        raise TrainingError(f"start_from: {config.start_from} has another shape: {prior.config}")
    return prior


def _pipeline_config(config: PriorTrainingConfig, tokenizer: Tokenizer, examples: Examples) -> PipelineConfig:
    return PipelineConfig(
        name=config.output.name,
        class_names=examples.class_names,
        tokenizer=tokenizer.config,
        tokenizer_fingerprint=fingerprint(tokenizer.config, tokenizer.exported()),
        prior=config.prior,
        defaults=config.defaults,
        style_names=examples.style_names,
        group_names=examples.group_names,
        example_prompt=config.example_prompt,
    )


def flow_loss(
    predict: nn.Module,
    latents: Tensor,
    conditions: Conditions,
    null: Conditions,
    config: PriorTrainingConfig,
    generator: torch.Generator,
) -> Tensor:
    """Return the mean squared error of the predicted velocity at random times (t: 0 noise, 1 data)."""
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    t = draw_times(len(latents), generator, mean=config.time_mean, std=config.time_std).to(latents.device)
    kept = drop_conditions(conditions, null, config.condition_dropout, generator)
    with autocast(latents.device):
        predicted = predict(interpolate(latents, noise, t), t, kept)
    return F.mse_loss(predicted.float(), velocity(latents, noise))


@torch.inference_mode()
def save_samples(
    path: Path,
    tokenizer: Tokenizer,
    prior: DiT,
    conditions: Conditions,
    sampling: Sampling,
    seed: int,
) -> None:
    """Save a picture of a sample for each of ``conditions``, from the same noise every time."""
    device = conditions.labels.device
    shape = (prior.config.latent_channels, *prior.config.grid)
    noise = torch.stack([draw_noise(shape, seed, i) for i in range(len(conditions))])
    with autocast(device):
        latents = sample(
            prior,
            noise.to(device),
            conditions,
            prior.null_conditions(len(conditions)),
            sampling,
        )
    images = tokenizer.decode_codes(tokenizer.quantize(latents).codes)
    save_grid(path, images.cpu(), num_columns=8)
