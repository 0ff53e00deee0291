"""What a pipeline needs of a prior."""

from pathlib import Path
from typing import Protocol, Self

from torch import nn

from models.conditioning import Conditions
from models.stage import Stage


class Prior(Protocol):
    """A family of priors: a network that is loaded, and the stage that samples with it."""

    network: nn.Module

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load one safetensors file that knows its own configuration.

        Raises: CheckpointError.
        """

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d, *grid) of one sample's latents."""

    @property
    def label_sizes(self) -> tuple[int, ...]:
        """The numbers of labels in each set, in the order of the pipeline's sets."""

    @property
    def text_shape(self) -> tuple[int, int] | None:
        """(tokens, channels) of a prompt's states; None where it takes no prompt."""

    def null_conditions(self, num_rows: int = 1) -> Conditions:
        """Return rows that ask for nothing."""

    def make_stage(self, num_slots: int) -> Stage:
        """Return the stage that samples, for at most ``num_slots`` samples at a time."""
