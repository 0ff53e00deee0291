"""What the stages need of an autoencoder."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from models.autoencoders.quantizers import Quantized


class Autoencoder(Protocol):
    """A frozen pair of functions between signals and scaled latents."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d, *grid) of one sample's latents."""

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """(C, *size) of one sample's signal."""

    def encode(self, signal: Tensor) -> Tensor:
        """Return scaled latents (B, d, *grid) float32 of signals (B, C, *size)."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return signals (B, C, *size) float32 of scaled latents (B, d, *grid)."""

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell this one, and so its codes or latents, from all others."""


@runtime_checkable
class Quantizing(Protocol):
    """What an autoencoder with a codebook adds: a tokenizer has both."""

    def quantize(self, latents: Tensor) -> Quantized:
        """Snap scaled latents (B, d, *grid) to the codebook."""

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the scaled latents (B, d, *grid) of codes (B, [K,] *grid)."""


@runtime_checkable
class Probabilistic(Protocol):
    """What an autoencoder adds that has a distribution of latents for a signal; ``encode`` is its mean."""

    def posterior(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Return scaled mean and standard deviation, both (B, d, *grid) float32, of signals (B, C, *size)."""
