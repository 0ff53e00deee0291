"""What a prior is asked for: labels, a prompt and a source, each of which may be left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.networks.layers import Linear, VectorLinear


@dataclass(frozen=True)
class Conditions:
    """What each row of a batch is asked for.

    labels: (B, K) int64, one column for each of the network's ``label_sizes``; a label equal to the size
    stands for "any". text: (B, T, channels), the states of a prompt's tokens and zeros after them; all
    zeros stand for no prompt. None where the prior takes no prompt. source: (B, d, *grid), latents of a
    picture that is drawn again, larger; all zeros stand for none. None where the prior takes no such picture.
    pooled: (B, channels), one vector for all of a prompt, where the prior takes one.
    """

    labels: Tensor
    text: Tensor | None = None
    source: Tensor | None = None
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice | list[int]) -> "Conditions":
        return self._changed(lambda part: part[rows])

    def to(self, device: torch.device | str) -> "Conditions":
        return self._changed(lambda part: part.to(device))

    def equals(self, other: "Conditions") -> bool:
        """Whether every row asks for the same as the row of ``other``."""
        return all(
            mine is theirs or (mine is not None and theirs is not None and torch.equal(mine, theirs))
            for mine, theirs in zip(self._parts, other._parts, strict=True)
        )

    def clone(self) -> "Conditions":
        """Return rows that can be written."""
        return self._changed(torch.clone)

    def write(self, row: int, other: "Conditions") -> None:
        """Put the one row of ``other`` in the place of a row."""
        for mine, theirs in zip(self._parts, other._parts, strict=True):
            if mine is not None and theirs is not None:
                mine[row] = theirs[0]

    def expand(self, num_rows: int) -> "Conditions":
        """Return one row ``num_rows`` times."""
        return self._changed(lambda part: part.expand(num_rows, *[-1] * (part.ndim - 1)))

    @property
    def _parts(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        return self.labels, self.text, self.source, self.pooled

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Conditions":
        """Return conditions of which each part has been put through a function."""
        labels, *others = self._parts
        return Conditions(change(labels), *(None if part is None else change(part) for part in others))


def stack_conditions(parts: Sequence[Conditions]) -> Conditions:
    """Return the rows of all ``parts`` below each other."""

    def joined(rows: Sequence[Tensor | None]) -> Tensor | None:
        given = [each for each in rows if each is not None]
        return torch.cat(given) if given else None

    return Conditions(
        torch.cat([part.labels for part in parts]),
        joined([part.text for part in parts]),
        joined([part.source for part in parts]),
        joined([part.pooled for part in parts]),
    )


class LabelEmbedding(nn.Module):
    """One learnt vector a label, and one for "any" (the last), which guidance compares with."""

    def __init__(self, num_labels: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_labels + 1, hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding(labels)  # (B, hidden)


class TextEmbedding(nn.Module):
    """Token states of a frozen text encoder (B, T, channels) → context for the blocks (B, T, hidden).

    Nothing in it has a bias, so that zeros stay zeros: as keys they score 0 and as values they add
    nothing, whether they stand for padding or for no prompt at all. So no mask is needed, every row has
    the same shape, and a row's bits don't depend on the prompts beside it.
    """

    def __init__(self, text_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(text_channels, elementwise_affine=False, eps=1e-6)
        self.net = nn.Sequential(
            Linear(text_channels, hidden_size, bias=False),
            nn.SiLU(),
            Linear(hidden_size, hidden_size, bias=False),
        )
        self.to_pooled = VectorLinear(hidden_size, hidden_size, bias=False)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the context (B, T, hidden) and its mean over the prompt's own tokens (B, hidden)."""
        context = self.net(self.norm(states))  # (B, T, hidden)
        num_tokens = states.any(-1).sum(1, keepdim=True).clamp(min=1)  # (B, 1)
        return context, self.to_pooled(context.sum(1) / num_tokens.to(context.dtype))


def drop_conditions(
    conditions: Conditions,
    null: Conditions,
    rate: float,
    generator: torch.Generator,
    *,
    source_rate: float = 0.0,
) -> Conditions:
    """Return ``conditions`` with parts replaced by those of ``null`` (one row), for training.

    A share of ``rate`` of the rows loses labels and text, with its vector. Where there are several of them,
    each is also lost on its own in a share of ``rate``, so that any of them may be left out of a request. A
    source is lost in a share of ``source_rate``, whatever else is.
    """
    num_rows, num_labels = conditions.labels.shape
    device = conditions.labels.device
    has_several = num_labels + (conditions.text is not None) > 1

    def drawn(rate: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device).to(device) < rate

    is_empty = drawn(rate, num_rows)
    lost_labels = is_empty[:, None].expand(num_rows, num_labels)
    lost_text = is_empty
    if has_several:
        lost_labels = lost_labels | drawn(rate, num_rows, num_labels)
        lost_text = lost_text | drawn(rate, num_rows)
    labels = torch.where(lost_labels, null.labels, conditions.labels)
    text, source, pooled = conditions.text, conditions.source, conditions.pooled
    if text is not None and null.text is not None:
        text = torch.where(lost_text[:, None, None], null.text, text)
    if pooled is not None and null.pooled is not None:
        pooled = torch.where(lost_text[:, None], null.pooled, pooled)
    if source is not None and null.source is not None:
        lost = drawn(source_rate, num_rows).view(-1, *[1] * (source.ndim - 1))
        source = torch.where(lost, null.source, source)
    return Conditions(labels, text, source, pooled)
