"""LlamaGen's transformer: a label first, then the codes, rows first, each of which predicts the next."""

import math
from collections.abc import Iterator
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.conditioning import Conditions
from models.networks.class_dit import RMSNorm, pair_turns, rotate_pairs
from models.networks.code_cache import CacheCall, KeyValueCache, untouched_zeros
from models.networks.layers import VectorLinear
from models.options import CHECKED, ConfigError

_NORM_EPS = 1e-5
_UpTo1024 = Annotated[int, Field(ge=1, le=2**10)]


@dataclass(frozen=True, config=CHECKED)
class LlamaGenConfig:
    """The shape of the network.

    latent_channels: of its tokenizer's latents. num_labels: without the one for "any". common_code: see
    ``CodeTransformerConfig``.
    """

    latent_channels: _UpTo1024 = 8
    grid: tuple[_UpTo1024, _UpTo1024] = (16, 16)
    codebook_size: Annotated[int, Field(ge=2, le=2**20)] = 16_384
    hidden_size: Annotated[int, Field(ge=1, le=2**14)] = 768
    depth: Annotated[int, Field(ge=1, le=2**8)] = 12
    num_heads: _UpTo1024 = 12
    mlp_size: Annotated[int, Field(ge=1, le=2**16)] = 2048
    num_labels: Annotated[int, Field(ge=1, le=2**20)] = 1000
    common_code: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.grid[0] != self.grid[1]:
            raise ConfigError(f"grid must be square, got {self.grid}")
        if self.hidden_size % (4 * self.num_heads):
            raise ConfigError(
                f"hidden_size must give each of num_heads {self.num_heads} heads a multiple of 4 channels,"
                f" got {self.hidden_size}"
            )
        if self.common_code >= self.codebook_size:
            raise ConfigError(f"common_code must be below {self.codebook_size}, got {self.common_code}")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_codes(self) -> int:
        return math.prod(self.grid)


class LlamaGenCache(KeyValueCache):
    """Keys and values of running rows, and the label's vector (rows, hidden), which each row begins with."""

    num_prompt = 0  # the label's place is that of the first code

    def __init__(self, config: LlamaGenConfig, num_rows: int, like: Tensor) -> None:
        super().__init__(config.depth, num_rows, config.num_heads, config.num_codes, config.head_size, like)
        self.first = untouched_zeros((num_rows, config.hidden_size), like)

    def begin(self, row: int, prefix: Tensor) -> None:
        """Give a row the label's vector (1, hidden), and nothing after it."""
        self.clear(row)
        self.first[row] = prefix[0]


class LlamaGenBlock(nn.Module):
    """Attention and SwiGLU behind norms, of one place of each row: x (B, hidden).

    Each linear layer has one vector a row, so ``VectorLinear`` keeps a row's bits among any others.
    """

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.first_norm = RMSNorm(size, eps=_NORM_EPS)
        self.qkv = VectorLinear(size, 3 * size, bias=False)
        self.out = VectorLinear(size, size, bias=False)
        self.second_norm = RMSNorm(size, eps=_NORM_EPS)
        self.gate_and_value = VectorLinear(size, 2 * config.mlp_size, bias=False)
        self.narrow = VectorLinear(config.mlp_size, size, bias=False)

    def forward(
        self, x: Tensor, turns: tuple[Tensor, Tensor], layer: int, cache: KeyValueCache, call: CacheCall
    ) -> Tensor:
        """turns: cosines and sines (B, 1, 1, d) of the rows' places."""
        qkv = self.qkv(self.first_norm(x)).view(len(x), 3, self.num_heads, 1, -1)  # (B, 3, heads, 1, d)
        q, k, v = qkv.unbind(1)  # 3 × (B, heads, 1, d)
        q, k = rotate_pairs(q, *turns), rotate_pairs(k, *turns)
        mixed = cache.attend(layer, q, k, v, call)  # (B, heads, 1, d)
        x = x + self.out(mixed.flatten(1))  # (B, hidden)
        gate, value = self.gate_and_value(self.second_norm(x)).chunk(2, dim=-1)  # 2 × (B, inner)
        return x + self.narrow(F.silu(gate) * value)


class LlamaGen(nn.Module):
    """Logits of the next codes, given a label and the codes before (Sun et al. 2024, arXiv:2406.06525).

    It computes what its authors' network does, one code at a time. Queries and keys are turned by the place
    of the code that they come from, rows and columns by half of the channels each. The label's are 0, as its
    authors' turns have zeros for it: all later codes give it the same score.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.embed_labels = nn.Embedding(config.num_labels + 1, size)  # and "any": the last
        self.embed_codes = nn.Embedding(config.codebook_size, size)
        self.blocks = nn.ModuleList(LlamaGenBlock(config) for _ in range(config.depth))
        self.final_norm = RMSNorm(size, eps=_NORM_EPS)
        self.to_logits = VectorLinear(size, config.codebook_size, bias=False)
        for name, table in zip(
            ("cosines", "sines"), pair_turns(config.grid[0], config.head_size), strict=True
        ):
            of_places = F.pad(table, (0, 0, 1, 0))[:-1]  # the label's, then those of all codes but the last
            self.register_buffer(name, of_places, persistent=False)  # (N, d)

    @property
    def no_code(self) -> int:
        """What stands where there is no code."""
        return self.config.codebook_size

    def null_conditions(self, num_rows: int = 1) -> Conditions:
        """Return rows that ask for any label."""
        labels = torch.full((num_rows, 1), self.config.num_labels, device=self.cosines.device)
        return Conditions(labels)

    def make_cache(self, num_rows: int) -> LlamaGenCache:
        """Return a cache of so many rows."""
        return LlamaGenCache(self.config, num_rows, self.embed_labels.weight)

    def prefix(self, conditions: Conditions) -> Tensor:
        """Return the labels' vectors (B, hidden)."""
        return cast(Tensor, self.embed_labels(conditions.labels[:, 0]))

    def decode(self, codes: Tensor, positions: Tensor, rows: Tensor, cache: LlamaGenCache) -> Tensor:
        """Return logits (B, codebook) of the codes at ``positions`` (B,), each after the one before, (B,).

        rows: of the cache (B,), whose keys and values at these positions are written; for the rest it is as
        it was, so that a call may be made again.
        """
        codes = codes.clamp(max=self.config.codebook_size - 1)  # before the first there is none
        x = torch.where(positions[:, None] == 0, cache.first[rows], self.embed_codes(codes))  # (B, hidden)
        turns = self.cosines[positions][:, None, None], self.sines[positions][:, None, None]
        call = cache.call(rows, positions)
        for layer, block in enumerate(self._blocks()):
            x = block(x, turns, layer, cache, call)
        return cast(Tensor, self.to_logits(self.final_norm(x)))

    def _blocks(self) -> Iterator[LlamaGenBlock]:
        return iter(cast(list[LlamaGenBlock], self.blocks))
