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

    Raises: InvalidSource naming the field; StorageFull.
    """
    spec = pipeline.medium

    def store(file: SourceFile) -> BlobReference:
        medium = medium_of(spec.medium)
        data = medium.save(fit(file, spec), medium.lossless_format)
        return services.blobs.put(data, medium.formats[medium.lossless_format])

    stored = []
    for file in files:
        async with services.decode_slots:
            stored.append(await asyncio.to_thread(store, file))
    return stored


def fit(file: SourceFile, spec: MediumSpec) -> Array:
    """Return the file's contents as the pipeline takes them.

    Raises: InvalidSource naming the field.
    """
    data = file.content if isinstance(file.content, bytes) else _from_base64(file, spec)
    try:
        if not data:
            raise InvalidMedia("is empty")
        return medium_of(spec.medium).load(data, spec)
    except InvalidMedia as error:
        problem = str(error).removeprefix(f"{spec.medium}: ")
        raise InvalidSource(spec.medium, f"{file.field}: {problem}") from error


def _from_base64(file: SourceFile, spec: MediumSpec) -> bytes:
    try:
        return base64.b64decode(file.content, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidSource(
            spec.medium,
            f"{file.field}: is not valid base64; send the file's bytes in base64, without line breaks or"
            " 'data:...;base64,'",
        ) from None
