"""What an importer is given, and what it gives: a public checkpoint as one of the house's kinds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from models.networks.text_encoder import PromptEncoder
from models.options import ConfigError, Options


class ImportFailed(ConfigError):
    """A checkpoint that can't be taken over; the message says what was found, and what was expected."""


@dataclass(frozen=True)
class Source:
    """A checkpoint as its publisher saved it, already read safely.

    path: the file or folder. tensors: by the publisher's names, without what they were wrapped in
    (``wrapper``: "state_dict", "ema", "model", or empty). config: of ``config.json`` or of the YAML file
    beside the weights; empty where there is none. parts: the folders of a pipeline that diffusers saved, by
    name ("transformer", "vae", "scheduler"); a scheduler has a configuration alone. files: all that were
    read. notes: which weights of several were taken, say.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    wrapper: str = ""
    parts: Mapping[str, "Source"] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Imported:
    """A checkpoint in the house's own form: what ``kind.load`` of ``models/registry.py`` reads.

    config: the dataclass of that kind. tensors: by its names. defaults and labels: of a prior. latent_mean
    and latent_std: (d, 1, 1), with which a prior's latents were scaled, None where they are the
    autoencoder's own; an autoencoder holds its own as tensors of these names. prompt_encoder: of a prior that
    takes prompts. parts: those of a pipeline that it was read from, where it was given the whole. notes:
    sentences for the model card and for the person who imports: what was left out, what differs, what it
    costs.
    """

    role: Literal["autoencoder", "prior"]
    kind: str
    config: Any
    tensors: Mapping[str, Tensor]
    defaults: Options | None = None
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    latent_mean: Tensor | None = None
    latent_std: Tensor | None = None
    prompt_encoder: PromptEncoder | None = None
    parts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """What its tensors, and those of the encoder of its prompts, take."""
        encoder = {} if self.prompt_encoder is None else self.prompt_encoder.network.state_dict()
        return sum(tensor.nbytes for tensor in (*self.tensors.values(), *encoder.values()))


class Importer(Protocol):
    """One public format: a module of ``models/importers`` with these two functions."""

    def recognises(self, source: Source) -> bool:
        """Whether the names of the tensors and the configuration are those of this format."""

    def read(self, source: Source, settings: Mapping[str, str]) -> Imported:
        """Return a checkpoint of this format in the house's form.

        settings: what a file can't say of itself, as a person gave it (``image_size_px``, say).

        Raises: ImportFailed naming what is missing, left over, or of another shape.
        """
