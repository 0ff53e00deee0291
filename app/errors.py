"""Failures as HTTP: each code has one status, and each answer one problem+json body (RFC 9457)."""

import difflib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workers.errors import InvalidRequest, QueueFull, ServiceError
from workers.messages import JobError

logger = logging.getLogger(__name__)

PROBLEM_MEDIA_TYPE = "application/problem+json"
_DEFAULT_RETRY_AFTER_S = 2
_MAX_VALUE_CHARS = 60


class BodyTooLarge(ServiceError):
    code = "body_too_large"


class UnsupportedMediaType(ServiceError):
    code = "unsupported_media_type"


class NotAcceptable(ServiceError):
    code = "not_acceptable"


class NotReady(ServiceError):
    code = "not_ready"


@dataclass(frozen=True)
class _Kind:
    status: HTTPStatus
    title: str


_KINDS: dict[str, _Kind] = {
    "bad_request": _Kind(HTTPStatus.BAD_REQUEST, "The request can't be read"),
    "not_found": _Kind(HTTPStatus.NOT_FOUND, "There is nothing at this address"),
    "method_not_allowed": _Kind(HTTPStatus.METHOD_NOT_ALLOWED, "This address takes another method"),
    "not_acceptable": _Kind(HTTPStatus.NOT_ACCEPTABLE, "The answer has no such media type"),
    "body_too_large": _Kind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large"),
    "unsupported_media_type": _Kind(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body has another media type"),
    "invalid_request": _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The request can't be served as it is"),
    "invalid_image": _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The image can't be used"),
    "invalid_codes": _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The codes can't be used"),
    "unknown_pipeline": _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "There is no such pipeline"),
    "queue_full": _Kind(HTTPStatus.TOO_MANY_REQUESTS, "Too many jobs wait"),
    "queue_unavailable": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "The queue does not answer"),
    "not_ready": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "Not ready"),
    "job_not_found": _Kind(HTTPStatus.NOT_FOUND, "There is no such job or image"),
    "job_cancelled": _Kind(HTTPStatus.CONFLICT, "The job was cancelled"),
    "deadline_exceeded": _Kind(HTTPStatus.GATEWAY_TIMEOUT, "The job was not done within its deadline"),
    "out_of_memory": _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The job is too large for this server"),
    "not_finite": _Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "The model failed on this request"),
    "storage_full": _Kind(HTTPStatus.INSUFFICIENT_STORAGE, "The result could not be stored"),
    "worker_lost": _Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "The workers that ran the job died"),
    "internal_error": _Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "Something failed inside the server"),
}
_RETRIED = frozenset({"queue_full", "queue_unavailable", "not_ready"})


class FieldError(BaseModel):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(BaseModel):
    """Why a request was not served: `code` is stable, `detail` says what to do."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="`urn:smalti:error:` and the code.")
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable; match on this.")
    instance: str | None = Field(default=None, description="The job's address, for the failure of a job.")
    job_id: str | None = None
    errors: tuple[FieldError, ...] | None = Field(default=None, description="Each bad field, if some are.")


class InvalidFields(InvalidRequest):
    """Fields that are missing, unknown or out of bounds."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.errors = tuple(errors)


class InternalErrors:
    """Middleware that logs what nobody expected, and answers 500.

    A handler for Exception would answer too, but Starlette then raises the exception on, and the server
    closes a connection on which its client may have sent the next request already.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def watch(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            if scope["type"] != "http" or has_started:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"][:200])
            problem = problem_of("internal_error", "The server's log says more.")
            await problem_response(problem)(scope, receive, send)


def problem_of(
    code: str, detail: str, *, job_id: str | None = None, errors: tuple[FieldError, ...] | None = None
) -> Problem:
    """Describe a failure; one of an unknown code has the status of an internal error."""
    kind = _KINDS.get(code, _KINDS["internal_error"])
    return Problem(
        type=f"urn:smalti:error:{code}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        code=code,
        instance=None if job_id is None else f"/jobs/{job_id}",
        job_id=job_id,
        errors=errors,
    )


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """Answer with a problem; those that pass with time say when to try again."""
    headers = {
        **({"Retry-After": str(_DEFAULT_RETRY_AFTER_S)} if problem.code in _RETRIED else {}),
        **(headers or {}),
    }
    return Response(
        problem.model_dump_json(exclude_none=True), problem.status, headers, media_type=PROBLEM_MEDIA_TYPE
    )


def job_problem_response(job_id: str, error: JobError) -> Response:
    """Answer with the failure of a job."""
    return problem_response(
        problem_of(error.code, error.message, job_id=job_id), {"Content-Location": f"/jobs/{job_id}"}
    )


def field_errors(errors: Sequence[ErrorDetails | Any], fields: Sequence[str] = ()) -> tuple[FieldError, ...]:
    """Say what pydantic found, one entry a field, with the value where it is short.

    fields: the names that there are, to point out a misspelt one.
    """
    found: dict[str, list[ErrorDetails | Any]] = {}
    for error in errors:
        found.setdefault(_field_name(error["loc"]), []).append(error)
    # Of a union's errors, those that say more than "not this type".
    telling = {
        name: [error for error in same if not error["type"].endswith(("_type", "_parsing"))] or same
        for name, same in found.items()
    }
    return tuple(
        FieldError(field=name, message=" or ".join(_message(error, name, fields) for error in same))
        for name, same in telling.items()
    )


def add_error_handlers(app: FastAPI) -> None:
    """Answer every failure with problem+json."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_middleware(InternalErrors)


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    errors = error.errors if isinstance(error, InvalidFields) else None
    headers = None
    if isinstance(error, QueueFull):
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return problem_response(problem_of(error.code, str(error), errors=errors), headers)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # The first part of each place is "path", "query" or "header".
    found = [{**item, "loc": item["loc"][1:]} for item in error.errors()]
    return await _on_service_error(request, InvalidFields(field_errors(found)))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = f"{request.method} {request.url.path[:200]}"
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            problem = problem_of("not_found", f"{path}: no such address; /docs lists them")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "another method")
            problem = problem_of("method_not_allowed", f"{path}: use {allowed}")
        case _:
            problem = problem_of("bad_request", str(error.detail))
    return problem_response(problem, dict(error.headers or {}))


def _field_name(location: Sequence[int | str]) -> str:
    """Return `codes[0][2]` for ("codes", 0, 2, "int"): later names are those of a union's types."""
    if not location:
        return "body"
    indices = "".join(f"[{part}]" for part in location[1:] if isinstance(part, int))
    return f"{location[0]}{indices}"


def _message(error: ErrorDetails, name: str, fields: Sequence[str]) -> str:
    if error["type"] == "missing":
        return "is required"
    if error["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(fields)}"
        return f"unknown field; {hint}"
    message = error["msg"].removeprefix("Input ").removeprefix("String ").removeprefix("Value error, ")
    return message if name == "body" else f"{message}{_value(error['input'])}"


def _value(value: object) -> str:
    match value:
        case str() if len(value) > _MAX_VALUE_CHARS:
            return f", got {len(value)} characters"
        case list() | tuple():
            return f", got {len(value)} of them"
        case str() | int() | float() | None:
            return f", got {str(value)[:_MAX_VALUE_CHARS] if isinstance(value, int) else repr(value)}"
        case _:
            return ""
