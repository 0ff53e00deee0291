"""Quantisers: continuous latents → the nearest entry of a codebook, and back from codes."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCK = 2**24  # distances computed at once, so that a large codebook does not fill the memory


@dataclass(frozen=True)
class Quantized:
    """What quantising gives.

    ``latents`` (B, C, *grid) are the codebook's entries; in training, gradients pass straight through
    them to the input. ``codes`` (B, *grid) int64. ``loss`` is a scalar to add to the training loss.
    """

    latents: Tensor
    codes: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """Quantise to the nearest of ``codebook_size`` vectors, learnt as moving averages.

    van den Oord et al. 2017 (arXiv:1711.00937), with the moving averages of its appendix A. Besides:
    the codebook starts from k-means over the first latents seen, and a code used less than
    ``revival_fraction`` of the mean is replaced by a latent of the batch (Dhariwal et al. 2020,
    arXiv:2005.00341, section B.1). Unlike there, latents far from their code are drawn more often, as
    k-means++ does: where half of all pictures is white, most latents drawn evenly would be white again.
    Distances are taken in float32 whatever autocast says.
    """

    codebook: Tensor
    num_assigned: Tensor
    sum_assigned: Tensor
    is_initialised: Tensor

    def __init__(
        self,
        codebook_size: int,
        latent_channels: int,
        *,
        decay: float = 0.99,
        commitment: float = 0.25,
        revival_fraction: float = 0.1,
        smoothing: float = 1e-5,
    ) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.decay = decay
        self.commitment = commitment
        self.revival_fraction = revival_fraction
        self.smoothing = smoothing
        self.register_buffer("codebook", torch.zeros(codebook_size, latent_channels))
        # Kept with the training state, not with the shipped weights.
        self.register_buffer("num_assigned", torch.ones(codebook_size))
        self.register_buffer("sum_assigned", torch.zeros(codebook_size, latent_channels))
        self.register_buffer("is_initialised", torch.tensor(False))

    def squash(self, latents: Tensor) -> Tensor:
        """Return the encoder's output as it is: any vector may be quantised."""
        return latents.float()

    def quantize(self, latents: Tensor) -> Quantized:
        """Return the nearest entries and their codes for ``latents`` (B, C, *grid)."""
        with torch.autocast(latents.device.type, enabled=False):
            vectors = latents.detach().movedim(1, -1).float()  # (B, *grid, C)
            codes = self._nearest(vectors.reshape(-1, vectors.shape[-1])).view(vectors.shape[:-1])
            entries = self.lookup(codes).to(latents.dtype)
            if not self.training:
                return Quantized(entries, codes, latents.new_zeros(()))
            loss = self.commitment * F.mse_loss(latents, entries)
            return Quantized(latents + (entries - latents).detach(), codes, loss)

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the entries (B, C, *grid) float32 of ``codes`` (B, *grid)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    def _nearest(self, vectors: Tensor) -> Tensor:
        squares = self.codebook.square().sum(1)
        blocks = vectors.split(max(1, _BLOCK // self.codebook_size))
        return torch.cat([torch.addmm(squares, b, self.codebook.T, alpha=-2).argmin(1) for b in blocks])

    @torch.no_grad()
    def initialise(self, latents: Tensor, generator: torch.Generator, num_iterations: int = 10) -> None:
        """Set the codebook by k-means over ``latents`` (B, C, *grid); under DDP the first device's."""
        vectors = latents.movedim(1, -1).float().flatten(0, -2)
        self.codebook.copy_(_draw_rows(vectors, self.codebook_size, generator))
        for _ in range(num_iterations):
            codes = self._nearest(vectors)
            counts, sums = self._count(vectors, codes)
            means = sums / counts.clamp(min=1)[:, None]
            empty = counts == 0
            distances = (vectors - self.codebook[codes]).square().sum(1)
            means[empty] = _draw_rows(vectors, int(empty.sum()), generator, distances)
            self.codebook.copy_(means)
        if dist.is_initialized():
            dist.broadcast(self.codebook, src=0)
        self.start_averages(len(vectors))

    @torch.no_grad()
    def start_averages(self, num_vectors: int) -> None:
        """Begin the moving averages at the codebook, as if ``num_vectors`` a step had used it evenly."""
        self.num_assigned.fill_(num_vectors / self.codebook_size)
        self.sum_assigned.copy_(self.codebook * self.num_assigned[:, None])
        self.is_initialised.fill_(True)

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """Move the codebook towards ``latents`` (B, C, *grid) that took ``codes``; revive dead codes.

        Call it once a training step, outside the compiled part. Under DDP the sums of all devices are
        added, and every device must pass a generator in the same state.
        """
        vectors = latents.movedim(1, -1).float().flatten(0, -2)
        counts, sums = self._count(vectors, codes.flatten())
        distances = (vectors - self.codebook[codes.flatten()]).square().sum(1)
        if dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.num_assigned.lerp_(counts, 1 - self.decay)
        self.sum_assigned.lerp_(sums, 1 - self.decay)
        total = self.num_assigned.sum()
        smoothed = (
            (self.num_assigned + self.smoothing) / (total + self.codebook_size * self.smoothing) * total
        )
        self.codebook.copy_(self.sum_assigned / smoothed[:, None])
        dead = self.num_assigned < self.revival_fraction * total / self.codebook_size
        if num_dead := int(dead.sum()):
            drawn = _draw_rows(vectors, num_dead, generator, distances)
            if dist.is_initialized():
                dist.broadcast(drawn, src=0)
            self.codebook[dead] = drawn
            self.num_assigned[dead] = total / self.codebook_size
            self.sum_assigned[dead] = drawn * (total / self.codebook_size)

    def _count(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.zeros_like(self.num_assigned).index_add_(0, codes, torch.ones_like(vectors[:, 0]))
        sums = torch.zeros_like(self.sum_assigned).index_add_(0, codes, vectors)
        return counts, sums


class FSQ(nn.Module):
    """Quantise every channel to a few levels; the codebook is their product and nothing is learnt.

    Mentzer et al. 2023 (arXiv:2309.15505), with its bounding kept apart from its rounding, so that a
    prior models bounded latents and snapping them twice changes nothing. Codes count with the first
    channel as the lowest digit; entries lie in [-1, 1].
    """

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.codebook_size = math.prod(levels)
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def squash(self, latents: Tensor) -> Tensor:
        """Squash the encoder's output (B, C, *grid) into the codebook's range."""
        values = latents.movedim(1, -1).float()  # (B, *grid, C)
        half = (self.levels - 1) / 2 * (1 + 1e-3)
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = (values + (offset / half).atanh()).tanh() * half - offset
        return keep_infinite(bounded / (self.levels // 2), values).movedim(-1, 1)

    def quantize(self, latents: Tensor) -> Quantized:
        """Return the rounded entries and their codes for bounded ``latents`` (B, C, *grid)."""
        half_width = self.levels // 2
        values = latents.movedim(1, -1).float() * half_width  # (B, *grid, C)
        digits = (values.detach().round().long() + half_width).clamp(min=0).minimum(self.levels - 1)
        codes = (digits * self.strides).sum(-1)
        entries = self.lookup(codes)
        if self.training:
            entries = latents + (entries - latents).detach()
        return Quantized(entries, codes, latents.new_zeros(()))

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the entries (B, C, *grid) float32 of ``codes`` (B, *grid)."""
        digits = codes[..., None] // self.strides % self.levels
        half_width = self.levels // 2
        return ((digits - half_width) / half_width).movedim(-1, 1)


Quantizer = VectorQuantizer | FSQ


def keep_infinite(bounded: Tensor, values: Tensor) -> Tensor:
    """Return ``bounded``, but NaN where ``values`` were infinite: bounds must not hide that."""
    return bounded.masked_fill(values.isinf(), math.nan)


def _draw_rows(
    vectors: Tensor, num_rows: int, generator: torch.Generator, weights: Tensor | None = None
) -> Tensor:
    """Return ``num_rows`` random rows of ``vectors`` (N, C), with a little noise against ties.

    weights: (N,), how likely each row is; all alike without.
    """
    if weights is None or not weights.any():
        rows = torch.randint(len(vectors), (num_rows,), generator=generator)
    else:
        shares = weights.double().cumsum(0).cpu()
        points = torch.rand(num_rows, generator=generator, dtype=torch.float64) * shares[-1]
        rows = torch.searchsorted(shares, points).clamp(max=len(vectors) - 1)
    noise = torch.randn((num_rows, vectors.shape[1]), generator=generator).to(vectors)
    return vectors[rows.to(vectors.device)] + 1e-3 * vectors.std() * noise
