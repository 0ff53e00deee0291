"""aMUSEd's public priors: codes of a prompt in any order, by the network of their authors."""

from pathlib import Path

from models.checkpoint import load_checkpoint, load_into
from models.networks.uvit import UVit, UVitConfig
from models.priors.base import TransformerPrior
from models.priors.masked import MaskedStage


class AmusedPrior(TransformerPrior[UVit]):
    """A public prior over codes as a pipeline has it: the network, and the stage that samples with it."""

    @classmethod
    def load(cls, path: Path) -> "AmusedPrior":
        """Load one safetensors file that knows its own configuration.

        Raises: CheckpointError.
        """
        tensors, config = load_checkpoint(path, UVitConfig)
        network = UVit(config)
        load_into(network, tensors, path)
        return cls(network)

    @property
    def codebook_size(self) -> int:
        """The number of codes that it draws from."""
        return self.network.config.codebook_size

    def make_stage(self, num_slots: int) -> MaskedStage:
        """Return the stage that samples, for at most ``num_slots`` samples at a time."""
        return MaskedStage(self.network, num_slots)
