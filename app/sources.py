"""Files that come in: read once, fitted to their pipeline, and stored as one lossless blob each."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.media.base import Array, InvalidMedia, MediumSpec, medium_of
from models.spec import PipelineSpec
from workers.errors import InvalidSource
from workers.messages import BlobReference, EncodeRequest

if TYPE_CHECKING:
    from app.services import Services


@dataclass(frozen=True)
class SourceFile:
    """A file as its client sent it. field: where, as an error calls it."""

    field: str
    content: bytes | str  # str: in base64


def files_of(request: EncodeRequest) -> list[SourceFile]:
    """Return the files in the body of a request."""
    if isinstance(request.source, list):
        return [SourceFile(f"source[{index}]", each) for index, each in enumerate(request.source)]
    return [
        SourceFile(field, content)
        for field, content in (("source", request.source), ("image", request.image))
        if content is not None
    ]


async def store_sources(
    files: Sequence[SourceFile], pipeline: PipelineSpec, services: "Services"
) -> list[BlobReference]:
    """Return where the files are stored, fitted to what the pipeline takes.

    Cancelling it ends the decoding.

    Raises: InvalidSource naming the field; TooBusy; StorageFull.
    """
    spec = pipeline.medium
    medium = medium_of(spec.medium)

    def announced() -> list[int]:
        return [medium.decoding_bytes(_content(file, spec)) for file in files]

    def store(array: Array) -> BlobReference:
        data = medium.save(array, medium.lossless_format)
        return services.blobs.put(data, medium.formats[medium.lossless_format])

    stored = []
    num_bytes = await asyncio.to_thread(announced)
    with services.decoders.admitted(sum(num_bytes)):
        for file, its_bytes in zip(files, num_bytes, strict=True):
            data = await asyncio.to_thread(_content, file, spec)
            try:
                array = await services.decoders.decode(its_bytes, medium.load, data, spec)
            except InvalidMedia as error:
                raise _unusable(file, spec, error) from error
            stored.append(await asyncio.to_thread(store, array))
    return stored


def fit(file: SourceFile, spec: MediumSpec) -> Array:
    """Return the file's contents as the pipeline takes them, decoded in this process.

    Raises: InvalidSource naming the field.
    """
    try:
        return medium_of(spec.medium).load(_content(file, spec), spec)
    except InvalidMedia as error:
        raise _unusable(file, spec, error) from error


def _unusable(file: SourceFile, spec: MediumSpec, error: InvalidMedia) -> InvalidSource:
    problem = str(error).removeprefix(f"{spec.medium}: ")
    return InvalidSource(spec.medium, f"{file.field}: {problem}")


def _content(file: SourceFile, spec: MediumSpec) -> bytes:
    data = file.content if isinstance(file.content, bytes) else _from_base64(file, spec)
    if not data:
        raise InvalidSource(spec.medium, f"{file.field}: is empty")
    return data


def _from_base64(file: SourceFile, spec: MediumSpec) -> bytes:
    try:
        return base64.b64decode(file.content, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidSource(
            spec.medium,
            f"{file.field}: is not valid base64; send the file's bytes in base64, without line breaks or"
            " 'data:...;base64,'",
        ) from None
