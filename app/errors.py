"""Failures as HTTP: each code has one status, and each answer one problem+json body (RFC 9457)."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.field_errors import FieldError, field_errors
from app.methods import allowed_methods
from app.openai_errors import is_openai, problem_as_failure
from app.request_ids import current_request_id
from models.media.base import MEDIA
from workers.errors import InvalidRequest, QueueFull, RateLimitExceeded, ServiceError
from workers.messages import JobError

logger = logging.getLogger(__name__)

PROBLEM_MEDIA_TYPE = "application/problem+json"
_DEFAULT_RETRY_AFTER_S = 2
_MAX_ERRORS_TOLD = 10
_MAX_ERRORS_IN_DETAIL = 3
_ABOUT_A_FIELD = re.compile(r"([a-z_]+(?:\[\d+\]|\.[^:]{1,64})*): (.+)", re.DOTALL)


class UnsupportedMediaType(ServiceError):
    code = "unsupported_media_type"


class NotAcceptable(ServiceError):
    code = "not_acceptable"


class RangeNotSatisfiable(ServiceError):
    code = "range_not_satisfiable"

    def __init__(self, message: str, num_bytes: int) -> None:
        super().__init__(message)
        self.num_bytes = num_bytes


class NotReady(ServiceError):
    code = "not_ready"


class TooBusy(ServiceError):
    """What is asked for would be more than this server holds at a time."""

    code = "too_busy"


class BadRequest(ServiceError):
    code = "bad_request"


class BodyTooLarge(ServiceError):
    code = "body_too_large"


class RequestTimeout(ServiceError):
    """The client sends its request too slowly."""

    code = "request_timeout"


class MisdirectedHost(ServiceError):
    """The request names a host that this server does not answer for."""

    code = "misdirected_host"


class Unauthorized(ServiceError):
    """The request has no key that is known."""

    code = "unauthorized"


class Forbidden(ServiceError):
    """The request's key may not do that."""

    code = "forbidden"


class ForbiddenOrigin(ServiceError):
    """A page of another origin asks for what it may not."""

    code = "forbidden_origin"


@dataclass(frozen=True)
class _Kind:
    status: HTTPStatus
    title: str


_KINDS: dict[str, _Kind] = {
    "bad_request": _Kind(HTTPStatus.BAD_REQUEST, "The request can't be read"),
    "unauthorized": _Kind(HTTPStatus.UNAUTHORIZED, "This address takes an API key"),
    "forbidden": _Kind(HTTPStatus.FORBIDDEN, "The API key may not do that"),
    "forbidden_origin": _Kind(HTTPStatus.FORBIDDEN, "Pages of this origin may not do that"),
    "not_found": _Kind(HTTPStatus.NOT_FOUND, "There is nothing at this address"),
    "method_not_allowed": _Kind(HTTPStatus.METHOD_NOT_ALLOWED, "This address takes another method"),
    "not_acceptable": _Kind(HTTPStatus.NOT_ACCEPTABLE, "The answer has none of these media types"),
    "request_timeout": _Kind(HTTPStatus.REQUEST_TIMEOUT, "The request came too slowly"),
    "body_too_large": _Kind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large"),
    "unsupported_media_type": _Kind(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body has another media type"),
    "range_not_satisfiable": _Kind(
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "The output has no such bytes"
    ),
    "misdirected_host": _Kind(HTTPStatus.MISDIRECTED_REQUEST, "This server is not that host"),
    "invalid_request": _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The request can't be served as it is"),
    **{
        f"invalid_{medium}": _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, f"The {medium} can't be used")
        for medium in MEDIA
    },
    "invalid_codes": _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The codes can't be used"),
    "invalid_latents": _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The latents can't be used"),
    "unknown_pipeline": _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The pipeline is unknown"),
    "moderation_refused": _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "Refused by this service's moderation"),
    "idempotency_key_reused": _Kind(
        HTTPStatus.UNPROCESSABLE_ENTITY, "The Idempotency-Key belongs to another request"
    ),
    "queue_full": _Kind(HTTPStatus.TOO_MANY_REQUESTS, "Too many jobs wait"),
    "queue_share_exceeded": _Kind(HTTPStatus.TOO_MANY_REQUESTS, "Too many jobs of this API key wait"),
    "rate_limit_exceeded": _Kind(HTTPStatus.TOO_MANY_REQUESTS, "Too many jobs in a time"),
    "queue_unavailable": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "The queue does not answer"),
    "not_ready": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "Not ready"),
    "too_busy": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "Too much is asked for at once"),
    "batch_not_found": _Kind(HTTPStatus.NOT_FOUND, "The batch was not found"),
    "job_not_found": _Kind(HTTPStatus.NOT_FOUND, "The job or output was not found"),
    "file_not_found": _Kind(HTTPStatus.NOT_FOUND, "The file was not found"),
    "file_quota_exceeded": _Kind(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The files of the API key would be too many or too large"
    ),
    "job_not_retryable": _Kind(HTTPStatus.CONFLICT, "The job can't be tried again"),
    "job_cancelled": _Kind(HTTPStatus.CONFLICT, "The job was cancelled"),
    "deadline_exceeded": _Kind(HTTPStatus.GATEWAY_TIMEOUT, "The job was not done within its deadline"),
    "out_of_memory": _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "The job is too large for this server"),
    "not_finite": _Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "The model failed on this request"),
    "storage_full": _Kind(HTTPStatus.INSUFFICIENT_STORAGE, "The result could not be stored"),
    "storage_unavailable": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "The result could not be stored"),
    "pipeline_not_served": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "No worker has the pipeline"),
    "worker_lost": _Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "The workers that ran the job died"),
    "internal_error": _Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "Something failed inside the server"),
}
_RETRIED = frozenset(
    {
        "queue_full",
        "queue_share_exceeded",
        "rate_limit_exceeded",
        "queue_unavailable",
        "not_ready",
        "pipeline_not_served",
        "too_busy",
    }
)


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
    request_id: str | None = Field(default=None, description="As in `X-Request-Id`; the log has it, too.")
    errors: tuple[FieldError, ...] = Field(
        default=(), description=f"The bad fields, if some are: {_MAX_ERRORS_TOLD} at most."
    )
    num_errors: int = Field(default=0, description="How many bad fields there are.")


class InvalidFields(InvalidRequest):
    """Fields that are missing, unknown or out of bounds."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        told = [f"{error.field}: {error.message}" for error in errors[:_MAX_ERRORS_IN_DETAIL]]
        if len(errors) > _MAX_ERRORS_IN_DETAIL:
            told.append(f"and {len(errors) - _MAX_ERRORS_IN_DETAIL} more")
        super().__init__("; ".join(told))
        self.errors = tuple(errors)


class InternalErrors:
    """Middleware that logs unexpected failures, and answers 500.

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


def is_known_code(code: str) -> bool:
    """Say whether an error's code is one of this version's."""
    return code in _KINDS or code.removeprefix("invalid_") in MEDIA


def problem_of(
    code: str, detail: str, *, job_id: str | None = None, errors: Sequence[FieldError] = ()
) -> Problem:
    """Describe a failure; one of an unknown code has the status of an internal error."""
    default = "invalid_request" if code.startswith("invalid_") else "internal_error"
    kind = _KINDS.get(code, _KINDS[default])  # a medium that is new here has a code of its own
    return Problem(
        type=f"urn:smalti:error:{code}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        code=code,
        instance=None if job_id is None else f"/jobs/{job_id}",
        job_id=job_id,
        errors=tuple(errors[:_MAX_ERRORS_TOLD]),
        num_errors=len(errors),
    )


class ProblemResponse(Response):
    """A problem, with the request's id, and its prefix in ``instance``; below /v1 as OpenAI has them."""

    media_type = PROBLEM_MEDIA_TYPE

    def __init__(self, problem: Problem, headers: dict[str, str]) -> None:
        super().__init__(problem.model_dump_json(exclude_none=True), problem.status, headers)
        self._problem = problem
        self._own_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_openai(scope):
            await problem_as_failure(self._problem, self._own_headers)(scope, receive, send)
            return
        own = {"request_id": current_request_id()}
        if self._problem.instance:
            own["instance"] = scope.get("root_path", "") + self._problem.instance
        self.body = self.render(self._problem.model_copy(update=own).model_dump_json(exclude_none=True))
        self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """Answer with a problem; those that pass with time say when to try again."""
    headers = {
        **({"Retry-After": str(_DEFAULT_RETRY_AFTER_S)} if problem.code in _RETRIED else {}),
        **(headers or {}),
    }
    return ProblemResponse(problem, headers)


async def refuse(
    error: ServiceError,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: dict[str, str] | None = None,
) -> None:
    """Answer a request with a failure before it reaches the application: for middleware."""
    await problem_response(problem_of(error.code, str(error)), headers)(scope, receive, send)


def job_problem_response(job_id: str, error: JobError, headers: dict[str, str] | None = None) -> Response:
    """Answer with the failure of a job."""
    return problem_response(
        problem_of(error.code, error.message, job_id=job_id),
        {**(headers or {}), "Content-Location": f"/jobs/{job_id}"},
    )


def add_error_handlers(app: FastAPI) -> None:
    """Answer every failure with problem+json, and every method that an address has."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    errors = error.errors if isinstance(error, InvalidFields) else _field_in(error)
    headers = None
    match error:
        case QueueFull() | RateLimitExceeded():
            headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
        case RangeNotSatisfiable():
            headers = {"Content-Range": f"bytes */{error.num_bytes}"}
    return problem_response(problem_of(error.code, str(error), errors=errors), headers)


def _field_in(error: ServiceError) -> tuple[FieldError, ...]:
    """Return the field that a message begins with: `codes[0]: is null`."""
    found = _ABOUT_A_FIELD.fullmatch(str(error)) if isinstance(error, InvalidRequest) else None
    return (FieldError(field=found[1], message=found[2]),) if found else ()


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # The first part of each place is "body", "path", "query" or "header".
    found = [
        {**item, "loc": () if item["type"] == "json_invalid" else item["loc"][1:]} for item in error.errors()
    ]
    return await _on_service_error(request, InvalidFields(field_errors(found, _body_fields(request))))


def _body_fields(request: Request) -> tuple[str, ...]:
    """Return the names of the fields that the body of this request's route has."""
    body = getattr(request.scope.get("route"), "body_field", None)
    kind = None if body is None else body.field_info.annotation
    return tuple(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else ()


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = f"{request.method[:20]} {request.scope['path'][:200]}"
    headers = dict(error.headers or {})
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            problem = problem_of("not_found", f"{path}: no such address; /docs lists them")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(allowed_methods(request.scope))
            problem = problem_of("method_not_allowed", f"{path}: use {headers['Allow']}")
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            problem = problem_of("body_too_large", str(error.detail))
        case HTTPStatus.UNPROCESSABLE_ENTITY:
            return await _on_service_error(request, InvalidRequest(str(error.detail)))
        case _:
            problem = problem_of("bad_request", str(error.detail))
    return problem_response(problem, headers)
