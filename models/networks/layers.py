"""Layers of a diffusion transformer over grids of 1, 2 or 3 axes."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_INPUTS = 480  # of a product in bfloat16 on a CPU whose order of sums never depends on the rows beside
MAX_TOKENS = 240  # the most that are summed in the same order as a lone sample's, where there are more inputs
_TRIED_TOKENS = (320, 512, 1024, 2048)


class WideLinear(nn.Linear):
    """A linear layer over many inputs whose rows keep their bits, whatever is computed beside them.

    With AMX, oneDNN sums over 512 and more inputs in another order where there are more than some 250 tokens.
    So where bfloat16 is served on a CPU, many tokens are computed in the cheapest way that gives the bits of
    few, found once by trying: as they are, transposed (the weights times the tokens), or in parts of at most
    ``MAX_TOKENS``. Training, float32 and GPUs do as any linear layer does.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self._way: Callable[[Tensor, Tensor], Tensor] | None = None  # for many tokens

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # (B·N, inputs)
        if len(tokens) <= MAX_TOKENS or self.in_features <= MAX_INPUTS or not _is_served_on_cpu(x):
            return super().forward(x)
        if len(tokens) < _TRIED_TOKENS[0]:
            out = _in_parts(tokens, self.weight)
        else:
            if self._way is None:
                self._way = _cheapest_way(self.weight)
            out = self._way(tokens, self.weight)
        return out.view(*x.shape[:-1], -1)


def _cheapest_way(weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return how to multiply many tokens so that each has the bits that it has among few."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(n, weight.shape[1], generator=generator).to(weight) for n in _TRIED_TOKENS]
    wanted = [_in_parts(tokens, weight) for tokens in inputs]
    for way in (F.linear, _transposed):
        if all(torch.equal(way(t, weight), w) for t, w in zip(inputs, wanted, strict=True)):
            return way
    return _in_parts


def _transposed(tokens: Tensor, weight: Tensor) -> Tensor:
    return (weight @ tokens.T).T.contiguous()


def _in_parts(tokens: Tensor, weight: Tensor) -> Tensor:
    size = -(-len(tokens) // -(-len(tokens) // MAX_TOKENS))
    return torch.cat([F.linear(part, weight) for part in tokens.split(size)])


class VectorLinear(nn.Linear):
    """A linear layer over one vector a row (B, C), which never computes a lone row.

    A product with a lone vector is another kernel (gemv) in math libraries: on AVX-512 without bfloat16
    instructions its bits differ from those of two rows and more, which agree. So a lone vector is doubled;
    next to the tokens, of which there are dozens a row, that costs nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 1 or not _is_served_on_cpu(x):
            return super().forward(x)
        return super().forward(x.expand(2, -1))[:1]


class SwiGLU(nn.Module):
    """A gated feed-forward layer (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(hidden_size, 2 * inner_size, bias=False)
        self.out = WideLinear(inner_size, hidden_size)

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
            VectorLinear(2 * num_frequencies, hidden_size), nn.SiLU(), VectorLinear(hidden_size, hidden_size)
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


def _is_served_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is in a bfloat16 call on a CPU that nobody trains with."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.is_grad_enabled()
