"""The shape that every transformer over a grid has, whatever its tokens stand for."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from models.options import CHECKED, ConfigError, Count, NotNegative


@dataclass(frozen=True, config=CHECKED)
class TransformerConfig:
    """A transformer over a grid of 1, 2 or 3 axes, whose tokens are patches of ``patch_size`` a side.

    latent_channels: of the tokenizer's latents. ``label_sizes`` are the numbers of labels in each set that it
    can be asked for, in the order of the pipeline's sets. ``text_tokens`` of a prompt, each with
    ``text_channels``, can be attended to; both are 0 where it takes no prompt.
    """

    latent_channels: Count = 4
    grid: Annotated[tuple[Count, ...], Field(min_length=1, max_length=3)] = (14, 14)
    patch_size: Count = 1
    hidden_size: Count = 256
    depth: Count = 8
    num_heads: Count = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 8 / 3
    label_sizes: tuple[Count, ...] = ()
    text_tokens: NotNegative = 0
    text_channels: NotNegative = 0

    def __post_init__(self) -> None:
        if any(side % self.patch_size for side in self.grid):
            raise ConfigError(
                f"every side of grid must be a multiple of patch_size {self.patch_size}, got {self.grid}"
            )
        if self.hidden_size % self.num_heads or self.head_size % 2 or self.head_size < 2 * len(self.grid):
            raise ConfigError(
                f"hidden_size {self.hidden_size} must give each of num_heads {self.num_heads} heads an"
                f" even number of channels, at least {2 * len(self.grid)} for {len(self.grid)} axes"
            )
        if bool(self.text_tokens) != bool(self.text_channels):
            raise ConfigError(
                "text_tokens and text_channels must both be 0 or neither, got"
                f" {self.text_tokens} and {self.text_channels}"
            )

    @property
    def takes_prompt(self) -> bool:
        return self.text_tokens > 0

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads
