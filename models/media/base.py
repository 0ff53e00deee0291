"""What a medium offers: its files as arrays and back, within bounds. Without torch.

An *array* is what a file holds (a picture's uint8 pixels, say); a *signal* is the array as an autoencoder
takes and gives it: float32 (C, *size), usually in [-1, 1].
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

import numpy.typing as npt
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from models.media.provenance import Provenance

Array = npt.NDArray[Any]


class InvalidMedia(ValueError):
    """A file that can't be used; the message says what is wrong, the limit and what was got."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MediumSpec:
    """What a pipeline makes or takes of one medium; each medium adds its sizes."""

    medium: str


@dataclass(frozen=True)
class MediaInfo:
    """What a file is. Sizes that its medium doesn't have are None."""

    media_type: str
    width_px: int | None = None
    height_px: int | None = None
    duration_s: float | None = None
    sample_rate_hz: int | None = None
    num_frames: int | None = None
    text: str | None = None


class Medium(Protocol):
    """One kind of file; ``MEDIA`` names one object for each."""

    name: str
    formats: Mapping[str, str]  # "png" → "image/png"; the default first
    lossless_format: str  # the one in which a source is stored
    spec_class: type[MediumSpec]

    def load(self, data: bytes, spec: Any) -> Array:
        """Return a file's contents, fitted to ``spec``.

        Raises: InvalidMedia.
        """

    def decoding_bytes(self, data: bytes) -> int:
        """Return about how much memory ``load`` takes, from the file's first bytes alone."""

    def save(
        self,
        array: Array,
        format: str,
        *,
        background: str = "white",
        provenance: Provenance | None = None,
    ) -> bytes:
        """Return a file; the same arguments give the same bytes.

        background: what a picture stands on, "white" or "transparent"; other media have none. provenance:
        what the file says of itself.
        """

    def info(self, data: bytes) -> MediaInfo:
        """Return what a file is, from its header alone.

        Raises: InvalidMedia.
        """

    def preview(self, array: Array) -> tuple[bytes, str] | None:
        """Return a small file that shows what is on its way, and its media type; None where none can."""

    def to_signal(self, array: Array) -> Array:
        """Return the signal (C, *size) float32 of an array."""

    def from_signal(self, signal: Array) -> Array:
        """Return the array of a signal (C, *size) float32."""


MEDIA = {"image": "models.media.image:IMAGE"}


def medium_of(name: str) -> Medium:
    """Return the medium of this name.

    Raises: KeyError.
    """
    module, _, attribute = MEDIA[name].partition(":")
    medium: Medium = getattr(import_module(module), attribute)
    return medium
