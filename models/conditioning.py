"""What a prior is asked for: labels and a prompt, each of which may be left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.networks.layers import Linear, VectorLinear


@dataclass(frozen=True)
class Conditions:
    """What each row of a batch is asked for.

    labels: (B, K) int64, one column for each of the network's ``label_sizes``; a label equal to the size
    stands for "any". text: (B, T, channels), the states of a prompt's tokens and zeros after them; all
    zeros stand for no prompt. None where the prior takes no prompt.
    """

    labels: Tensor
    text: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice | list[int]) -> "Conditions":
        return Conditions(self.labels[rows], None if self.text is None else self.text[rows])

    def to(self, device: torch.device | str) -> "Conditions":
        return Conditions(self.labels.to(device), None if self.text is None else self.text.to(device))

    def equals(self, other: "Conditions") -> bool:
        """Whether every row asks for the same as the row of ``other``."""
        texts = (self.text, other.text)
        has_same_text = texts[0] is texts[1] or (
            texts[0] is not None and texts[1] is not None and torch.equal(texts[0], texts[1])
        )
        return has_same_text and torch.equal(self.labels, other.labels)

    def clone(self) -> "Conditions":
        """Return rows that can be written."""
        return Conditions(self.labels.clone(), None if self.text is None else self.text.clone())

    def write(self, row: int, other: "Conditions") -> None:
        """Put the one row of ``other`` in the place of a row."""
        self.labels[row] = other.labels[0]
        if self.text is not None and other.text is not None:
            self.text[row] = other.text[0]

    def expand(self, num_rows: int) -> "Conditions":
        """Return one row ``num_rows`` times."""
        text = None if self.text is None else self.text.expand(num_rows, -1, -1)
        return Conditions(self.labels.expand(num_rows, -1), text)


def stack_conditions(parts: Sequence[Conditions]) -> Conditions:
    """Return the rows of all ``parts`` below each other."""
    texts = [part.text for part in parts if part.text is not None]
    return Conditions(torch.cat([part.labels for part in parts]), torch.cat(texts) if texts else None)


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
    conditions: Conditions, null: Conditions, rate: float, generator: torch.Generator
) -> Conditions:
    """Return ``conditions`` with parts replaced by those of ``null`` (one row), for training.

    A share of ``rate`` of the rows loses everything. Where there are several conditions, each is also lost
    on its own in a share of ``rate``, so that any of them may be left out of a request.
    """
    num_rows, num_labels = conditions.labels.shape
    device = conditions.labels.device
    has_several = num_labels + (conditions.text is not None) > 1

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device).to(device) < rate

    is_empty = drawn(num_rows)
    lost_labels = is_empty[:, None].expand(num_rows, num_labels)
    lost_text = is_empty
    if has_several:
        lost_labels = lost_labels | drawn(num_rows, num_labels)
        lost_text = lost_text | drawn(num_rows)
    labels = torch.where(lost_labels, null.labels, conditions.labels)
    if conditions.text is None or null.text is None:
        return Conditions(labels)
    return Conditions(labels, torch.where(lost_text[:, None, None], null.text, conditions.text))
