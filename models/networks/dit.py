"""A diffusion transformer that predicts the velocity of latents under conditions."""

import dataclasses
import math
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs
from torch import Tensor, nn

from models.checkpoint import load_checkpoint, load_into
from models.conditioning import Conditions, LabelEmbedding, TextEmbedding
from models.networks.layers import (
    Attention,
    Linear,
    SwiGLU,
    TimeEmbedding,
    VectorLinear,
    axial_rope,
    patchify,
    turns,
    unit,
    unpatchify,
    version_of,
)
from models.networks.transformer_config import TransformerConfig
from models.options import CHECKED, Count, NotNegative

_OLDER_LABEL_SIZES = ("num_classes", "num_styles", "num_groups")


@dataclass(frozen=True, config=CHECKED)
class DiTConfig(TransformerConfig):
    """The shape of a prior: a diffusion transformer over latents.

    source_channels: of the latents, on the same grid, of a picture to be drawn again; 0 where it takes none.
    """

    patch_size: Count = 2
    source_channels: NotNegative = 0

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, given: Any) -> Any:
        """Take the three numbers of labels that weights had before they could have any sets."""
        values = given.kwargs if isinstance(given, ArgsKwargs) else given
        if not values or not any(name in values for name in _OLDER_LABEL_SIZES):
            return given
        values = dict(values)
        sizes = [values.pop(name, 0) for name in _OLDER_LABEL_SIZES]
        return values | {"label_sizes": tuple(size for size in sizes if size)}

    @property
    def num_tokens(self) -> int:
        return math.prod(side // self.patch_size for side in self.grid)


class Block(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the condition.

    The modulation is shared by all blocks; each adds an offset of its own (PixArt-α, Chen et al. 2023,
    arXiv:2310.00426).
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        inner = -(-int(config.mlp_ratio * size) // 64) * 64  # rounded up to what hardware likes
        self.attention = Attention(size, config.num_heads, has_context=config.takes_prompt)
        self.feed_forward = SwiGLU(size, inner)
        self.modulation_offset = nn.Parameter(torch.zeros(6, size))

    def forward(
        self, x: Tensor, modulation: Tensor, turns: tuple[Tensor, Tensor], context: Tensor | None
    ) -> Tensor:
        """x: (B, N, hidden). modulation: (B, 6, 1, hidden), of this block: see ``modulate``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)
        x = torch.addcmul(x, gate1, self.attention(modulate(x, shift1, scale1), turns, context))
        return torch.addcmul(x, gate2, self.feed_forward(modulate(x, shift2, scale2)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (B, N, hidden) normed, scaled and shifted by vectors (B, 1, hidden).

    The scale has the norm's factor √hidden in it.
    """
    return torch.addcmul(shift, unit(x), scale)


@dataclasses.dataclass(frozen=True)
class _Embedded:
    """What the blocks and the output layer need besides the tokens.

    condition: (B, hidden). modulation: (B, depth, 6, 1, hidden). turns: (N, depth, 2, heads, d), twice.
    context: (B, T, hidden), of a prompt.
    """

    condition: Tensor
    modulation: Tensor
    turns: tuple[Tensor, Tensor]
    context: Tensor | None


class DiT(nn.Module):
    """A diffusion transformer (Peebles and Xie 2023, arXiv:2212.09748).

    Unlike theirs: RMSNorm, normalised queries and keys, SwiGLU, axial RoPE, one modulation network for all
    blocks, and prompts. Labels act through the modulation. A prompt's tokens are attended to, and their mean
    acts through the modulation, too. A source's latents are further channels of the input (Saharia et al.
    2021, arXiv:2104.07636), whose weights are zero at first.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        patch_channels = config.latent_channels * config.patch_size ** len(config.grid)
        self.embed_patches = Linear(patch_channels, size)
        self.embed_source: Linear | None = None
        if config.source_channels:
            source_channels = config.source_channels * config.patch_size ** len(config.grid)
            self.embed_source = Linear(source_channels, size, bias=False)
        self.embed_time = TimeEmbedding(size)
        self.embed_labels = nn.ModuleList(LabelEmbedding(number, size) for number in config.label_sizes)
        self.embed_text = TextEmbedding(config.text_channels, size) if config.takes_prompt else None
        self.modulate = VectorLinear(size, 6 * size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_modulate = VectorLinear(size, 2 * size)
        self.to_velocity = Linear(size, patch_channels)
        token_grid = tuple(side // config.patch_size for side in config.grid)
        cosines, sines = axial_rope(token_grid, config.head_size)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)
        self._kept_turns: tuple[object, tuple[Tensor, Tensor]] | None = None  # and what they were made from
        self._initialise()

    @classmethod
    def load(cls, path: Path) -> "DiT":
        """Load one safetensors file that knows its own configuration.

        Raises: CheckpointError.
        """
        tensors, config = load_checkpoint(path, DiTConfig)
        network = cls(config)
        load_into(network, tensors, path)
        return network

    def taking_source(self, source_channels: int) -> "DiT":
        """Return a network that takes sources, too, and until it is trained does what this one does."""
        network = DiT(dataclasses.replace(self.config, source_channels=source_channels))
        network.load_state_dict(self.state_dict(), strict=False)
        return network

    def null_conditions(self, num_rows: int = 1) -> Conditions:
        """Return rows that ask for nothing: any label, no prompt, no source."""
        config, device = self.config, self.cosines.device
        labels = torch.tensor([config.label_sizes], dtype=torch.long, device=device)
        text = source = None
        if config.takes_prompt:
            text = torch.zeros(1, config.text_tokens, config.text_channels, device=device)
        if config.source_channels:
            source = torch.zeros(1, config.source_channels, *config.grid, device=device)
        return Conditions(labels, text, source).expand(num_rows)

    def forward(self, latents: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Return the velocity (B, C, *grid) at latents (B, C, *grid) and t (B,): 0 is noise, 1 is data."""
        x, embedded = self._embed(latents, t, conditions)
        cosines, sines = embedded.turns
        for number, block in enumerate(self.blocks):
            block_turns = cosines[:, number], sines[:, number]
            x = block(x, embedded.modulation[:, number], block_turns, embedded.context)  # (B, N, hidden)
        return self._to_velocity(x, embedded)  # (B, C, *grid)

    def _embed(self, latents: Tensor, t: Tensor, conditions: Conditions) -> tuple[Tensor, _Embedded]:
        """Return tokens (B, N, hidden) and what goes with them."""
        config = self.config
        dtype = self.embed_patches.weight.dtype
        x = self.embed_patches(patchify(latents.to(dtype), config.patch_size))  # (B, N, hidden)
        if self.embed_source is not None and conditions.source is not None:
            x = x + self.embed_source(patchify(conditions.source.to(dtype), config.patch_size))
        condition = self.embed_time(t)  # (B, hidden)
        for embed, labels in zip(self.embed_labels, conditions.labels.unbind(1), strict=True):
            condition = condition + embed(labels)
        context = None
        if self.embed_text is not None and conditions.text is not None:
            context, pooled = self.embed_text(conditions.text.to(dtype))  # (B, T, hidden), (B, hidden)
            condition = condition + pooled
        condition = F.silu(condition)  # (B, hidden)
        offsets = torch.stack([block.modulation_offset for block in self._blocks])  # (depth, 6, hidden)
        modulation = self.modulate(condition).view(-1, 1, 6, config.hidden_size) + offsets
        modulation[:, :, 1::3].add_(1).mul_(config.hidden_size**0.5)  # the scales: see ``modulate``
        return x, _Embedded(condition, modulation[:, :, :, None], self._turns(x.dtype), context)

    @property
    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def _turns(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the ``turns`` (N, depth, 2, heads, d) of all blocks; outside of training they are kept."""
        weights: list[Tensor] = []
        for block in self._blocks:
            weights += [block.attention.query_norm.weight, block.attention.key_norm.weight]
        if torch.is_grad_enabled():
            return self._make_turns(weights, dtype)
        made_from = (dtype, self.cosines.device, [version_of(weight) for weight in weights])
        if self._kept_turns is None or self._kept_turns[0] != made_from:
            self._kept_turns = made_from, self._make_turns(weights, dtype)
        return self._kept_turns[1]

    def _make_turns(self, weights: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        config = self.config
        scales = torch.stack(weights).to(dtype) * config.head_size**0.5  # (2·depth, d)
        scales = scales.view(config.depth, 2, 1, -1).expand(-1, -1, config.num_heads, -1)
        return turns(self.cosines.to(dtype), self.sines.to(dtype), scales)

    def _to_velocity(self, x: Tensor, embedded: _Embedded) -> Tensor:
        config = self.config
        shift, scale = self.final_modulate(embedded.condition)[:, None].chunk(2, dim=-1)  # (B, 1, hidden)
        x = modulate(x, shift, (1 + scale) * config.hidden_size**0.5)  # (B, N, hidden)
        x = self.to_velocity(x)  # (B, N, C·p^axes)
        return unpatchify(x, config.patch_size, config.latent_channels, config.grid)  # (B, C, *grid)

    def _initialise(self) -> None:
        """Set every initial value; blocks start as the identity, the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=1.0)
        if self.embed_source is not None:
            nn.init.zeros_(self.embed_source.weight)
        for layer in (self.modulate, self.final_modulate, self.to_velocity):
            nn.init.zeros_(layer.weight)
