"""What a prior is asked for: class labels, and the label that stands for none."""

import torch
from torch import Tensor, nn


class ClassEmbedding(nn.Module):
    """One learnt vector a class, and one for "any" (the last), which guidance compares with."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.null_label = num_classes
        self.embedding = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, class_labels: Tensor) -> Tensor:
        return self.embedding(class_labels)  # (B, hidden)


def drop_labels(class_labels: Tensor, null_label: int, rate: float, generator: torch.Generator) -> Tensor:
    """Return ``class_labels`` (B,) with a share of ``rate`` replaced by ``null_label``, for training."""
    dropped = torch.rand(len(class_labels), generator=generator).to(class_labels.device) < rate
    return torch.where(dropped, null_label, class_labels)
