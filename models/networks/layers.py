"""Layers of a diffusion transformer over grids of 1, 2 or 3 axes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """A gated feed-forward layer (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(hidden_size, 2 * inner_size, bias=False)
        self.out = nn.Linear(inner_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class HeadNorm(nn.RMSNorm):
    """RMSNorm whose weight follows the input's dtype, as autocast leaves the two apart."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Self-attention with normalised queries and keys (Dehghani et al. 2023, arXiv:2302.05442) and RoPE.

    With a context, its tokens give further keys and values, not turned, to the same softmax (GLIDE, Nichol
    et al. 2021, arXiv:2112.10741): cheaper than cross-attention, which has queries and an output of its own,
    and than running a prompt's tokens through every layer.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, has_context: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.query_norm = HeadNorm(hidden_size // num_heads, eps=1e-6)
        self.key_norm = HeadNorm(hidden_size // num_heads, eps=1e-6)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.context_kv = nn.Linear(hidden_size, 2 * hidden_size, bias=False) if has_context else None

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, N, hidden). context: (B, T, hidden), where the layer was made for one."""
        batch, num_tokens, hidden = x.shape
        qkv = self.qkv(x).view(batch, num_tokens, 3, self.num_heads, -1)  # (B, N, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 × (B, heads, N, d)
        q = rotate(self.query_norm(q), cosines, sines)
        k = rotate(self.key_norm(k), cosines, sines)
        if self.context_kv is not None and context is not None:
            kv = self.context_kv(context).view(batch, -1, 2, self.num_heads, hidden // self.num_heads)
            context_k, context_v = kv.permute(2, 0, 3, 1, 4)  # 2 × (B, heads, T, d)
            k = torch.cat([k, self.key_norm(context_k)], dim=2)  # (B, heads, N + T, d)
            v = torch.cat([v, context_v], dim=2)  # (B, heads, N + T, d)
        mixed = attend(q, k, v)  # (B, heads, N, d)
        return self.out(mixed.transpose(1, 2).reshape(batch, num_tokens, hidden))  # (B, N, hidden)


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000·t and a small network (B,) → (B, hidden); t: 0 is noise, 1 is data."""

    def __init__(self, hidden_size: int, num_frequencies: int = 128) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.net = nn.Sequential(
            nn.Linear(2 * num_frequencies, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Tensor) -> Tensor:
        exponents = torch.arange(self.num_frequencies, device=t.device) / self.num_frequencies
        angles = 1000 * t.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, 2·frequencies)
        return self.net(waves.to(next(self.net.parameters()).dtype))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention's output (B, heads, N, d) of q, k, v (B, heads, N, d).

    Training on a CPU takes plain matrix products: on grids as short as these the fused kernel's
    backward pass makes a step a fifth slower.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, heads, N, N)
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn pairs of channels of x (B, heads, N, d) by the angles of ``axial_rope`` (N, d/2)."""
    first, second = x.chunk(2, dim=-1)
    cosines, sines = cosines.to(x.dtype), sines.to(x.dtype)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)


def axial_rope(grid: tuple[int, ...], head_size: int, base: float = 100.0) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (N, head_size/2): every axis turns its own share of the channel pairs.

    Su et al. 2021 (arXiv:2104.09864) along each axis (Heo et al. 2024, arXiv:2403.13298). A short base,
    as grids are short. Pairs left over when the axes don't divide them are not turned.
    """
    pairs_per_axis = head_size // 2 // len(grid)
    frequencies = base ** (-torch.arange(pairs_per_axis) / pairs_per_axis)
    positions = torch.cartesian_prod(*(torch.arange(side) for side in grid)).view(-1, len(grid)).float()
    angles = (positions[:, :, None] * frequencies).flatten(1)  # (N, axes·pairs_per_axis)
    angles = F.pad(angles, (0, head_size // 2 - angles.shape[1]))  # (N, head_size/2)
    return angles.cos(), angles.sin()


def patchify(latents: Tensor, patch_size: int) -> Tensor:
    """Return tokens (B, N, C·patch_size^axes) of ``latents`` (B, C, *grid), rows first."""
    channels, *grid = latents.shape[1:]
    axes = len(grid)
    split = [size for side in grid for size in (side // patch_size, patch_size)]
    x = latents.reshape(-1, channels, *split)  # (B, C, n1, p, n2, p, …)
    outer, inner = [2 + 2 * i for i in range(axes)], [3 + 2 * i for i in range(axes)]
    return x.permute(0, *outer, 1, *inner).flatten(1 + axes).flatten(1, axes)  # (B, N, C·p^axes)


def unpatchify(tokens: Tensor, patch_size: int, channels: int, grid: tuple[int, ...]) -> Tensor:
    """Undo ``patchify``: tokens (B, N, C·patch_size^axes) → latents (B, C, *grid)."""
    axes = len(grid)
    counts = [side // patch_size for side in grid]
    x = tokens.reshape(-1, *counts, channels, *[patch_size] * axes)  # (B, n1, n2, …, C, p, p, …)
    pairs = [axis for i in range(axes) for axis in (1 + i, 2 + axes + i)]
    return x.permute(0, 1 + axes, *pairs).reshape(-1, channels, *grid)  # (B, C, *grid)
