"""LlamaGen's public priors over classes: codes in turn, by the network of its authors."""

from pathlib import Path

from models.checkpoint import load_checkpoint, load_into
from models.networks.llamagen import LlamaGen, LlamaGenConfig
from models.priors.autoregressive import AutoregressiveStage
from models.priors.base import LabelPrior


class LlamaGenPrior(LabelPrior[LlamaGen]):
    """A public prior over codes as a pipeline has it: the network, and the stage that samples with it."""

    def __init__(self, network: LlamaGen) -> None:
        self.network = network

    @classmethod
    def load(cls, path: Path) -> "LlamaGenPrior":
        """Load one safetensors file that knows its own configuration.

        Raises: CheckpointError.
        """
        tensors, config = load_checkpoint(path, LlamaGenConfig)
        network = LlamaGen(config)
        load_into(network, tensors, path)
        return cls(network)

    @property
    def codebook_size(self) -> int:
        """The number of codes that it draws from."""
        return self.network.config.codebook_size

    def make_stage(self, num_slots: int) -> AutoregressiveStage:
        """Return the stage that samples, for at most ``num_slots`` samples at a time."""
        return AutoregressiveStage(self.network, num_slots)
