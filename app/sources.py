"""Files that come in: fitted to their pipeline, and stored as one lossless blob each."""

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from app.files import FileNotKnown, FileStore, Upload
from models.media.base import Array, InvalidMedia, MediumSpec, medium_of
from models.media.image import ImageSpec
from models.media.mask import load_mask, load_transparency, picture_size
from models.spec import PipelineSpec
from workers.errors import InvalidRequest, InvalidSource
from workers.messages import (
    MAX_SOURCE_MIB,
    BlobReference,
    DecodeRequest,
    EncodeRequest,
    FileReference,
    GenerateRequest,
    Request,
    Source,
)

if TYPE_CHECKING:
    from app.services import Services


MIB = 2**20
MAX_SOURCES_MIB = 64  # of all files of a request


@dataclass(frozen=True)
class SourceFile:
    """A file as its client sent it. field: where, as an error calls it.

    role: what it is for. signal is to be encoded, source to be drawn again; transparency is a mask that is
    white where the picture is transparent.
    """

    field: str
    content: bytes | str | Upload  # str: in base64
    role: Literal["signal", "source", "mask", "transparency"] = "source"


def files_of(request: Request, uploads: FileStore, viewer: str | None) -> list[SourceFile]:
    """Return the files of a request; uploads among them are found, and read when they are stored.

    viewer: the API key whose uploads may be named; None for everyone's.

    Raises: InvalidRequest naming the field.
    """
    match request:
        case EncodeRequest():
            files = find_files({"source": request.source, "image": request.image}, uploads, viewer)
            return [replace(file, role="signal") for file in files]
        case GenerateRequest():
            files = find_files({"source": request.source, "mask": request.mask}, uploads, viewer)
            return [replace(file, role="mask") if file.field == "mask" else file for file in files]
        case DecodeRequest():
            return []


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
    medium = medium_of(pipeline.medium.medium)

    def announced() -> list[int]:
        return [medium.decoding_bytes(_content(file, medium.name)) for file in files]

    def store(array: Array) -> BlobReference:
        data = medium.save(array, medium.lossless_format)
        return services.blobs.put(data, medium.formats[medium.lossless_format])

    async def decoded(file: SourceFile, its_bytes: int, function: Callable[..., Array], *given: Any) -> Array:
        data = await asyncio.to_thread(_content, file, medium.name)
        try:
            return await services.decoders.decode(its_bytes, function, data, *given)
        except InvalidMedia as error:
            raise _unusable(file, medium.name, error) from error

    stored = []
    num_bytes = await asyncio.to_thread(announced)
    with services.decoders.admitted(sum(num_bytes)):
        if _sizes_matter(files, pipeline):
            sizes = [
                await decoded(file, its_bytes, picture_size)
                for file, its_bytes in zip(files, num_bytes, strict=True)
            ]
            _check_sizes(files, sizes, pipeline)
        for file, its_bytes in zip(files, num_bytes, strict=True):
            array = await decoded(file, its_bytes, *_reader(file, pipeline))
            stored.append(await asyncio.to_thread(store, array))
    return stored


def fit_files(files: Sequence[SourceFile], pipeline: PipelineSpec) -> list[Array]:
    """Return the files' contents as the pipeline takes them, decoded in this process.

    Raises: InvalidSource naming the field.
    """
    medium = pipeline.medium.medium

    def decoded(file: SourceFile, function: Callable[..., Array], *given: Any) -> Array:
        try:
            return function(_content(file, medium), *given)
        except InvalidMedia as error:
            raise _unusable(file, medium, error) from error

    if _sizes_matter(files, pipeline):
        _check_sizes(files, [decoded(file, picture_size) for file in files], pipeline)
    return [decoded(file, *_reader(file, pipeline)) for file in files]


def _reader(file: SourceFile, pipeline: PipelineSpec) -> tuple[Callable[..., Array], MediumSpec]:
    """Return what decodes a file, and what it is to be fitted to."""
    match file.role:
        case "signal":
            return medium_of(pipeline.medium.medium).load, pipeline.medium
        case "source":
            return medium_of(pipeline.medium.medium).load, pipeline.inputs["source"]
        case "mask":
            return load_mask, pipeline.inputs["mask"]
        case "transparency":
            return load_transparency, pipeline.inputs["mask"]


def _sizes_matter(files: Sequence[SourceFile], pipeline: PipelineSpec) -> bool:
    return len({file.role for file in files}) > 1 or (files[0].role == "source" and pipeline.needs_source)


def _check_sizes(files: Sequence[SourceFile], sizes: Sequence[Array], pipeline: PipelineSpec) -> None:
    """Raises: InvalidSource when a mask has another size than its source, or this another than is needed."""
    size, *others = (f"{width} x {height} px" for width, height in sizes)
    if pipeline.needs_source:
        wanted = pipeline.takes["source"]
        assert isinstance(wanted, ImageSpec)
        if size != (needed := f"{wanted.width_px} x {wanted.height_px} px"):
            raise InvalidSource(
                "image", f"{files[0].field}: {pipeline.name} takes {needed}, got {size}; send it in that size"
            )
    for file, its_size in zip(files[1:], others, strict=True):
        if its_size != size:
            raise InvalidSource(
                "image", f"{file.field}: must have the size of its source, {size}, got {its_size}"
            )


def _unusable(file: SourceFile, medium: str, error: InvalidMedia) -> InvalidSource:
    problem = str(error).removeprefix(f"{medium}: ")
    return InvalidSource(medium, f"{file.field}: {problem}")


def _content(file: SourceFile, medium: str) -> bytes:
    match file.content:
        case bytes():
            data = file.content
        case str():
            data = _from_base64(file.field, file.content, medium)
        case Upload():
            try:
                data = file.content.read()
            except FileNotKnown as error:
                raise InvalidRequest(f"{file.field}: {error}") from None
    if not data:
        raise InvalidSource(medium, f"{file.field}: is empty")
    return data


def _from_base64(field: str, text: str, medium: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidSource(
            medium,
            f"{field}: is not valid base64; send the file's bytes in base64, without line breaks or"
            " 'data:...;base64,'",
        ) from None
