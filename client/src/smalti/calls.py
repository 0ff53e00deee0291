"""Requests as they go out: what to send where, and whether it makes a job."""

import base64
import io
import mimetypes
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from smalti.arguments import check_sendable, shown
from smalti.errors import InvalidArgument, NoBytes, UnusableSource
from smalti.fields import Encoded, Operation, Source
from smalti.models import Codes, File, Latents, Result
from smalti.sources import bytes_of, file_of, files_of

JSON = "application/json"
NPY = "application/x-npy"
EDIT_ROLES = ("source", "mask")  # of what is generated from pictures


@dataclass(frozen=True)
class FormFile:
    """A file in a form."""

    field: str
    name: str
    content: bytes
    media_type: str | None = None


@dataclass(frozen=True)
class Call:
    """One request, to be sent as often as it takes.

    path: below the base address, or an address that the service gave. read_timeout_s: instead of the
    connection's own.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, str] | None = None
    files: Sequence[FormFile] = ()
    content: bytes | None = None
    read_timeout_s: float | None = None

    @property
    def makes_job(self) -> bool:
        """Whether sending it twice could make two jobs; a second upload of a file only expires."""
        return self.method == "POST" and self.path != "files"


_LATENTS = {"url", "shape", "dtype", "tokenizer", "lengths"}


def work_call(
    operation: Operation, fields: Mapping[str, Any], idempotency_key: str | None, wait_s: float = 0
) -> Call:
    """Return the request that makes a job and waits so long for it. Fields that are None are left out.

    Raises: UnusableSource; NoBytes; MissingPackage.
    """
    key = key_of(idempotency_key)
    headers = {"Accept": JSON, "Idempotency-Key": key}
    if wait_s > 0:
        headers["Prefer"] = f"wait={wait_s:.3f}"
    fields = dict(fields)
    source: Source | Sequence[Source] | None = fields.pop("source", None) if operation == "encode" else None
    given = {name: _plain(value) for name, value in fields.items() if value is not None}
    match operation:
        case "encode":
            if source is None:
                raise UnusableSource("source: is required; give a path, bytes, an image or a list of them")
            check_sendable(given)
            files = files_of(source)
            if any(isinstance(file, File) for file in files):
                return Call("POST", operation, headers, json=body_of(operation, {**fields, "source": files}))
            form = {name: _text(value) for name, value in given.items()}
            # A boundary of its own, so that another try has the same bytes: a key stands for one body.
            boundary = uuid.uuid5(uuid.NAMESPACE_OID, key).hex
            headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
            parts = [FormFile("source", "source", file) for file in files if isinstance(file, bytes)]
            return Call("POST", operation, headers, form=form, files=parts)
        case "decode" if (latents := _latents_file(fields.get("codes"))) is not None:
            tokenizer, file = latents
            query = {"tokenizer": tokenizer, **given}
            query.pop("codes")
            check_sendable(query)
            path = f"{operation}?{urlencode({name: value for name, value in query.items() if value})}"
            return Call("POST", path, {**headers, "Content-Type": NPY}, content=file)
        case "decode" | "generate":
            return Call("POST", operation, headers, json=body_of(operation, fields))
    raise InvalidArgument("operation", f"is generate, encode or decode, got {shown(operation)}")


def body_of(operation: Operation, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request as JSON. Fields that are None are left out.

    Raises: UnusableSource; NoBytes; MissingPackage.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    body: dict[str, Any] = {}
    if operation == "encode" and "source" in given:
        body["source"] = [_inline(file) for file in files_of(given.pop("source"))]
    elif operation == "generate":
        body = {role: _inline(file_of(given.pop(role), role)) for role in EDIT_ROLES if role in given}
    elif operation == "decode":
        body = codes_body(_plain(given.pop("codes", None)))
    return body | {name: _plain(value) for name, value in given.items()}


def upload_of(source: Source, name: str | None, media_type: str | None) -> FormFile:
    """Return a file as a form has it, with the name that its path has where none is given.

    Raises: UnusableSource; MissingPackage.
    """
    if name is None:
        name = Path(source).name if isinstance(source, (str, os.PathLike)) else "file"
    media_type = media_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return FormFile("file", name, bytes_of(source), media_type)


def key_of(idempotency_key: str | None) -> str:
    """Return the key that was given, checked, or a new one. Raises: InvalidArgument."""
    key = idempotency_key or uuid.uuid4().hex
    if not isinstance(key, str) or not re.fullmatch(r"[ -~]{1,255}", key):
        raise InvalidArgument(
            "idempotency_key", f"is 1 to 255 characters of printable ASCII, got {shown(key)}"
        )
    return key


def _inline(file: bytes | File) -> Any:
    """Return a file as JSON has it."""
    return {"file": file.id} if isinstance(file, File) else base64.b64encode(file).decode()


def _latents_file(encoded: Any) -> tuple[str | None, bytes] | None:
    """Return latents that no job of the service has as (tokenizer, NumPy file): an array, or several jobs'.

    Raises: NoBytes; InvalidArgument.
    """
    if isinstance(encoded, Result) and encoded.latents is not None:
        encoded = encoded.latents
    if isinstance(encoded, Latents):
        return (encoded.tokenizer, encoded.bytes()) if encoded.url is None else None
    if getattr(getattr(encoded, "dtype", None), "kind", "") != "f":
        return None
    import numpy  # which made the array

    if not numpy.isfinite(encoded).all():
        raise InvalidArgument("codes", "must be finite, got NaN or infinity, as of a sample that failed")
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.ascontiguousarray(encoded, "<f4"))
    return None, buffer.getvalue()


def codes_body(encoded: Encoded | None) -> dict[str, Any]:
    """Return codes or latents as /decode takes them, from anything that holds them.

    Raises: NoBytes for a result without any.
    """
    match encoded:
        case Result(latents=Latents() as latents) | (Latents() as latents):
            return {"latents": latents.model_dump(mode="json", include=_LATENTS)}
        case Result(codes=None):
            raise NoBytes(
                f"this result of {encoded.operation} holds no codes: encode returns them, and generate with"
                " return_codes=True"
            )
        case Result(codes=Codes() as codes) | (Codes() as codes):
            return {"codes": codes.model_dump(mode="json", exclude_unset=True)}
        case Mapping():
            is_codes = "grid" in encoded and "operation" not in encoded
            return {"codes": dict(encoded)} if is_codes else dict(encoded)
        case None:
            return {}
    return {"codes": encoded}


def _plain(value: Any) -> Any:
    """Return what JSON can say: NumPy's numbers and arrays, and lists of them, as Python's own."""
    if isinstance(value, (list, tuple)):
        return [each.tolist() if hasattr(each, "tolist") else each for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _text(value: Any) -> str:
    """Return what a form can say."""
    return str(value).lower() if isinstance(value, bool) else str(value)
