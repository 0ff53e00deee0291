"""The input file of OpenAI's Batch API as the rows of a batch of ours."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from app.batches.intake import MAX_ROWS
from app.errors import problem_of
from app.field_errors import FieldError, field_errors
from app.openai_errors import OpenAIFailure, failure_of_problem
from app.openai_images import ImagesRequest, generate_request, pipeline_of
from app.routes.bodies import read_json
from workers.catalog import Catalog
from workers.errors import InvalidRequest, ServiceError

ENDPOINT = "/v1/images/generations"
UNREADABLE = b"null\n"  # no row, so that a batch of it has failed
_MAX_LINES = 2 * MAX_ROWS  # empty ones included, of which 64 MiB hold 67 million
_MAX_ERRORS = 100
_MAX_ID_CHARS = 128
_LINES_BETWEEN_PAUSES = 50
_PAUSE_S = 0.001  # in which this process answers requests


class BatchError(BaseModel):
    """What is wrong with a line of the input file, so that the batch is not begun."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class RowFailure(BaseModel):
    """The answer to a request that can't be served."""

    status: int
    body: OpenAIFailure


@dataclass
class BatchInput:
    """An input file as it was read.

    errors: of the file; then there are no rows. failures: of rows, by line.
    """

    rows: bytes
    errors: list[BatchError] = field(default_factory=list)
    failures: dict[int, RowFailure] = field(default_factory=dict)


class _Line(BaseModel):
    """A line of the file. Other fields are let be."""

    custom_id: str = Field(min_length=1, max_length=_MAX_ID_CHARS)
    method: str
    url: str
    body: dict[str, Any]


def read_input(lines: Iterable[bytes], catalog: Catalog) -> BatchInput:
    """Return the rows that the lines of a file are.

    As OpenAI has it, a line that is no request for pictures ends the whole batch; a request with a wrong
    field fails alone.
    """
    rows: list[bytes] = []
    read = BatchInput(b"")
    seen: dict[str, int] = {}
    for number, text in enumerate(lines, 1):
        if number % _LINES_BETWEEN_PAUSES == 0:
            time.sleep(_PAUSE_S)
        if number > _MAX_LINES:
            read.errors.append(BatchError(code="too_many_requests", message=f"at most {_MAX_LINES} lines"))
            break
        if not text.strip():
            rows.append(b"\n")
            continue
        line = _read_line(text, number, seen)
        if isinstance(line, BatchError):
            read.errors.append(line)
            if len(read.errors) == _MAX_ERRORS:
                break
            continue
        if len(seen) > MAX_ROWS:
            read.errors.append(BatchError(code="too_many_requests", message=f"at most {MAX_ROWS} requests"))
            break
        row: dict[str, Any] = {"id": line.custom_id, "operation": "generate", "body": None}
        try:
            row["body"] = _body(line.body, catalog)
        except ServiceError as error:
            status, failure = failure_of_problem(
                problem_of(error.code, str(error), errors=getattr(error, "errors", ()))
            )
            read.failures[number] = RowFailure(status=int(status), body=failure)
        rows.append(json.dumps(row, separators=(",", ":")).encode() + b"\n")
    if not seen and not read.errors:
        read.errors.append(BatchError(code="empty_file", message="the input file has no requests"))
    has_any = not read.errors and len(read.failures) < len(seen)
    read.rows = b"".join(rows) if has_any else UNREADABLE
    return read


def _read_line(text: bytes, number: int, seen: dict[str, int]) -> _Line | BatchError:
    try:
        line = _Line.model_validate(read_json(text))
    except json.JSONDecodeError as error:
        return BatchError(code="invalid_json_line", message=f"is not JSON: {error.msg}", line=number)
    except HTTPException as error:
        return BatchError(code="invalid_json_line", message=str(error.detail), line=number)
    except ValidationError as error:
        (first, *_) = field_errors(error.errors(include_url=False))
        code = "missing_required_parameter" if first.message == "is required" else "invalid_request"
        return BatchError(
            code=code, message=f"{first.field}: {first.message}", param=first.field, line=number
        )
    if line.method != "POST":
        message = f"method: must be POST, got {line.method[:20]!r}"
        return BatchError(code="invalid_method", message=message, param="method", line=number)
    if line.url != ENDPOINT:
        message = f"url: must be the batch's endpoint, {ENDPOINT}, got {line.url[:100]!r}"
        return BatchError(code="invalid_url", message=message, param="url", line=number)
    if line.custom_id in seen:
        message = f"custom_id: line {seen[line.custom_id]} has {line.custom_id!r}, too; give each its own"
        return BatchError(code="duplicate_custom_id", message=message, param="custom_id", line=number)
    seen[line.custom_id] = number
    return line


def _body(given: dict[str, Any], catalog: Catalog) -> dict[str, Any]:
    """Return a request for pictures as a row has it.

    Raises: InvalidRequest; UnknownPipeline.
    """
    try:
        request = ImagesRequest.model_validate(given)
    except ValidationError as error:
        found = field_errors(error.errors(include_url=False), tuple(ImagesRequest.model_fields))
        raise _InvalidBody(found) from None
    if request.stream or request.response_format == "url":
        name = "stream" if request.stream else "response_format"
        raise _InvalidBody([FieldError(field=name, message="pictures of a batch are b64_json; leave it out")])
    wanted = generate_request(request, pipeline_of(request.model, catalog))
    body = wanted.model_dump(mode="json", exclude_defaults=True, exclude={"deadline_s", "preview"})
    return {name: value for name, value in body.items() if value is not None}


class _InvalidBody(InvalidRequest):
    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(f"{each.field}: {each.message}" for each in self.errors[:3]))
