"""Layers of a diffusion transformer over grids of 1, 2 or 3 axes."""

import functools
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_INPUTS = 480  # of a product in bfloat16 on a CPU whose order of sums never depends on the rows beside
MAX_TOKENS = 240  # the most that are summed in the same order as a lone sample's, where there are more inputs
VECTORS = 16  # of one product of ``VectorLinear`` over many inputs
_TRIED_TOKENS = (320, 512, 1024, 2048)


class Linear(nn.Linear):
    """A linear layer whose weights are laid out once for the processor, where bfloat16 is served on a CPU.

    oneDNN otherwise lays them out anew at every call, which is a third of a lone sample's products. The bits
    are the same. Training, float32 and GPUs do as any linear layer does.

    has_gelu: whether GELU follows, in its tanh form. In one with the product, it takes a third of the time
    that it takes alone.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, has_gelu: bool = False
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.has_gelu = has_gelu
        self._laid_out: tuple[int, Tensor] | None = (
            None  # the version of the weights, and what was made of it
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_laid_out": None}  # which can't be copied

    def forward(self, x: Tensor) -> Tensor:
        is_served = x.dtype == self.weight.dtype and _is_served_on_cpu(x)
        return self._multiply(x) if is_served else self._activate(super().forward(x))

    def _activate(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh") if self.has_gelu else x

    def _multiply(self, x: Tensor) -> Tensor:
        """Do as a linear layer does with x (…, inputs), which is bfloat16 on a CPU."""
        if not _can_lay_out():
            return self._activate(F.linear(x, self.weight, self.bias))
        version = version_of(self.weight)
        if self._laid_out is None or self._laid_out[0] != version:
            self._laid_out = version, torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        name, algorithm = ("gelu", "tanh") if self.has_gelu else ("none", "")
        return cast(
            Tensor,
            torch.ops.mkldnn._linear_pointwise(x, self._laid_out[1], self.bias, name, [], algorithm),
        )


def version_of(tensor: Tensor) -> int:
    """Return a number that every change in place raises; of those made for inference, which count none, 0."""
    return 0 if tensor.is_inference() else tensor._version


@functools.cache
def _can_lay_out() -> bool:
    """Whether this torch has the operators that its own compiler uses for linear layers of frozen weights."""
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    has_all = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, each) for each in names)
    return has_all and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class WideLinear(Linear):
    """A linear layer over many inputs whose rows keep their bits, whatever is computed beside them.

    With AMX, oneDNN sums over 512 and more inputs in another order where there are more than some 250 tokens.
    So where bfloat16 is served on a CPU, many tokens are computed in parts of at most ``MAX_TOKENS``, unless
    they are found to have the bits of few as they are.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self._agrees: bool | None = None  # whether many tokens have the bits of few as they are

    def _multiply(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # (B·N, inputs)
        if len(tokens) <= MAX_TOKENS or self.in_features <= MAX_INPUTS:
            return super()._multiply(x)
        if self._agrees is None:
            self._agrees = self._do_many_agree()
        if self._agrees and len(tokens) >= _TRIED_TOKENS[0]:
            return super()._multiply(x)
        return self._in_parts(tokens).view(*x.shape[:-1], -1)

    def _do_many_agree(self) -> bool:
        """Find out whether many tokens have the bits that they have among few."""
        generator = torch.Generator().manual_seed(0)
        inputs = [
            torch.randn(n, self.in_features, generator=generator).to(self.weight) for n in _TRIED_TOKENS
        ]
        return all(torch.equal(super(WideLinear, self)._multiply(t), self._in_parts(t)) for t in inputs)

    def _in_parts(self, tokens: Tensor) -> Tensor:
        size = -(-len(tokens) // -(-len(tokens) // MAX_TOKENS))
        return torch.cat([super(WideLinear, self)._multiply(part) for part in tokens.split(size)])


class SampleLinear(Linear):
    """A linear layer over many tokens a sample (B, N, C) whose rows keep their bits, by construction.

    Over more than ``MAX_INPUTS``, each sample has a product of its own, so that every product has one shape:
    nothing is left to how a library chooses among kernels. With hundreds of tokens that costs little.
    """

    def _multiply(self, x: Tensor) -> Tensor:
        if self.in_features <= MAX_INPUTS or len(x) == 1:
            return super()._multiply(x)
        return torch.cat([super(SampleLinear, self)._multiply(sample) for sample in x.split(1)])


class VectorLinear(Linear):
    """A linear layer over one vector a row (B, C), which never computes a lone row.

    A product with a lone vector is another kernel (gemv) in math libraries: on AVX-512 without bfloat16
    instructions its bits differ from those of two rows and more, which agree. So a lone vector is doubled;
    next to the tokens, of which there are dozens a row, that costs nothing.

    Over more than ``MAX_INPUTS``, where the order of sums depends on the number of rows, every product has
    ``VECTORS`` rows: as many as one reading of the weights serves.
    """

    def _multiply(self, x: Tensor) -> Tensor:
        if self.in_features <= MAX_INPUTS:
            return super()._multiply(x) if len(x) != 1 else super()._multiply(torch.cat([x, x]))[:1]
        filled = F.pad(x, (0, 0, 0, -len(x) % VECTORS))
        parts = [super(VectorLinear, self)._multiply(part) for part in filled.split(VECTORS)]
        return torch.cat(parts)[: len(x)]


class SwiGLU(nn.Module):
    """A gated feed-forward layer (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.gate_and_value = Linear(hidden_size, 2 * inner_size, bias=False)
        self.out = WideLinear(inner_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class HeadNorm(nn.Module):
    """The weight of a root-mean-square norm over the channels of a head (d,)."""

    def __init__(self, head_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_size))

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, d)."""
        return unit(x) * (self.weight * self.weight.numel() ** 0.5).to(x.dtype)


class Attention(nn.Module):
    """Self-attention with normalised queries and keys (Dehghani et al. 2023, arXiv:2302.05442) and RoPE.

    With a context, its tokens give further keys and values, not turned, to the same softmax (GLIDE, Nichol
    et al. 2021, arXiv:2112.10741): cheaper than cross-attention, which has queries and an output of its own,
    and than running a prompt's tokens through every layer.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, has_context: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(hidden_size, 3 * hidden_size, bias=False)
        self.query_norm = HeadNorm(hidden_size // num_heads)
        self.key_norm = HeadNorm(hidden_size // num_heads)
        self.out = Linear(hidden_size, hidden_size, bias=False)
        self.context_kv = Linear(hidden_size, 2 * hidden_size, bias=False) if has_context else None

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], context: Tensor | None = None) -> Tensor:
        """x: (B, N, hidden). turns: of queries and keys. context: (B, T, hidden), where it was made for one.

        ``turns`` are cosines and sines (N, 2, heads, d) of ``rotate``, which have the weights of the norms in
        them, so that norms and rotation are one multiplication and one addition.
        """
        batch, num_tokens, hidden = x.shape
        qkv = self.qkv(x).view(batch, num_tokens, 3, self.num_heads, -1)  # (B, N, 3, heads, d)
        turned = rotate(unit(qkv[:, :, :2]), *turns)  # (B, N, 2, heads, d)
        q, k = turned.transpose(1, 3).unbind(2)  # 2 × (B, heads, N, d)
        v = qkv[:, :, 2].transpose(1, 2)  # (B, heads, N, d)
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


def unit(x: Tensor) -> Tensor:
    """Return the vectors of x (…, C) at length 1: a root-mean-square norm but for the factor √C.

    In two passes where torch's RMSNorm, which is not fused on a CPU, takes six; the factor goes into what
    the norm is multiplied by next.
    """
    return F.normalize(x, dim=-1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn pairs of channels (i, i + d/2) of x (B, N, …, d) by angles whose ``turns`` (N, …, d) are given."""
    first, second = x.chunk(2, dim=-1)
    return (x * cosines).addcmul_(torch.cat([second, first], dim=-1), sines)


def turns(cosines: Tensor, sines: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``rotate`` takes to scale by ``weights`` (…, d) and turn by the angles of ``axial_rope``.

    cosines, sines: (N, d/2). Two tensors (N, …, d): x·w turned is x times the first and x with its halves
    exchanged times the second.
    """
    axes = [1] * (weights.ndim - 1)
    cosines = torch.cat([cosines, cosines], dim=-1).view(len(cosines), *axes, -1)  # (N, …, d)
    sines = torch.cat([-sines, sines], dim=-1).view(len(sines), *axes, -1)  # (N, …, d)
    first, second = weights.chunk(2, dim=-1)
    return weights * cosines, torch.cat([second, first], dim=-1) * sines


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
