"""What priors over codes have in common as a pipeline has them."""

from pathlib import Path
from typing import ClassVar, Self

from models.checkpoint import CheckpointError
from models.conditioning import Conditions
from models.networks.code_transformer import CodeTransformer


class CodePrior:
    """A transformer over codes, causal or not."""

    is_causal: ClassVar[bool]

    def __init__(self, network: CodeTransformer) -> None:
        self.network = network

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load one safetensors file that knows its own configuration.

        Raises: CheckpointError.
        """
        network = CodeTransformer.load(path)
        if network.config.is_causal != cls.is_causal:
            kinds = ("in any order", "one after another")
            raise CheckpointError(
                f"{path} holds a network that draws codes {kinds[network.config.is_causal]}, but"
                f" pipeline.json names a prior that draws them {kinds[cls.is_causal]}"
            )
        return cls(network)

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
