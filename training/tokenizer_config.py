"""What ``smalti train tokenizer`` reads from its TOML file, and what the settings alone show to be wrong."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from models.autoencoders.vq import TokenizerConfig
from training import preflight, reconstruction_config
from training.reconstruction_config import ReconstructionConfig


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TokenizerTrainingConfig(ReconstructionConfig):
    """What ``smalti train tokenizer`` reads from its TOML file.

    At the end, ``folder`` has ``tokenizer.safetensors``. ``continuous_steps`` train without quantising first,
    so that the codebook starts from latents worth a k-means: 200 by default, a quarter of shorter runs.
    ``start_from`` names a finished tokenizer to go on from, of the same shape or of fewer blocks: more of
    them start as the identity. ``finetune_decoder`` names one whose encoder and codebook stay frozen: images
    keep their codes, so a prior that was trained on them stays good. With ``num_searched_images`` its decoder
    also learns, in half of every batch, from codes that were searched for so many training images in one
    sweep (models/autoencoders/code_search.py).
    """

    tokenizer: TokenizerConfig
    continuous_steps: Annotated[int, Field(ge=0)] | None = None
    start_from: Path | None = None
    finetune_decoder: Path | None = None
    num_searched_images: Annotated[int, Field(ge=0)] = 0

    @property
    def num_continuous_steps(self) -> int:
        """How many steps train without quantising: fewer by default where the run is short."""
        return min(200, self.num_steps // 4) if self.continuous_steps is None else self.continuous_steps


def problems(config: TokenizerTrainingConfig) -> Iterator[str | None]:
    """Yield what the settings alone show to be wrong."""
    yield from reconstruction_config.problems(config, "tokenizer", config.tokenizer)
    yield preflight.missing_file("start_from", config.start_from)
    yield preflight.missing_file("finetune_decoder", config.finetune_decoder)
    if config.start_from is not None and config.finetune_decoder is not None:
        yield "start_from trains a whole tokenizer, finetune_decoder a decoder alone: give one of them"
    if config.finetune_decoder is not None and config.in_half_precision:
        yield "in_half_precision would change the codes that finetune_decoder keeps: give one of them"
    if config.finetune_decoder is None and config.num_continuous_steps >= config.num_steps:
        yield (
            f"continuous_steps: with {config.num_continuous_steps} of num_steps {config.num_steps} no"
            f" codebook would ever be trained: set at most {config.num_steps - 1}, or leave it out"
        )
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
