"""What ``smalti train tokenizer`` reads from its TOML file, and what the settings alone show to be wrong."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from models.autoencoders.vq import TokenizerConfig
from models.options import Count, UnitTime
from training import preflight
from training.data.bad_files import MAX_BAD_SHARE
from training.discriminator import SMALLEST_PX
from training.lite0 import missing_weights


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TokenizerTrainingConfig:
    """What ``smalti train tokenizer`` reads from its TOML file.

    ``data`` is "fashion-mnist" or a folder of images; ``folder`` keeps checkpoints, logs and, at the end,
    ``tokenizer.safetensors``. ``continuous_steps`` train without quantising first, so that the codebook
    starts from latents worth a k-means: 200 by default, a quarter of shorter runs. From ``adversarial_start``
    on, ``adversarial_weight`` above 0 adds VQGAN's discriminator, and ``perceptual_weight`` the distance in
    features of EfficientNet-Lite0 (``lite0.py``). ``start_from`` names a finished tokenizer
    to go on from, of the same shape or of fewer blocks: more of them start as the identity.
    ``finetune_decoder`` names one whose encoder and codebook stay frozen: images keep their codes, so a prior
    that was trained on them stays good. With ``num_searched_images`` its decoder also learns, in half of
    every batch, from codes that were searched for so many training images in one sweep
    (models/autoencoders/code_search.py).
    """

    tokenizer: TokenizerConfig
    folder: Path
    data: str = "fashion-mnist"
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = MAX_BAD_SHARE
    batch_size: Count = 128
    num_steps: Count = 3000
    continuous_steps: Annotated[int, Field(ge=0)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    decay_fraction: UnitTime = 0.5
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    l1_weight: Annotated[float, Field(ge=0)] = 0.1
    l2_weight: Annotated[float, Field(ge=0)] = 1.0
    edge_weight: Annotated[float, Field(ge=0)] = 0.0
    ssim_weight: Annotated[float, Field(ge=0)] = 0.0
    perceptual_weight: Annotated[float, Field(ge=0)] = 0.0
    adversarial_weight: Annotated[float, Field(ge=0)] = 0.0
    adversarial_start: Annotated[int, Field(ge=0)] = 0
    adversarial_learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    start_from: Path | None = None
    finetune_decoder: Path | None = None
    num_searched_images: Annotated[int, Field(ge=0)] = 0
    horizontal_flips: bool = True
    seed: int = 0
    num_threads: Count | None = None
    is_compiled: bool = True
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 60.0
    log_every: Count = 50

    @property
    def num_continuous_steps(self) -> int:
        """How many steps train without quantising: fewer by default where the run is short."""
        return min(200, self.num_steps // 4) if self.continuous_steps is None else self.continuous_steps


def problems(config: TokenizerTrainingConfig) -> Iterator[str | None]:
    """Yield what the settings alone show to be wrong."""
    yield preflight.unwritable("folder", config.folder)
    yield preflight.missing_file("start_from", config.start_from)
    yield preflight.missing_file("finetune_decoder", config.finetune_decoder)
    if config.start_from is not None and config.finetune_decoder is not None:
        yield "start_from trains a whole tokenizer, finetune_decoder a decoder alone: give one of them"
    if config.finetune_decoder is None and config.num_continuous_steps >= config.num_steps:
        yield (
            f"continuous_steps: with {config.num_continuous_steps} of num_steps {config.num_steps} no"
            f" codebook would ever be trained: set at most {config.num_steps - 1}, or leave it out"
        )
    if config.adversarial_weight and config.adversarial_start >= config.num_steps:
        yield (
            f"adversarial_start: the discriminator would never set in: set less than num_steps"
            f" {config.num_steps}, got {config.adversarial_start}"
        )
    if config.adversarial_weight and config.tokenizer.image_size_px < SMALLEST_PX:
        yield (
            f"adversarial_weight: the discriminator wants pictures of {SMALLEST_PX} pixels a side, got"
            f" tokenizer.image_size_px {config.tokenizer.image_size_px}"
        )
    if config.perceptual_weight and (problem := missing_weights()):
        yield f"perceptual_weight: {problem}"
    if not config.num_searched_images:
        return
    if config.finetune_decoder is None or config.batch_size < 2:
        yield (
            "num_searched_images is for half of each batch of a decoder that is fine-tuned:"
            " give finetune_decoder, and a batch_size of at least 2"
        )
    if config.num_searched_images < config.batch_size // 2:
        yield (
            f"num_searched_images: {config.num_searched_images} don't fill half of a batch:"
            f" set at least {config.batch_size // 2}"
        )
