"""What a pipeline needs of a prior."""

from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar, runtime_checkable

from torch import nn

from models.conditioning import Conditions
from models.networks.class_dit import ClassDiT
from models.networks.code_transformer import CodeTransformer
from models.networks.dit import DiT
from models.networks.llamagen import LlamaGen
from models.networks.uvit import UVit
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


@runtime_checkable
class DrawsCodes(Protocol):
    """What a prior adds that draws codes."""

    @property
    def codebook_size(self) -> int:
        """The number of codes that it draws from."""


Network = TypeVar("Network", DiT, CodeTransformer, UVit)


class TransformerPrior(Generic[Network]):
    """What a pipeline asks of a prior, as its transformer's configuration says it."""

    network: Network

    def __init__(self, network: Network) -> None:
        self.network = network

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d, *grid) of one sample's latents."""
        return (self.network.config.latent_channels, *self.network.config.grid)

    @property
    def label_sizes(self) -> tuple[int, ...]:
        """The numbers of labels in each set."""
        return self.network.config.label_sizes

    @property
    def text_shape(self) -> tuple[int, int] | None:
        """(tokens, channels) of a prompt's states; None where it takes no prompt."""
        config = self.network.config
        return (config.text_tokens, config.text_channels) if config.takes_prompt else None

    def null_conditions(self, num_rows: int = 1) -> Conditions:
        """Return rows that ask for nothing: any label, no prompt."""
        return self.network.null_conditions(num_rows)


LabelNetwork = TypeVar("LabelNetwork", ClassDiT, LlamaGen)


class LabelPrior(Generic[LabelNetwork]):
    """The same of a public network that knows one set of labels, and no prompts."""

    network: LabelNetwork

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d, *grid) of one sample's latents."""
        return (self.network.config.latent_channels, *self.network.config.grid)

    @property
    def label_sizes(self) -> tuple[int, ...]:
        """The number of classes."""
        return (self.network.config.num_labels,)

    @property
    def text_shape(self) -> None:
        """None: it takes no prompt."""
        return None

    def null_conditions(self, num_rows: int = 1) -> Conditions:
        """Return rows that ask for any class."""
        return self.network.null_conditions(num_rows)
