"""What our own autoencoders of pictures have in common, whatever is between their encoder and decoder."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from models.autoencoders.quantizers import keep_infinite
from models.checkpoint import load_checkpoint, load_into
from models.networks.shuffle_autoencoder import Decoder, Encoder, ShuffleConfig


class ShuffleAutoencoder(nn.Module, ABC):
    """A frozen pair of functions between images and latents.

    Latents are scaled to zero mean and unit standard deviation per channel (``latent_mean``,
    ``latent_std``: measured at the end of training), which is what a prior learns to sample.
    """

    kind: ClassVar[str]  # in models/registry.py
    config_class: ClassVar[type[ShuffleConfig]] = ShuffleConfig

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: ShuffleConfig, encoded_channels: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, encoded_channels)
        self.decoder = Decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(config.latent_channels, 1, 1))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load one safetensors file that knows its own configuration; frozen.

        Raises: CheckpointError.
        """
        tensors, config = load_checkpoint(path, cls.config_class)
        autoencoder = cls(config)
        load_into(autoencoder, {**autoencoder.training_only_tensors(), **tensors}, path)
        return autoencoder.eval().requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d, *grid) of one sample's latents."""
        return (self.config.latent_channels, *self.config.grid)

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """(C, *size) of one sample's signal."""
        return (self.config.image_channels, self.config.image_size_px, self.config.image_size_px)

    @abstractmethod
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell this autoencoder from all others."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return scaled latents (B, d, h, w) float32 of ``images`` (B, C, H, W) in [-1, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, C, H, W) float32 in [-1, 1] of scaled ``latents`` (B, d, h, w)."""
        images = self.decoder(latents * self.latent_std + self.latent_mean).float()
        return keep_infinite(images.clamp(-1, 1), images)

    def exported(self) -> dict[str, Tensor]:
        """Return the tensors that encoding and decoding need, without those of training alone."""
        training_only = self.training_only_tensors()
        return {name: tensor for name, tensor in self.state_dict().items() if name not in training_only}

    def training_only_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that only training needs."""
        return {}
