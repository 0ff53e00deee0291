"""The settings of all trainings that reconstruct pictures, and what these alone show to be wrong."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from models.networks.shuffle_autoencoder import ShuffleConfig
from models.options import Count, UnitTime
from training import preflight
from training.data.bad_files import MAX_BAD_SHARE
from training.discriminator import SMALLEST_PX
from training.lite0 import missing_weights


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ReconstructionConfig:
    """How an autoencoder of pictures is trained, whatever is between its encoder and its decoder.

    ``data`` is "fashion-mnist" or a folder of images; ``folder`` keeps checkpoints and logs. From
    ``adversarial_start`` on, ``adversarial_weight`` above 0 adds VQGAN's discriminator, and
    ``perceptual_weight`` the distance in features of EfficientNet-Lite0 (``lite0.py``).
    ``in_half_precision`` rounds the finished weights to float16, which halves their file; what computes with
    them stays float32.
    """

    folder: Path
    data: str = "fashion-mnist"
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = MAX_BAD_SHARE
    batch_size: Count = 128
    num_steps: Count = 3000
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
    horizontal_flips: bool = True
    seed: int = 0
    num_threads: Count | None = None
    is_compiled: bool = True
    in_half_precision: bool = False
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 60.0
    log_every: Count = 50


def problems(config: ReconstructionConfig, table: str, shape: ShuffleConfig) -> Iterator[str | None]:
    """Yield what the settings alone show to be wrong.

    table: the name of the table in the TOML file that ``shape`` is.
    """
    yield preflight.unwritable("folder", config.folder)
    if config.adversarial_weight and config.adversarial_start >= config.num_steps:
        yield (
            f"adversarial_start: the discriminator would never set in: set less than num_steps"
            f" {config.num_steps}, got {config.adversarial_start}"
        )
    if config.adversarial_weight and shape.image_size_px < SMALLEST_PX:
        yield (
            f"adversarial_weight: the discriminator wants pictures of {SMALLEST_PX} pixels a side, got"
            f" {table}.image_size_px {shape.image_size_px}"
        )
    if config.perceptual_weight and (problem := missing_weights()):
        yield f"perceptual_weight: {problem}"
