"""The tokenizer of pictures: image ⇄ latents ⇄ codes."""

import math
from dataclasses import asdict, fields
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.autoencoders.quantizers import FSQ, Quantized, Quantizer, VectorQuantizer
from models.autoencoders.shuffle import ShuffleAutoencoder
from models.checkpoint import fingerprint
from models.networks.shuffle_autoencoder import ShuffleConfig
from models.options import CHECKED, ConfigError

AnyModule = TypeVar("AnyModule", bound=nn.Module)
QuantizerName = Literal["vector", "fsq"]
# The fields that a fingerprint is taken over. One that is added later, with a default, counts only where it
# is set: so codes that people keep stay good.
_FINGERPRINTED = (
    "image_channels",
    "image_size_px",
    "downsample_factor",
    "hidden_channels",
    "channel_growth",
    "num_blocks",
    "latent_channels",
    "codebook_size",
    "quantizer",
    "fsq_levels",
)


@dataclass(frozen=True, config=CHECKED)
class TokenizerConfig(ShuffleConfig):
    """The shape of a tokenizer: image ⇄ latents ⇄ codes.

    ``fsq_levels`` belongs to ``quantizer="fsq"``: they multiply to ``codebook_size`` and number
    ``latent_channels``.
    """

    codebook_size: Annotated[int, Field(ge=2, le=2**20)] = 1024
    quantizer: QuantizerName = "vector"
    fsq_levels: tuple[Annotated[int, Field(ge=2)], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantizer == "vector" and self.fsq_levels:
            raise ConfigError("fsq_levels is only for quantizer 'fsq'")
        if self.quantizer == "fsq" and (
            math.prod(self.fsq_levels) != self.codebook_size or len(self.fsq_levels) != self.latent_channels
        ):
            raise ConfigError(
                f"fsq_levels must multiply to codebook_size {self.codebook_size} and number"
                f" latent_channels {self.latent_channels}, got {self.fsq_levels}"
            )


class Tokenizer(ShuffleAutoencoder):
    """A frozen pair of functions between images and codes, with the scaled latents between them.

    ``quantize(latents).latents == lookup(codes)`` holds exactly.
    """

    kind = "vq"
    config_class = TokenizerConfig

    config: TokenizerConfig

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.quantizer = _make_quantizer(config)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell this tokenizer, and so its codes, from all others."""
        values, defaults = asdict(self.config), asdict(TokenizerConfig())
        named = {
            each.name: values[each.name]
            for each in fields(self.config)
            if each.name in _FINGERPRINTED or values[each.name] != defaults[each.name]
        }
        return fingerprint(named, self.exported())

    def encode(self, images: Tensor) -> Tensor:
        """Return scaled latents (B, d, h, w) float32 of ``images`` (B, C, H, W) in [-1, 1]."""
        return (self.quantizer.squash(self.encoder(images)) - self.latent_mean) / self.latent_std

    def quantize(self, latents: Tensor) -> Quantized:
        """Snap scaled ``latents`` (B, d, h, w) to the codebook; the result is scaled, too."""
        quantized = self.quantizer.quantize(latents * self.latent_std + self.latent_mean)
        scaled = (quantized.latents - self.latent_mean) / self.latent_std
        return Quantized(scaled, quantized.codes, quantized.loss)

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the scaled latents (B, d, h, w) of ``codes`` (B, h, w)."""
        return (self.quantizer.lookup(codes) - self.latent_mean) / self.latent_std

    def training_only_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that only training needs: the codebook's moving averages."""
        endings = ("num_assigned", "sum_assigned", "is_initialised")
        return {name: tensor for name, tensor in self.state_dict().items() if name.endswith(endings)}

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1] of ``codes`` (B, h, w)."""
        return self.decode(self.lookup(codes))


def channels_last(module: AnyModule) -> AnyModule:
    """Lay a module's convolutions out as processors like them best; the numbers stay the same."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _make_quantizer(config: TokenizerConfig) -> Quantizer:
    """Return the quantiser that ``config`` names."""
    if config.quantizer == "fsq":
        return FSQ(config.fsq_levels)
    return VectorQuantizer(config.codebook_size, config.latent_channels)
