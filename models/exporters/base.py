"""What an exporter does: a pipeline, or a part of it, as another project's files."""

from pathlib import Path
from typing import Protocol

from models.options import ConfigError
from models.pipeline import Pipeline


class ExportFailed(ConfigError):
    """A pipeline that a format can't hold; the message says what of it, and why."""


class Exporter(Protocol):
    """Writes one kind of autoencoder or prior in one format: a line in ``EXPORTERS`` of the registry."""

    def __call__(self, pipeline: Pipeline, folder: Path) -> None:
        """Write the pipeline's part of this kind below ``folder``, in a folder of the format's own name.

        In diffusers' format: ``vqvae/`` or ``vae/``; ``transformer/`` and ``scheduler/``. The folder is there
        and has nothing of this part yet. Tensors that the format has no place for, and figures that it can't
        tell, are refused instead of dropped.

        Raises: ExportFailed, before anything is written.
        """
