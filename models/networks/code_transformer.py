"""A transformer over the codes of a grid: causal, with a cache of keys and values, or seeing all of them."""

import math
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.checkpoint import load_checkpoint, load_into
from models.conditioning import Conditions, LabelEmbedding, TextEmbedding
from models.networks.code_cache import KeyValueCache, attend_masked, untouched_zeros
from models.networks.dit import modulate
from models.networks.layers import (
    HeadNorm,
    Linear,
    SwiGLU,
    VectorLinear,
    axial_rope,
    patchify,
    rotate,
    turns,
    unpatchify,
)
from models.networks.transformer_config import TransformerConfig
from models.options import CHECKED, ConfigError, Count, NotNegative


@dataclass(frozen=True, config=CHECKED)
class CodeTransformerConfig(TransformerConfig):
    """The shape of a prior over codes.

    A causal one predicts each code from those before it, rows first; any other one from all that are known.
    Then a token may be a patch of several codes. common_code: the most frequent one, which stands for what is
    not drawn yet in previews.
    """

    is_causal: bool = Field(kw_only=True)
    depth: Count = 6
    codebook_size: Annotated[int, Field(ge=2, le=2**20)] = 1024
    common_code: NotNegative = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_causal and self.patch_size > 1:
            raise ConfigError(f"patch_size must be 1 where codes are drawn in turn, got {self.patch_size}")
        if self.hidden_size % self.codes_per_token:
            raise ConfigError(
                f"hidden_size must be a multiple of the {self.codes_per_token} codes of a patch,"
                f" got {self.hidden_size}"
            )
        if self.common_code >= self.codebook_size:
            raise ConfigError(f"common_code must be below {self.codebook_size}, got {self.common_code}")

    @property
    def codes_per_token(self) -> int:
        return self.patch_size ** len(self.grid)

    @property
    def num_codes(self) -> int:
        return math.prod(self.grid)

    @property
    def num_tokens(self) -> int:
        return self.num_codes // self.codes_per_token


@plain_dataclass(frozen=True)
class Prefix:
    """All that rows of conditions mean to the blocks, whatever the codes.

    modulation: (B, depth, 6, 1, hidden), and final: (B, 2, 1, hidden). keys and values: (B, depth, heads, T,
    d) of a prompt's tokens, T of 0 without one.
    """

    modulation: Tensor
    final: Tensor
    keys: Tensor
    values: Tensor


class CodeCache(KeyValueCache):
    """What the blocks know of running rows: their prefixes, and the keys and values of codes so far.

    A row is taken by ``begin`` and has its prompt's keys first, then a place for each code.
    """

    def __init__(self, config: CodeTransformerConfig, num_rows: int, like: Tensor) -> None:
        size, depth, heads = config.hidden_size, config.depth, config.num_heads
        self.num_prompt = config.text_tokens
        super().__init__(depth, num_rows, heads, self.num_prompt + config.num_codes, config.head_size, like)
        self.modulation = untouched_zeros((num_rows, depth, 6, 1, size), like)
        self.final = untouched_zeros((num_rows, 2, 1, size), like)

    def begin(self, row: int, prefix: Prefix) -> None:
        """Give a row the one prefix, and nothing after it."""
        self.modulation[row], self.final[row] = prefix.modulation[0], prefix.final[0]
        self.clear(row)
        for table, given in ((self.keys, prefix.keys), (self.values, prefix.values)):
            table[:, row, :, : self.num_prompt] = given[0]


class CodeAttention(nn.Module):
    """Self-attention over codes, and a prompt: as ``layers.Attention``, with a mask or with a cache."""

    def __init__(self, config: CodeTransformerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv = Linear(size, 3 * size, bias=False)
        self.query_norm = HeadNorm(config.head_size)
        self.key_norm = HeadNorm(config.head_size)
        self.out = Linear(size, size, bias=False)
        self.context_kv = Linear(size, 2 * size, bias=False) if config.takes_prompt else None

    def project(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values 3 × (B, heads, N, d) of x (B, N, hidden).

        turns: cosines and sines, (…, N, 2, 1, d), of queries and keys.
        """
        qkv = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1)  # (B, N, 3, heads, d)
        normed = torch.stack([self.query_norm(qkv[:, :, 0]), self.key_norm(qkv[:, :, 1])], dim=2)
        q, k = rotate(normed, *turns).transpose(1, 3).unbind(2)  # 2 × (B, heads, N, d)
        return q, k, qkv[:, :, 2].transpose(1, 2)

    def context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values 2 × (B, heads, T, d) of a prompt's tokens (B, T, hidden)."""
        assert self.context_kv is not None
        kv = self.context_kv(context).view(*context.shape[:2], 2, self.num_heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4)  # 2 × (B, heads, T, d)
        return self.key_norm(k), v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, N, hidden). q: (B, heads, N, d). mask: added to the scores."""
        return self.join(attend_masked(q, k, v, mask))

    def join(self, mixed: Tensor) -> Tensor:
        """Return (B, N, hidden) of what was attended to, (B, heads, N, d)."""
        return self.out(mixed.transpose(1, 2).flatten(2))


class CodeBlock(nn.Module):
    """Attention and feed-forward, scaled, shifted and gated by the condition, as in ``dit.Block``."""

    def __init__(self, config: CodeTransformerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        inner = -(-int(config.mlp_ratio * size) // 64) * 64  # rounded up to what hardware likes
        self.attention = CodeAttention(config)
        self.feed_forward = SwiGLU(size, inner)
        self.modulation_offset = nn.Parameter(torch.zeros(6, size))

    def feed(self, x: Tensor, mixed: Tensor, modulation: Tensor) -> Tensor:
        """Return x (B, N, hidden) after what attention gave was added, and the feed-forward layer."""
        _, _, gate1, shift2, scale2, gate2 = modulation.unbind(1)
        x = torch.addcmul(x, gate1, mixed)
        return torch.addcmul(x, gate2, self.feed_forward(modulate(x, shift2, scale2)))


class CodeTransformer(nn.Module):
    """Logits of codes, given codes and conditions.

    Labels and a prompt's mean act through the modulation, which a row has once for all of its codes; the
    prompt's tokens are attended to. Where it is causal, a query is turned by the place of the code that it
    draws and a key by the place of the code that it stands for, so that neighbours on the grid are always as
    far apart, also across the ends of rows.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: CodeTransformerConfig) -> None:
        super().__init__()
        self.config = config
        size, per_token = config.hidden_size, config.codes_per_token
        self.embed_codes = nn.Embedding(config.codebook_size + 1, size // per_token)  # and "none": the last
        self.embed_places = nn.Parameter(torch.empty(config.num_tokens, size))
        self.embed_labels = nn.ModuleList(LabelEmbedding(number, size) for number in config.label_sizes)
        self.embed_text = TextEmbedding(config.text_channels, size) if config.takes_prompt else None
        self.modulate = VectorLinear(size, 6 * size)
        self.blocks = nn.ModuleList(CodeBlock(config) for _ in range(config.depth))
        self.final_modulate = VectorLinear(size, 2 * size)
        self.to_logits = Linear(size, config.codebook_size * per_token)
        for name, table in zip(("cosines", "sines"), _make_turns(config), strict=True):
            self.register_buffer(name, table, persistent=False)
        self._initialise()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load one safetensors file that knows its own configuration.

        Raises: CheckpointError.
        """
        tensors, config = load_checkpoint(path, CodeTransformerConfig)
        network = cls(config)
        load_into(network, tensors, path)
        return network

    def make_cache(self, num_rows: int) -> CodeCache:
        """Return a cache of so many rows."""
        return CodeCache(self.config, num_rows, self.embed_places)

    @property
    def no_code(self) -> int:
        """What stands where there is no code: before the first, or where one is masked."""
        return self.config.codebook_size

    def null_conditions(self, num_rows: int = 1) -> Conditions:
        """Return rows that ask for nothing: any label, no prompt."""
        config = self.config
        labels = torch.tensor([config.label_sizes], dtype=torch.long, device=self.cosines.device)
        text = None
        if config.takes_prompt:
            text = torch.zeros(1, config.text_tokens, config.text_channels, device=self.cosines.device)
        return Conditions(labels, text).expand(num_rows)

    def forward(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Return logits (B, codebook, *grid) of codes (B, *grid), among which may be ``no_code``.

        A causal network is given the codes that it predicts, and sees of them those before each.
        """
        config = self.config
        tokens = patchify(codes[:, None], config.patch_size)  # (B, N, codes a token)
        if config.is_causal:
            tokens = F.pad(tokens[:, :-1], (0, 0, 1, 0), value=self.no_code)
        prefix = self.prefix(conditions)
        x = self._embed(tokens, self.embed_places)  # (B, N, hidden)
        mask = self._causal_mask(x.dtype) if config.is_causal else None
        tables = self.cosines.to(x.dtype), self.sines.to(x.dtype)
        for number, block in enumerate(self._blocks):
            modulation = prefix.modulation[:, number]
            q, k, v = block.attention.project(modulate(x, modulation[:, 0], modulation[:, 1]), tables)
            k = torch.cat([prefix.keys[:, number], k], dim=2)  # (B, heads, T + N, d)
            v = torch.cat([prefix.values[:, number], v], dim=2)  # (B, heads, T + N, d)
            x = block.feed(x, block.attention.mix(q, k, v, mask), modulation)  # (B, N, hidden)
        logits = self._to_logits(x, prefix.final)  # (B, N, codebook·codes a token)
        return unpatchify(logits, config.patch_size, config.codebook_size, config.grid)

    def prefix(self, conditions: Conditions) -> Prefix:
        """Return what rows of conditions mean to the blocks."""
        config = self.config
        dtype = self.embed_codes.weight.dtype
        condition = torch.zeros(len(conditions), config.hidden_size, dtype=dtype, device=self.cosines.device)
        for embed, labels in zip(self.embed_labels, conditions.labels.unbind(1), strict=True):
            condition = condition + embed(labels)
        keys = condition.new_zeros(len(conditions), config.depth, config.num_heads, 0, config.head_size)
        values = keys
        if self.embed_text is not None and conditions.text is not None:
            context, pooled = self.embed_text(conditions.text.to(dtype))  # (B, T, hidden), (B, hidden)
            condition = condition + pooled
            pairs = [block.attention.context(context) for block in self._blocks]
            keys, values = (torch.stack(each, dim=1) for each in zip(*pairs, strict=True))
        condition = F.silu(condition)
        offsets = torch.stack([block.modulation_offset for block in self._blocks])  # (depth, 6, hidden)
        modulation = self.modulate(condition).view(-1, 1, 6, config.hidden_size) + offsets
        modulation[:, :, 1::3].add_(1).mul_(config.hidden_size**0.5)  # the scales: see ``dit.modulate``
        shift, scale = self.final_modulate(condition).chunk(2, dim=-1)  # (B, hidden)
        final = torch.stack([shift, (1 + scale) * config.hidden_size**0.5], dim=1)  # (B, 2, hidden)
        return Prefix(modulation[:, :, :, None], final[:, :, None], keys, values)

    def decode(self, codes: Tensor, positions: Tensor, rows: Tensor, cache: CodeCache) -> Tensor:
        """Return logits (B, codebook) of the codes at ``positions`` (B,), each after the one before, (B,).

        rows: of the cache (B,), whose keys and values at these positions are written; for the rest it is as
        it was, so that a call may be made again.
        """
        x = self._embed(codes[:, None, None], self.embed_places[positions][:, None])  # (B, 1, hidden)
        tables = self.cosines[positions][:, None].to(x.dtype), self.sines[positions][:, None].to(x.dtype)
        modulations = cache.modulation[rows]
        call = cache.call(rows, cache.num_prompt + positions)
        for number, block in enumerate(self._blocks):
            modulation = modulations[:, number]  # (B, 6, 1, hidden)
            q, k, v = block.attention.project(modulate(x, modulation[:, 0], modulation[:, 1]), tables)
            mixed = cache.attend(number, q, k, v, call)  # (B, heads, 1, d)
            x = block.feed(x, block.attention.join(mixed), modulation)  # (B, 1, hidden)
        return self._to_logits(x, cache.final[rows])[:, 0]

    def _embed(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Return (B, N, hidden) of tokens (B, N, codes a token), at places whose vectors are given."""
        return self.embed_codes(tokens).flatten(2) + places

    def _to_logits(self, x: Tensor, final: Tensor) -> Tensor:
        return self.to_logits(modulate(x, final[:, 0], final[:, 1]))

    def _causal_mask(self, dtype: torch.dtype) -> Tensor:
        """Return what hides later codes (N, T + N), but no part of a prompt."""
        size, device = self.config.num_tokens, self.cosines.device
        mask = torch.full((size, size), -math.inf, dtype=dtype, device=device).triu(1)
        return F.pad(mask, (self.config.text_tokens, 0))

    @property
    def _blocks(self) -> list[CodeBlock]:
        return cast(list[CodeBlock], list(self.blocks))

    def _initialise(self) -> None:
        """Set every initial value; blocks start as the identity, all codes as equally likely."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=1.0)
        nn.init.normal_(self.embed_places, std=0.5)
        for layer in (self.modulate, self.final_modulate, self.to_logits):
            nn.init.zeros_(layer.weight)


def _make_turns(config: CodeTransformerConfig) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (N, 2, 1, d) by which queries and keys are turned."""
    token_grid = tuple(side // config.patch_size for side in config.grid)
    tables = turns(*axial_rope(token_grid, config.head_size), torch.ones(config.head_size))  # 2 × (N, d)
    places = torch.arange(config.num_tokens)
    of_keys = (places - 1).clamp(min=0) if config.is_causal else places
    cosines, sines = (torch.stack([table, table[of_keys]], dim=1)[:, :, None] for table in tables)
    return cosines, sines
