"""Files that come in: fitted to their pipeline, and stored as one lossless blob each."""

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.files import FileNotKnown, FileStore, Upload
from models.media.base import Array, InvalidMedia, MediumSpec, medium_of
from models.spec import PipelineSpec
from workers.errors import InvalidRequest, InvalidSource
from workers.messages import MAX_SOURCE_MIB, BlobReference, EncodeRequest, FileReference, Source

if TYPE_CHECKING:
    from app.services import Services


MIB = 2**20
MAX_SOURCES_MIB = 64  # of all files of a request


@dataclass(frozen=True)
class SourceFile:
    """A file as its client sent it. field: where, as an error calls it."""

    field: str
    content: bytes | str | Upload  # str: in base64


def files_of(request: EncodeRequest, uploads: FileStore, viewer: str | None) -> list[SourceFile]:
    """Return the files of a request; uploads among them are found, and read when they are stored.

    viewer: the API key whose uploads may be named; None for everyone's.

    Raises: InvalidRequest naming the field.
    """
    return find_files({"source": request.source, "image": request.image}, uploads, viewer)


def find_files(
    fields: Mapping[str, Source | Sequence[Source] | None], uploads: FileStore, viewer: str | None
) -> list[SourceFile]:
    """Return the files that fields of a request have, in their order.

    Raises: InvalidRequest naming the field.
    """
    files = []
    for name, value in fields.items():
        if isinstance(value, (str, FileReference)):
            files.append(_find_file(name, value, uploads, viewer))
        elif value is not None:
            files += [_find_file(f"{name}[{i}]", each, uploads, viewer) for i, each in enumerate(value)]
    num_bytes = sum(file.content.num_bytes for file in files if isinstance(file.content, Upload))
    if num_bytes > MAX_SOURCES_MIB * MIB:
        raise InvalidRequest(
            f"{next(iter(fields))}: the files of a request are at most {MAX_SOURCES_MIB} MiB together, got"
            f" {num_bytes / MIB:.1f} MiB"
        )
    return files


def _find_file(field: str, source: Source, uploads: FileStore, viewer: str | None) -> SourceFile:
    if isinstance(source, str):
        return SourceFile(field, source)
    try:
        upload = uploads.use(source.file, viewer)
    except FileNotKnown as error:
        raise InvalidRequest(f"{field}: {error}") from None
    if upload.num_bytes > MAX_SOURCE_MIB * MIB:
        raise InvalidRequest(
            f"{field}: a file is at most {MAX_SOURCE_MIB} MiB, got {upload.num_bytes / MIB:.1f} MiB"
        )
    return SourceFile(field, upload)


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
    match file.content:
        case bytes():
            data = file.content
        case str():
            data = _from_base64(file.field, file.content, spec)
        case Upload():
            try:
                data = file.content.read()
            except FileNotKnown as error:
                raise InvalidRequest(f"{file.field}: {error}") from None
    if not data:
        raise InvalidSource(spec.medium, f"{file.field}: is empty")
    return data


def _from_base64(field: str, text: str, spec: MediumSpec) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidSource(
            spec.medium,
            f"{field}: is not valid base64; send the file's bytes in base64, without line breaks or"
            " 'data:...;base64,'",
        ) from None
