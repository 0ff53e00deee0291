"""The adversarial part of VQGAN: a discriminator that is trained beside the tokenizer, from scratch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.precision import autocast

SMALLEST_PX = 8  # a side of pictures, which are halved three times
_MAX_WEIGHT = 1e4


class PatchDiscriminator(nn.Module):
    """Says of every patch how real it looks: (B, C, H, W) in [-1, 1] → logits (B, 1, h, w).

    PatchGAN (Isola et al. 2017, arXiv:1611.07004), with GroupNorm instead of BatchNorm, so that real and
    reconstructed images are not told apart by the batch they come in.
    """

    def __init__(self, image_channels: int, hidden_channels: int = 32, num_halvings: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(image_channels, hidden_channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        channels = hidden_channels
        for _ in range(num_halvings - 1):
            layers += [
                nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
                nn.GroupNorm(8, 2 * channels),
                nn.LeakyReLU(0.2),
            ]
            channels *= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Adversary:
    """A discriminator and its optimiser (VQGAN, Esser et al. 2021, arXiv:2012.09841): hinge loss, Adam."""

    def __init__(self, discriminator: nn.Module, learning_rate: float) -> None:
        self.discriminator = discriminator
        self._optimizer = torch.optim.Adam(discriminator.parameters(), lr=learning_rate, betas=(0.5, 0.9))

    def loss_for(self, reconstructed: Tensor, reconstruction_loss: Tensor, last_layer: Tensor) -> Tensor:
        """Return the tokenizer's adversarial loss, weighted to pull as hard as ``reconstruction_loss``.

        The weight is the ratio of both losses' gradients at ``last_layer``, the decoder's last weights.
        """
        self.discriminator.requires_grad_(False)
        with autocast(reconstructed.device):
            loss = -self.discriminator(reconstructed).float().mean()
        self.discriminator.requires_grad_(True)
        pulls = [
            torch.autograd.grad(each, last_layer, retain_graph=True)[0]
            for each in (reconstruction_loss, loss)
        ]
        weight = (pulls[0].norm() / (pulls[1].norm() + 1e-4)).clamp(0, _MAX_WEIGHT)
        return weight.detach() * loss

    def learn(self, images: Tensor, reconstructed: Tensor) -> Tensor:
        """Take one step of the discriminator and return its loss, below 2 once it tells some apart."""
        with autocast(images.device):
            real, made = self.discriminator(images), self.discriminator(reconstructed.detach())
        loss = F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"network": self.discriminator.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.discriminator.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
