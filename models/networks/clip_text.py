"""CLIP's text encoder: states of a prompt's tokens, and one vector for all of them."""

from collections.abc import Sequence
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.options import CHECKED, ConfigError, Count, NotNegative

_QUICK = 1.702  # of x·sigmoid(1.702·x), which stands for GELU


@dataclass(frozen=True, config=CHECKED)
class ClipTextConfig:
    """The shape of the encoder.

    pooled_size: of the vector for the whole prompt. max_tokens: of every prompt; shorter ones are filled with
    ``pad_id`` behind their end mark ``end_id``, which are read, too.
    """

    pooled_size: Count = Field(kw_only=True)
    start_id: NotNegative = Field(kw_only=True)
    end_id: NotNegative = Field(kw_only=True)
    pad_id: NotNegative = Field(kw_only=True)
    vocab_size: Count = 49_408
    hidden_size: Count = 768
    depth: Count = 12
    num_heads: Count = 12
    inner_size: Count = 3072
    max_tokens: Annotated[int, Field(ge=2, le=2**11)] = 77
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size must be a multiple of num_heads {self.num_heads}, got {self.hidden_size}"
            )
        if (largest := max(self.start_id, self.end_id, self.pad_id)) >= self.vocab_size:
            raise ConfigError(f"the marks' ids must be below vocab_size {self.vocab_size}, got {largest}")


class _Block(nn.Module):
    """Attention to the tokens before, and feed-forward, each behind a norm."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.is_quick = config.activation == "quick_gelu"
        self.norm1 = nn.LayerNorm(size, config.norm_eps)
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.out = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size, config.norm_eps)
        self.up = nn.Linear(size, config.inner_size)
        self.down = nn.Linear(config.inner_size, size)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        projected = (self.query(normed), self.key(normed), self.value(normed))
        q, k, v = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in projected)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, heads, N, d)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))  # (B, N, hidden)
        wide = self.up(self.norm2(x))
        wide = wide * torch.sigmoid(_QUICK * wide) if self.is_quick else F.gelu(wide)
        return cast(Tensor, x + self.down(wide))


class ClipText(nn.Module):
    """The text half of CLIP with its projection (Radford et al. 2021, arXiv:2103.00020).

    It computes what ``CLIPTextModelWithProjection`` of transformers does.
    """

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_tokens, config.hidden_size)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.to_pooled = nn.Linear(config.hidden_size, config.pooled_size, bias=False)

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return states (B, N, hidden) and pooled vectors (B, pooled) of token ids (B, N) int64.

        The states are those before the last block; the vector comes from the first end mark behind it.
        """
        x = self.embed_tokens(token_ids) + self.embed_positions.weight[: token_ids.shape[1]]
        states = x
        for block in self.blocks:
            states, x = x, block(x)  # (B, N, hidden)
        ends = (token_ids == self.config.end_id).int().argmax(1)
        rows = torch.arange(len(token_ids), device=token_ids.device)
        return states, self.to_pooled(self.final_norm(x[rows, ends]))

    def represent(self, token_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return states (max_tokens, hidden) and the pooled vector (pooled,) of a prompt, on the CPU.

        token_ids: with both end marks; none of a blank prompt, which is read as the two.
        """
        config = self.config
        ids = list(token_ids) or [config.start_id, config.end_id]
        ids += (config.max_tokens - len(ids)) * [config.pad_id]
        states, pooled = self(torch.tensor([ids], device=self.embed_tokens.weight.device))
        return states[0].cpu(), pooled[0].cpu()
