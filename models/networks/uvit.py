"""aMUSEd's network: logits of all codes of a grid at once, given those that are known and a prompt."""

import math
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.conditioning import Conditions
from models.networks.class_dit import RMSNorm
from models.networks.layers import SampleLinear, VectorLinear, patchify, unpatchify
from models.options import CHECKED, ConfigError, Count

_CONV_WIDENING = 4
_BLOCK_NORM_EPS = 1e-6  # of the attention beside convolutions, whatever the configuration's is
_RESPONSE_EPS = 1e-6
_MAX_PERIOD = 10_000
_UpTo2048 = Annotated[int, Field(ge=1, le=2**11)]
_Size = Annotated[int, Field(ge=1, le=2**14)]


@dataclass(frozen=True, config=CHECKED)
class UVitConfig:
    """The shape of the network.

    latent_channels: of its tokenizer's latents. code_channels: of a code's vector; block_channels: of the
    convolutions and the attention beside them, ``num_blocks`` before and after the transformer. is_halved:
    whether the transformer sees the grid at half its height and width. micro_conditions: numbers that
    every picture is asked for with, each embedded with ``micro_channels``: width and height in pixels, where
    it was cropped, and how beautiful it is on the scale of LAION's aesthetic score (Podell et al. 2023,
    arXiv:2307.01952).
    """

    latent_channels: _UpTo2048 = 64
    grid: tuple[_UpTo2048, _UpTo2048] = (16, 16)
    codebook_size: Annotated[int, Field(ge=2, le=2**20)] = 8192
    code_channels: _Size = 768
    block_channels: _Size = 768
    num_blocks: Count = 3
    block_num_heads: Count = 12
    is_halved: bool = False
    hidden_size: _Size = 1024
    depth: Annotated[int, Field(ge=1, le=2**8)] = 22
    num_heads: Count = 16
    mlp_size: Annotated[int, Field(ge=1, le=2**16)] = 2816
    text_tokens: _UpTo2048 = 77
    text_channels: _Size = 768
    pooled_channels: _Size = 768
    micro_conditions: tuple[float, ...] = (256.0, 256.0, 0.0, 0.0, 6.0)
    micro_channels: _UpTo2048 = 256
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6

    def __post_init__(self) -> None:
        for size, heads in (("hidden_size", "num_heads"), ("block_channels", "block_num_heads")):
            if getattr(self, size) % getattr(self, heads):
                raise ConfigError(
                    f"{size} must be a multiple of {heads} {getattr(self, heads)}, got {getattr(self, size)}"
                )
        if self.micro_channels % 2:
            raise ConfigError(f"micro_channels must be even, got {self.micro_channels}")
        if self.is_halved and any(side % 2 for side in self.grid):
            raise ConfigError(f"both sides of grid must be even where it is halved, got {self.grid}")

    @property
    def num_codes(self) -> int:
        return math.prod(self.grid)

    @property
    def label_sizes(self) -> tuple[int, ...]:
        return ()

    @property
    def takes_prompt(self) -> bool:
        return True


class Attention(nn.Module):
    """Attention of tokens x (B, N, size) to a context (B, T, context_size), or to each other."""

    def __init__(self, size: int, num_heads: int, context_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = SampleLinear(size, size, bias=False)
        self.key = SampleLinear(context_size, size, bias=False)
        self.value = SampleLinear(context_size, size, bias=False)
        self.out = SampleLinear(size, size, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        projected = (self.query(x), self.key(context), self.value(context))
        q, k, v = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in projected)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, d)
        return cast(Tensor, self.out(mixed.transpose(1, 2).flatten(2)))  # (B, N, size)


class ConvBlock(nn.Module):
    """A block of ConvNeXt V2 (Woo et al. 2023, arXiv:2301.00808), scaled and shifted by the condition."""

    def __init__(self, config: UVitConfig) -> None:
        super().__init__()
        size = config.block_channels
        inner = _CONV_WIDENING * size
        self.depthwise = nn.Conv2d(size, size, 3, padding=1, groups=size, bias=False)
        self.norm = RMSNorm(size, config.norm_eps)
        self.widen = SampleLinear(size, inner, bias=False)
        self.response_scale = nn.Parameter(torch.zeros(inner))
        self.response_shift = nn.Parameter(torch.zeros(inner))
        self.narrow = SampleLinear(inner, size, bias=False)
        self.scale_and_shift = VectorLinear(config.hidden_size, 2 * size, bias=False)

    def forward(self, x: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """x: (B, N, channels). condition: (B, hidden), activated."""
        near = self.depthwise(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
        near = near.contiguous()  # a lone row would lie otherwise, and be summed in another order
        wide = F.gelu(self.widen(self.norm(near)))  # (B, N, inner)
        response = wide.float().norm(dim=1, keepdim=True)  # (B, 1, inner), over all places
        response = (response / (response.mean(-1, keepdim=True) + _RESPONSE_EPS)).to(x.dtype)
        wide = self.response_scale * (wide * response) + self.response_shift + wide
        scale, shift = self.scale_and_shift(condition)[:, None].chunk(2, dim=-1)  # 2 × (B, 1, channels)
        return (x + self.narrow(wide)) * (1 + scale) + shift


class ContextBlock(nn.Module):
    """Attention to the prompt's tokens, twice."""

    def __init__(self, config: UVitConfig) -> None:
        super().__init__()
        size, heads = config.block_channels, config.block_num_heads
        has_own = size != config.hidden_size
        self.map_context = SampleLinear(config.hidden_size, size, bias=False) if has_own else None
        self.norms = nn.ModuleList(RMSNorm(size, _BLOCK_NORM_EPS) for _ in range(2))
        self.attentions = nn.ModuleList(Attention(size, heads, size) for _ in range(2))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, N, channels). context: (B, T, hidden)."""
        if self.map_context is not None:
            context = self.map_context(F.silu(context))  # (B, T, channels)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x), context)
        return x


class ModulatedNorm(nn.Module):
    """A norm over the channels, scaled and shifted by the condition."""

    def __init__(self, config: UVitConfig, *, is_centred: bool = False) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.norm_eps
        self.norm = nn.LayerNorm(size, eps, bias=False) if is_centred else RMSNorm(size, eps)
        self.modulate = VectorLinear(size, 2 * size, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, N, hidden). condition: (B, hidden), activated."""
        scale, shift = self.modulate(condition)[:, None].chunk(2, dim=-1)  # 2 × (B, 1, hidden)
        return cast(Tensor, self.norm(x)) * (1 + scale) + shift


class TransformerBlock(nn.Module):
    """Attention of the codes to each other, then to the prompt's tokens, and a gated feed-forward layer."""

    def __init__(self, config: UVitConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.norm1 = ModulatedNorm(config)
        self.attention = Attention(size, config.num_heads, size)
        self.norm2 = ModulatedNorm(config)
        self.context_attention = Attention(size, config.num_heads, size)
        self.norm3 = ModulatedNorm(config, is_centred=True)
        self.widen_gated = SampleLinear(size, 2 * config.mlp_size, bias=False)
        self.narrow_gated = SampleLinear(config.mlp_size, size, bias=False)

    def forward(self, x: Tensor, condition: Tensor, context: Tensor) -> Tensor:
        """x: (B, N, hidden). condition: (B, hidden), activated. context: (B, T, hidden)."""
        normed = self.norm1(x, condition)
        x = x + self.attention(normed, normed)
        x = x + self.context_attention(self.norm2(x, condition), context)
        value, gate = self.widen_gated(self.norm3(x, condition)).chunk(2, dim=-1)
        return cast(Tensor, x + self.narrow_gated(value * F.gelu(gate)))


class ConvBlocks(nn.Module):
    """Convolutions, each followed by attention to the prompt's tokens, on the whole or on half the grid."""

    def __init__(self, config: UVitConfig) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvBlock(config) for _ in range(config.num_blocks))
        self.attentions = nn.ModuleList(ContextBlock(config) for _ in range(config.num_blocks))

    def forward(self, x: Tensor, condition: Tensor, context: Tensor, grid: tuple[int, int]) -> Tensor:
        """x: (B, N, channels). condition: (B, hidden), activated. context: (B, T, hidden)."""
        for conv, attention in zip(self.convs, self.attentions, strict=True):
            x = attention(conv(x, condition, grid), context)
        return x


class UVit(nn.Module):
    """Logits of codes, given codes and a prompt: aMUSEd (Patil et al. 2024, arXiv:2401.01808).

    It computes what ``UVit2DModel`` of diffusers does, a transformer between convolutions (Hoogeboom et al.
    2023, arXiv:2301.11093). A prompt's tokens are attended to; its pooled vector scales and shifts, together
    with the micro-conditions.
    """

    micro_waves: Tensor

    def __init__(self, config: UVitConfig) -> None:
        super().__init__()
        self.config = config
        size, channels, eps = config.hidden_size, config.block_channels, config.norm_eps
        micro = len(config.micro_conditions) * config.micro_channels
        self.embed_codes = nn.Embedding(config.codebook_size + 1, config.code_channels)  # and "masked": last
        self.code_norm = RMSNorm(config.code_channels, eps)
        self.from_codes = SampleLinear(config.code_channels, channels, bias=False)
        self.embed_text = SampleLinear(config.text_channels, size, bias=False)
        self.text_norm = RMSNorm(size, eps)
        self.embed_pooled = nn.Sequential(
            VectorLinear(config.pooled_channels + micro, size, bias=False),
            nn.SiLU(),
            VectorLinear(size, size, bias=False),
        )
        if config.is_halved:
            self.merge_norm, self.split_norm = RMSNorm(channels, eps), RMSNorm(channels, eps)
            self.merge = SampleLinear(4 * channels, channels, bias=False)
            self.split = SampleLinear(channels, 4 * channels, bias=False)
        self.first = ConvBlocks(config)
        self.hidden_norm = RMSNorm(channels, eps)
        self.to_hidden = SampleLinear(channels, size, bias=False)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        self.channels_norm = RMSNorm(size, eps)
        self.to_channels = SampleLinear(size, channels, bias=False)
        self.last = ConvBlocks(config)
        self.to_codes = SampleLinear(channels, config.code_channels, bias=False)
        self.final_norm = RMSNorm(config.code_channels, eps)
        self.to_logits = SampleLinear(config.code_channels, config.codebook_size, bias=False)
        self.register_buffer("micro_waves", _micro_waves(config), persistent=False)

    @property
    def no_code(self) -> int:
        """What stands where a code is masked."""
        return self.config.codebook_size

    def null_conditions(self, num_rows: int = 1) -> Conditions:
        """Return rows of zeros, for slots: what asks for nothing is a blank prompt, as its encoder has it."""
        config, device = self.config, self.micro_waves.device
        labels = torch.zeros(1, 0, dtype=torch.long, device=device)
        text = torch.zeros(1, config.text_tokens, config.text_channels, device=device)
        pooled = torch.zeros(1, config.pooled_channels, device=device)
        return Conditions(labels, text, None, pooled).expand(num_rows)

    def forward(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Return logits (B, codebook, *grid) of codes (B, *grid), among which may be ``no_code``."""
        assert conditions.text is not None
        assert conditions.pooled is not None
        config, dtype = self.config, self.embed_codes.weight.dtype
        context = self.text_norm(self.embed_text(conditions.text.to(dtype)))  # (B, T, hidden)
        micro = self.micro_waves.expand(len(codes), -1)
        pooled = torch.cat([conditions.pooled.to(dtype), micro], dim=1)  # (B, pooled + micro)
        condition = F.silu(self.embed_pooled(pooled))  # (B, hidden)
        x = self.from_codes(self.code_norm(self.embed_codes(codes.flatten(1))))  # (B, codes, channels)
        grid = config.grid
        if config.is_halved:
            whole = self.merge_norm(x).transpose(1, 2).unflatten(2, grid)  # (B, channels, *grid)
            x = self.merge(patchify(whole, 2))  # (B, codes/4, channels)
            grid = (grid[0] // 2, grid[1] // 2)
        x = self.first(x, condition, context, grid)
        x = self.to_hidden(self.hidden_norm(x))  # (B, N, hidden)
        for block in self.blocks:
            x = block(x, condition, context)
        x = self.to_channels(self.channels_norm(x))  # (B, N, channels)
        x = self.last(x, condition, context, grid)
        if config.is_halved:
            quarters = self.split(self.split_norm(x))  # (B, codes/4, 4·channels)
            x = unpatchify(quarters, 2, config.block_channels, config.grid).flatten(2).transpose(1, 2)
        logits = self.to_logits(self.final_norm(self.to_codes(x)))  # (B, codes, codebook)
        return logits.transpose(1, 2).unflatten(2, config.grid)


def _micro_waves(config: UVitConfig) -> Tensor:
    """Return the micro-conditions' cosines and sines (1, conditions·channels) float32."""
    half = config.micro_channels // 2
    frequencies = torch.exp(-math.log(_MAX_PERIOD) * torch.arange(half) / half)
    angles = torch.tensor(config.micro_conditions)[:, None] * frequencies  # (conditions, channels/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten()[None]
