"""JSON Lines to the rows of a batch: one line at a time, whatever is on it."""

import json
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import Field, ValidationError
from starlette.exceptions import HTTPException

from app.admission import MAX_BODY_BYTES
from app.batches.file import BatchFile
from app.batches.records import NewRow
from app.field_errors import field_errors
from app.files import FILE_ID
from app.routes.bodies import read_json
from workers.errors import InvalidRequest
from workers.messages import JobError, Message, Operation

MAX_ROWS = 100_000
MAX_LINE_BYTES = max(MAX_BODY_BYTES[f"/{operation}"] for operation in ("generate", "encode", "decode"))
_MAX_ID_CHARS = 128
_TOO_MANY_ROWS = f"a batch has at most {MAX_ROWS} rows, got more; send several"
_NO_ROW = "there is no row; send one JSON object a line"
_ROWS_BETWEEN_PAUSES = 200
_PAUSE_S = 0.001  # in which this process answers requests


class Unreadable(ValueError):
    """Nothing can be made of the rows; says why."""


class Interrupted(Exception):
    """This process is about to end; another begins anew."""


class Row(Message):
    """A row as its client sends it."""

    id: Annotated[str, Field(min_length=1, max_length=_MAX_ID_CHARS)]
    operation: Operation
    body: dict[str, Any]


def take_in(batch: BatchFile, chunks: Iterable[bytes], is_ending: threading.Event) -> None:
    """Read all rows of a batch into its file.

    Raises: Unreadable; RepeatedId; Interrupted; StorageFull, StorageUnavailable.
    """
    batch.take_in(_rows(chunks, is_ending))


def check_num_rows(source: bytes) -> None:
    """Look at what would be a batch, without reading its rows.

    Raises: Unreadable when it has none, or too many.
    """
    if not source.strip():
        raise Unreadable(_NO_ROW)
    if source.count(b"\n") >= MAX_ROWS and sum(1 for _ in _lines([source])) > MAX_ROWS:
        raise Unreadable(_TOO_MANY_ROWS)


def read_row(line: bytes) -> Row:
    """Return what a line says.

    Raises: InvalidRequest.
    """
    return Row.model_validate(_read_object(line))


def _rows(chunks: Iterable[bytes], is_ending: threading.Event) -> Iterator[NewRow]:
    num_rows = num_bad = 0
    first_error = ""
    for number, line in _lines(chunks):
        num_rows += 1
        if num_rows > MAX_ROWS:
            raise Unreadable(_TOO_MANY_ROWS)
        if num_rows % _ROWS_BETWEEN_PAUSES == 0:
            time.sleep(_PAUSE_S)
            if is_ending.is_set():
                raise Interrupted
        row = _read_row(number, line)
        if row.error is not None:
            num_bad += 1
            first_error = first_error or json.loads(row.error)["message"]
        yield row
    if not num_rows:
        raise Unreadable(_NO_ROW)
    if num_bad == num_rows:
        raise Unreadable(f"no line is a row; the first: {first_error}")


def _lines(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that have something on them, with their numbers.

    Of one that is too long the beginning stands for it.
    """
    number, begun = 1, bytearray()
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        begun += first[: MAX_LINE_BYTES + 1 - len(begun)]
        for part in others:
            if line := bytes(begun).strip():
                yield number, line
            number, begun = number + 1, bytearray(part[: MAX_LINE_BYTES + 1])
    if line := bytes(begun).strip():
        yield number, line


def _read_row(number: int, line: bytes) -> NewRow:
    row_id = None
    try:
        if len(line) > MAX_LINE_BYTES:
            raise InvalidRequest(f"a line is at most {MAX_LINE_BYTES} bytes, got more")
        given = _read_object(line)
        row_id = _usable_id(given.get("id"))
        row = Row.model_validate(given)
    except ValidationError as error:
        told = "; ".join(f"{each.field}: {each.message}" for each in _told(error))
        return NewRow(number, row_id, b"", _error_text(number, told))
    except InvalidRequest as error:
        return NewRow(number, row_id, b"", _error_text(number, str(error)))
    return NewRow(number, row.id, line, files=_uploads_in(row.body))


def _uploads_in(body: dict[str, Any]) -> tuple[str, ...]:
    """Return the ids of the uploads that a request may name as its sources."""
    values = [each for value in body.values() for each in (value if isinstance(value, list) else [value])]
    named = [value.get("file") for value in values if isinstance(value, dict)]
    return tuple(file_id for file_id in named if isinstance(file_id, str) and FILE_ID.fullmatch(file_id))


def _usable_id(value: object) -> str | None:
    try:
        is_usable = isinstance(value, str) and 0 < len(value.encode()) <= _MAX_ID_CHARS
    except UnicodeEncodeError:  # half of a surrogate pair
        is_usable = False
    return str(value) if is_usable else None


def _read_object(line: bytes) -> dict[str, Any]:
    """Raises: InvalidRequest."""
    try:
        given = read_json(line)
    except HTTPException as error:
        raise InvalidRequest(error.detail.removeprefix("body: ")) from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(given, dict):
        raise InvalidRequest("should be an object with id, operation and body")
    return given


def _told(error: ValidationError) -> tuple[Any, ...]:
    return field_errors(error.errors(include_url=False), tuple(Row.model_fields))[:3]


def _error_text(number: int, message: str) -> str:
    return JobError(code="invalid_request", message=f"line {number}: {message}").model_dump_json()
