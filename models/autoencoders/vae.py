"""The continuous autoencoder of pictures: image ⇄ latents with a normal distribution, and no codes."""

from torch import Tensor

from models.autoencoders.gaussians import split_moments
from models.autoencoders.shuffle import ShuffleAutoencoder
from models.checkpoint import fingerprint, set_fields
from models.networks.shuffle_autoencoder import ShuffleConfig


class VariationalAutoencoder(ShuffleAutoencoder):
    """The tokenizer's networks without a codebook: a distribution of latents for an image, and a decoder.

    Kingma and Welling 2013 (arXiv:1312.6114), with a standard normal distribution as the prior of training.
    """

    kind = "vae"

    def __init__(self, config: ShuffleConfig) -> None:
        super().__init__(config, encoded_channels=2 * config.latent_channels)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell this autoencoder, and so its latents, from all others."""
        return fingerprint(set_fields(self.config), self.exported())

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (B, d, h, w) float32, scaled, of ``images`` in [-1, 1]."""
        mean, log_variance = split_moments(self.encoder(images))
        std = (log_variance / 2).exp()
        return (mean - self.latent_mean) / self.latent_std, std / self.latent_std

    def encode(self, images: Tensor) -> Tensor:
        """Return the mean of scaled latents (B, d, h, w) float32 of ``images`` (B, C, H, W) in [-1, 1]."""
        return self.posterior(images)[0]
