"""The diffusion transformer that its authors published, and those that others made of it."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.conditioning import Conditions
from models.networks.layers import SampleLinear, VectorLinear, patchify, unpatchify
from models.options import CHECKED, ConfigError

NUM_FREQUENCIES = 128  # of the embedding of time
NORM_EPS = 1e-6
_MAX_PERIOD = 10_000.0
_UpTo1024 = Annotated[int, Field(ge=1, le=2**10)]


@dataclass(frozen=True, config=CHECKED)
class ClassDiTConfig:
    """The shape of the network, and what differs from one publisher to the next.

    out_channels: the latents' own, or twice as many where the variance is learned. num_labels: without the
    one for "any". frequency_shift: 1 where the exponents of the time embedding are divided by one less than
    their number, as diffusers does. second_norm_eps: of the norm before the feed-forward layer, which
    diffusers has at 1e-5. norm, has_qk_norm, is_gated, has_rope, has_shift: LightningDiT's (Yao et al. 2025,
    arXiv:2501.01423) RMSNorm, normalised queries and keys, SwiGLU, rotation of queries and keys, and norms
    that are scaled alone.
    """

    latent_channels: _UpTo1024 = 4
    grid: tuple[_UpTo1024, _UpTo1024] = (32, 32)
    patch_size: _UpTo1024 = 2
    hidden_size: Annotated[int, Field(ge=1, le=2**14)] = 384
    depth: Annotated[int, Field(ge=1, le=2**8)] = 12
    num_heads: _UpTo1024 = 6
    mlp_size: Annotated[int, Field(ge=1, le=2**16)] = 1536
    out_channels: Annotated[int, Field(ge=1, le=2**11)] = 8
    num_labels: Annotated[int, Field(ge=1, le=2**20)] = 1000
    frequency_shift: Literal[0, 1] = 0
    second_norm_eps: Annotated[float, Field(gt=0, lt=1)] = NORM_EPS
    norm: Literal["layer", "rms"] = "layer"
    has_qk_norm: bool = False
    is_gated: bool = False
    has_rope: bool = False
    has_shift: bool = True

    def __post_init__(self) -> None:
        if self.grid[0] != self.grid[1] or self.grid[0] % self.patch_size:
            raise ConfigError(
                f"grid must be square and a multiple of patch_size {self.patch_size}, got {self.grid}"
            )
        if self.hidden_size % (4 * self.num_heads):
            raise ConfigError(
                f"hidden_size must give each of num_heads {self.num_heads} heads a multiple of 4 channels,"
                f" got {self.hidden_size}"
            )
        if self.out_channels not in (self.latent_channels, 2 * self.latent_channels):
            raise ConfigError(
                f"out_channels must be latent_channels {self.latent_channels} or twice as many,"
                f" got {self.out_channels}"
            )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def learns_variance(self) -> bool:
        return self.out_channels == 2 * self.latent_channels

    @property
    def num_vectors(self) -> int:
        """How many vectors modulate a block: scale and gate, or shift, scale and gate, twice."""
        return 6 if self.has_shift else 4


class RMSNorm(nn.Module):
    """A root-mean-square norm that computes in float32 and has a weight (C,) (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class ModulatedNorm(nn.Module):
    """A norm over the channels, scaled and shifted by the condition."""

    def __init__(self, config: ClassDiTConfig, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.norm = RMSNorm(config.hidden_size) if config.norm == "rms" else None

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        """x: (B, N, hidden). scale, of which 1 is to be added, and shift: (B, hidden)."""
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps) if self.norm is None else self.norm(x)
        scale = 1 + scale[:, None]
        return normed * scale if shift is None else torch.addcmul(shift[:, None], normed, scale)


class Attention(nn.Module):
    """Self-attention; queries and keys may be normalised and turned."""

    def __init__(self, config: ClassDiTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = SampleLinear(config.hidden_size, 3 * config.hidden_size)
        self.query_norm = _head_norm(config)
        self.key_norm = _head_norm(config)
        self.out = SampleLinear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, num_tokens, hidden = x.shape
        qkv = self.qkv(x).view(batch, num_tokens, 3, self.num_heads, -1)  # (B, N, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # 3 × (B, heads, N, d)
        q, k = self.query_norm(q), self.key_norm(k)
        if turns is not None:
            q, k = rotate_pairs(q, *turns), rotate_pairs(k, *turns)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, d)
        return self.out(mixed.transpose(1, 2).reshape(batch, num_tokens, hidden))  # (B, N, hidden)


class FeedForward(nn.Module):
    """Two layers with GELU (its tanh form), or SwiGLU."""

    def __init__(self, config: ClassDiTConfig) -> None:
        super().__init__()
        self.is_gated = config.is_gated
        inner = (1 + config.is_gated) * config.mlp_size
        self.widen = SampleLinear(config.hidden_size, inner, has_gelu=not config.is_gated)
        self.narrow = SampleLinear(config.mlp_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)  # (B, N, inner) or (B, N, 2·inner)
        if not self.is_gated:
            return self.narrow(x)
        gate, value = x.chunk(2, dim=-1)
        return self.narrow(F.silu(gate) * value)


class Block(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the condition (adaLN-Zero)."""

    def __init__(self, config: ClassDiTConfig) -> None:
        super().__init__()
        self.num_vectors = config.num_vectors
        self.modulate = VectorLinear(config.hidden_size, config.num_vectors * config.hidden_size)
        self.first_norm = ModulatedNorm(config)
        self.attention = Attention(config)
        self.second_norm = ModulatedNorm(config, config.second_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, condition: Tensor, turns: tuple[Tensor, Tensor] | None) -> Tensor:
        """x: (B, N, hidden). condition: (B, hidden), activated."""
        vectors = self.modulate(condition).chunk(self.num_vectors, dim=-1)  # 6 or 4 × (B, hidden)
        half = self.num_vectors // 2
        *shift1, scale1, gate1 = vectors[:half]
        *shift2, scale2, gate2 = vectors[half:]
        mixed = self.attention(self.first_norm(x, scale1, _only(shift1)), turns)
        x = torch.addcmul(x, gate1[:, None], mixed)
        return torch.addcmul(x, gate2[:, None], self.feed_forward(self.second_norm(x, scale2, _only(shift2))))


class ClassDiT(nn.Module):
    """A diffusion transformer under a class label (Peebles and Xie 2023, arXiv:2212.09748).

    It computes what its publishers' networks do; what it is asked for is theirs, too: the time as they count
    it, and an output whose meaning (noise, velocity, variance) the prior knows.
    """

    positions: Tensor
    cosines: Tensor | None
    sines: Tensor | None

    def __init__(self, config: ClassDiTConfig) -> None:
        super().__init__()
        self.config = config
        size, patch = config.hidden_size, config.patch_size**2
        self.embed_patches = SampleLinear(config.latent_channels * patch, size)
        self.embed_time = nn.Sequential(
            VectorLinear(2 * NUM_FREQUENCIES, size), nn.SiLU(), VectorLinear(size, size)
        )
        self.embed_labels = nn.Embedding(config.num_labels + 1, size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_modulate = VectorLinear(size, 2 * size)
        self.final_norm = ModulatedNorm(config)
        self.to_output = SampleLinear(size, config.out_channels * patch)
        side = config.grid[0] // config.patch_size
        self.register_buffer("positions", sine_positions(side, size), persistent=False)  # (N, hidden)
        turns = pair_turns(side, config.head_size) if config.has_rope else (None, None)
        self.register_buffer("cosines", turns[0], persistent=False)  # (N, d)
        self.register_buffer("sines", turns[1], persistent=False)  # (N, d)

    def null_conditions(self, num_rows: int = 1) -> Conditions:
        """Return rows that ask for any label."""
        labels = torch.full((num_rows, 1), self.config.num_labels, device=self.positions.device)
        return Conditions(labels)

    def forward(self, latents: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Return the output (B, out_channels, *grid) at latents (B, C, *grid).

        times: (B,) float32, as the publisher counts them. Of the labels, ``num_labels`` stands for any.
        """
        config = self.config
        dtype = self.embed_patches.weight.dtype
        x = self.embed_patches(patchify(latents.to(dtype), config.patch_size))  # (B, N, hidden)
        x = x + self.positions
        waves = time_waves(times, config.frequency_shift).to(dtype)  # (B, 2·frequencies)
        condition = F.silu(self.embed_time(waves) + self.embed_labels(conditions.labels[:, 0]))  # (B, hidden)
        turns = None if self.cosines is None or self.sines is None else (self.cosines, self.sines)
        for block in self.blocks:
            x = block(x, condition, turns)  # (B, N, hidden)
        shift, scale = self.final_modulate(condition).chunk(2, dim=-1)  # 2 × (B, hidden)
        x = self.to_output(self.final_norm(x, scale, shift))  # (B, N, out·p²)
        return unpatchify(x, config.patch_size, config.out_channels, config.grid)  # (B, out, *grid)


def time_waves(times: Tensor, frequency_shift: int) -> Tensor:
    """Return cosines and sines (B, 2·frequencies) float32 of times (B,)."""
    steps = torch.arange(NUM_FREQUENCIES, dtype=torch.float32, device=times.device)
    frequencies = torch.exp(-math.log(_MAX_PERIOD) * steps / (NUM_FREQUENCIES - frequency_shift))
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sine_positions(side: int, size: int) -> Tensor:
    """Return the fixed embedding (side², size) float32 of a square grid's places, rows first.

    The first half of the channels tells the column, the second the row, each by sines and then cosines (He
    et al. 2022, arXiv:2111.06377). In float64 first, as its authors have it.
    """
    frequencies = _MAX_PERIOD ** -(torch.arange(size // 4, dtype=torch.float64) / (size / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # (side, size/4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (side, size/2)
    columns = waves[None].expand(side, side, -1)
    rows = waves[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1).float()


def pair_turns(side: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (side², head_size) of ``rotate_pairs``, rows of the grid first.

    The first half of a head's channels is turned by the row, the second by the column (Fang et al. 2023,
    arXiv:2303.11331).
    """
    frequencies = 1 / _MAX_PERIOD ** (torch.arange(0, head_size // 2, 2).float() / (head_size // 2))
    angles = (torch.arange(side)[:, None] * frequencies).repeat_interleave(2, dim=-1)  # (side, d/2)
    rows, columns = angles[:, None].expand(side, side, -1), angles[None].expand(side, side, -1)
    both = torch.cat([rows, columns], dim=-1).flatten(0, 1)  # (side², d)
    return both.cos(), both.sin()


def rotate_pairs(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels (2i, 2i + 1) of x (B, heads, N, d)."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cosines + torch.stack([-second, first], dim=-1).flatten(-2) * sines


def _head_norm(config: ClassDiTConfig) -> nn.Module:
    if not config.has_qk_norm:
        return nn.Identity()
    return RMSNorm(config.head_size) if config.norm == "rms" else nn.LayerNorm(config.head_size)


def _only(vectors: list[Tensor]) -> Tensor | None:
    return vectors[0] if vectors else None
