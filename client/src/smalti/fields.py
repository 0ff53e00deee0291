"""The fields of requests, once, for type checkers and editors. What each means: the service's /docs."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, Union

from smalti.models import Codes, File, Latents, Result

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

Operation = Literal["generate", "encode", "decode"]


class BinaryFile(Protocol):
    """A file that is open for reading bytes."""

    def read(self) -> bytes:
        """Return what is left of it."""
        ...


# A str is a path; an array is (height, width[, 1, 3 or 4]) of uint8.
Source: TypeAlias = Union[str, os.PathLike[str], bytes, BinaryFile, File, "Image", "npt.NDArray[Any]"]
Encoded: TypeAlias = Union[Result, Codes, Latents, Mapping[str, Any], list[Any], "npt.NDArray[Any]"]


class WorkFields(TypedDict, total=False):
    """What every request for work may say."""

    pipeline: str
    priority: Literal["interactive", "batch"]
    deadline_s: float
    webhook_url: str


class GenerateFields(WorkFields, total=False):
    """What a request to generate may say, beside its prompt."""

    source: Source
    mask: Source
    strength: float
    width_px: int
    height_px: int

    negative_prompt: str
    labels: Mapping[str, str | int]
    class_label: str | int
    style: str | int
    group: str | int
    num_outputs: int
    seed: int
    num_steps: int
    guidance_scale: float
    sampler: str
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_window: int
    format: str
    background: Literal["white", "transparent"]
    return_codes: bool
    preview: bool


class EncodeFields(WorkFields, total=False):
    """What a request to encode may say, beside its sources."""

    effort: int
    posterior: Literal["mean", "sample"]
    seed: int
    return_psnr: bool


class DecodeFields(WorkFields, total=False):
    """What a request to decode may say, beside its codes."""

    tokenizer: str
    format: str
