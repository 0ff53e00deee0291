"""Autoencoders whose latents a prior learns."""

from pathlib import Path

from models.autoencoders.shuffle import ShuffleAutoencoder
from models.autoencoders.vq import Tokenizer
from models.registry import AUTOENCODERS, load_kind
from models.spec import SPEC_FILE, PipelineSpec
from training.config_file import TrainingError


def load_autoencoder(path: Path) -> ShuffleAutoencoder:
    """Load an autoencoder of our own: of the kind that ``pipeline.json`` beside it tells, else a tokenizer.

    Raises: TrainingError where it isn't our own; ConfigError where it, or what tells of it, can't be read.
    """
    beside = path.with_name(SPEC_FILE)
    kind = Tokenizer.kind
    if beside.exists():
        spec = PipelineSpec.load(beside)
        kind = spec.autoencoders[spec.medium.medium]
    found = load_kind(AUTOENCODERS, kind)
    if not issubclass(found, ShuffleAutoencoder):
        raise TrainingError(
            f"tokenizer: {path} is of the kind {kind}, which was imported: priors are trained on those that"
            " `smalti train tokenizer` and `smalti train autoencoder` make"
        )
    autoencoder: ShuffleAutoencoder = found.load(path)
    return autoencoder
