"""Whether a judge knows real pictures well enough to judge generated ones."""

import logging
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)

MIN_ACCURACY = 0.7
MAX_OF_CHANCE_ERRORS = 0.5


@dataclass(frozen=True)
class Verdict:
    """How good a judge is on ``num_images`` real pictures that are kept from it.

    accuracy: the share on which it is right. chance: the share on which the best fixed answer is right. It
    can judge from MIN_ACCURACY on, if it also makes at most half of the fixed answer's errors: of 90 cats and
    10 dogs, "cat" is right on 90%.
    """

    accuracy: float
    chance: float
    num_images: int
    can_judge: bool

    @classmethod
    def of(cls, accuracy: float, chance: float, num_images: int) -> "Verdict":
        """Return the verdict on a judge."""
        is_better = chance < 1 and 1 - accuracy <= MAX_OF_CHANCE_ERRORS * (1 - chance)
        return cls(accuracy, chance, num_images, accuracy >= MIN_ACCURACY and is_better)

    def doubts(self, judge: str) -> list[str]:
        """Return what a card must say of ``judge``: nothing where it can judge."""
        if self.can_judge:
            return []
        return [
            f"**{judge} can't judge**: it is right on only {self.accuracy:.1%} of {self.num_images:,} real"
            f" pictures. At least {MIN_ACCURACY:.0%} are wanted, and at most half of the errors of the best"
            f" fixed answer, which is right on {self.chance:.1%}. So its figures, and distances in its"
            " features, say little of one pipeline; at most they compare two."
        ]

    def warn(self, judge: str) -> None:
        """Log what there is to doubt."""
        for doubt in self.doubts(judge):
            logger.warning("%s", doubt.replace("**", ""))


def chance_of(labels: torch.Tensor) -> float:
    """Return the share of labels (N,) that are the most frequent one."""
    return torch.bincount(labels).max().item() / len(labels)
