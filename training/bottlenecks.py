"""What training does between encoder and decoder: a codebook, a frozen one, or a normal distribution."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from models.autoencoders.gaussians import split_moments
from models.autoencoders.quantizers import Quantizer, VectorQuantizer
from training.checkpoints import State
from training.run import generator_for
from training.tokenizer_config import TokenizerTrainingConfig

logger = logging.getLogger(__name__)

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Squeezed:
    """What the decoder is given, and what comes with it.

    latents: (B, d, h, w). loss: a scalar to add to that of the reconstruction. encoded and codes: what was
    snapped to the codebook, and where to. logged: scalars, by name.
    """

    latents: Tensor
    loss: Tensor | None = None
    encoded: Tensor | None = None
    codes: Tensor | None = None
    logged: Mapping[str, Tensor] = field(default_factory=dict)


class Bottleneck(Protocol):
    """What is between encoder and decoder."""

    trains_encoder: ClassVar[bool]

    def announce(self, first_step: int) -> None:
        """Say what is to be known before ``first_step``."""

    def squeeze(self, encode: Encode, images: Tensor, codes: Tensor | None, step: int) -> Squeezed:
        """Return what the decoder is given for ``images`` (B, C, H, W): always the same, for one step.

        codes: of the last of the images, where they aren't to be encoded.
        """

    def learn(self, squeezed: Squeezed, step: int) -> None:
        """Learn what the optimiser doesn't, after its step."""

    def state_dict(self) -> State:
        """Return what a checkpoint keeps besides the autoencoder."""

    def load_state_dict(self, state: State) -> None:
        """Go on from a checkpoint."""


class Codebook:
    """Latents are snapped to a codebook, once it has been started: VQ and FSQ."""

    trains_encoder: ClassVar = True

    def __init__(self, quantizer: Quantizer, config: TokenizerTrainingConfig) -> None:
        self._quantizer = quantizer
        self._config = config
        self._num_continuous_steps = config.num_continuous_steps

    def announce(self, first_step: int) -> None:
        if first_step < self._num_continuous_steps:
            logger.info(
                "no codebook until step %d: what is logged before is without it", self._num_continuous_steps
            )

    def squeeze(self, encode: Encode, images: Tensor, codes: Tensor | None, step: int) -> Squeezed:
        quantizer = self._quantizer
        latents = quantizer.squash(encode(images))
        if step < self._num_continuous_steps:
            return Squeezed(latents)
        if isinstance(quantizer, VectorQuantizer) and not quantizer.is_initialised:
            quantizer.initialise(latents, generator_for(self._config.seed, step, -2))
        quantized = quantizer.quantize(latents)
        return Squeezed(quantized.latents, quantized.loss, latents.detach(), quantized.codes)

    def learn(self, squeezed: Squeezed, step: int) -> None:
        if squeezed.encoded is None or squeezed.codes is None:
            return
        if isinstance(self._quantizer, VectorQuantizer):
            generator = generator_for(self._config.seed, step, -3)
            self._quantizer.update(squeezed.encoded, squeezed.codes, generator)

    def state_dict(self) -> State:
        return {"continuous_steps": self._num_continuous_steps}

    def load_state_dict(self, state: State) -> None:
        if self._config.continuous_steps is None:
            self._num_continuous_steps = state.get("continuous_steps", state["config"]["continuous_steps"])


class FrozenCodebook:
    """What a decoder trained by itself is given: the latents of codes, nearest or searched for."""

    trains_encoder: ClassVar = False

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer

    def announce(self, first_step: int) -> None:
        """Say nothing."""

    @torch.no_grad()
    def squeeze(self, encode: Encode, images: Tensor, codes: Tensor | None, step: int) -> Squeezed:
        quantizer = self._quantizer
        if codes is None:
            return Squeezed(quantizer.quantize(quantizer.squash(encode(images))).latents)
        encoded = quantizer.squash(encode(images[: -len(codes)]))
        return Squeezed(torch.cat([quantizer.quantize(encoded).latents, quantizer.lookup(codes)]))

    def learn(self, squeezed: Squeezed, step: int) -> None:
        """Leave the codebook as it is."""

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        """Keep nothing."""


class NormalLatents:
    """Latents drawn from the encoder's normal distribution, pulled towards the standard one.

    Kingma and Welling 2013 (arXiv:1312.6114): mean + std·noise, so that gradients reach both. What the
    distribution tells beyond the standard one is measured in nats (the KL divergence) and costs
    ``kl_weight`` a nat, over the number of pixel values: with a mean of squared errors beside it, the weight
    is that of a sum of nats beside a sum of errors, as in latent diffusion (Rombach et al. 2022,
    arXiv:2112.10752). ``free_nats`` are the free bits of Kingma et al. 2016 (arXiv:1606.04934): so many nats
    a latent value, as the mean of a channel over its grid and the batch (with several devices, each one's
    share of it), cost nothing and are not pulled away.
    """

    trains_encoder: ClassVar = True

    def __init__(self, kl_weight: float, free_nats: float, seed: int, rank: int = 0) -> None:
        self._kl_weight = kl_weight
        self._free_nats = free_nats
        self._seed = seed
        self._rank = rank

    def announce(self, first_step: int) -> None:
        """Say nothing."""

    def squeeze(self, encode: Encode, images: Tensor, codes: Tensor | None, step: int) -> Squeezed:
        mean, log_variance = split_moments(encode(images))
        generator = generator_for(self._seed, step, self._rank, -5, device=mean.device)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        latents = mean + (log_variance / 2).exp() * noise  # (B, d, h, w)
        nats = (mean.square() + log_variance.exp() - 1 - log_variance) / 2  # (B, d, h, w)
        of_channels = nats.mean((0, 2, 3))  # (d,)
        num_places, num_pixel_values = nats[0, 0].numel(), images[0].numel()
        paid = of_channels.clamp(min=self._free_nats).sum() * num_places / num_pixel_values
        return Squeezed(latents, self._kl_weight * paid, logged={"kl_nats": of_channels.mean().detach()})

    def learn(self, squeezed: Squeezed, step: int) -> None:
        """Leave everything to the optimiser."""

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        """Keep nothing."""
