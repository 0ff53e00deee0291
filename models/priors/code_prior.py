"""What priors over codes have in common as a pipeline has them."""

from pathlib import Path
from typing import ClassVar, Self

from models.checkpoint import CheckpointError
from models.networks.code_transformer import CodeTransformer
from models.priors.base import TransformerPrior


class CodePrior(TransformerPrior[CodeTransformer]):
    """A transformer over codes, causal or not."""

    is_causal: ClassVar[bool]

    @property
    def codebook_size(self) -> int:
        """The number of codes that it draws from."""
        return self.network.config.codebook_size

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
