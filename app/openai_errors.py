"""Failures below /v1 in the shape that OpenAI's clients read."""

from http import HTTPStatus
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from starlette.types import Scope

from app.root_path import is_below, path_below_root

if TYPE_CHECKING:
    from app.errors import Problem

OPENAI_ROOT = "/v1"
_PARAMS = {"pipeline": "model", "num_outputs": "n", "format": "output_format"}  # our fields → OpenAI's
_FIRST_SERVER_ERROR = 500


class OpenAIError(BaseModel):
    """Why a request was not served."""

    model_config = ConfigDict(frozen=True)

    message: str = Field(description="For people.")
    type: str = Field(description="`invalid_request_error`, `rate_limit_error` or `server_error`.")
    param: str | None = Field(default=None, description="The field that is wrong.")
    code: str | None = Field(
        default=None, description="Stable: as in the problems of the other addresses, or OpenAI's own."
    )


class OpenAIFailure(BaseModel):
    """The body of a failure."""

    model_config = ConfigDict(frozen=True)

    error: OpenAIError


def is_openai(scope: Scope) -> bool:
    """Say whether a request is for an address that OpenAI's clients use."""
    return is_below(path_below_root(scope), OPENAI_ROOT)


def failure_of(status: int, code: str, message: str, param: str | None = None) -> OpenAIFailure:
    """Describe a failure."""
    kind = "invalid_request_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    elif status >= _FIRST_SERVER_ERROR:
        kind = "server_error"
    return OpenAIFailure(error=OpenAIError(message=message, type=kind, param=param, code=code))


def failure_of_problem(problem: "Problem") -> tuple[int, OpenAIFailure]:
    """Return status and body as OpenAI would have them: it has no 422, and unknown models are 404."""
    param = problem.errors[0].field if problem.errors else None
    param = _PARAMS.get(param or "", param)
    if problem.code == "unknown_pipeline":
        return HTTPStatus.NOT_FOUND, failure_of(404, "model_not_found", problem.detail, "model")
    is_unprocessable = problem.status == HTTPStatus.UNPROCESSABLE_ENTITY
    status = HTTPStatus.BAD_REQUEST if is_unprocessable else problem.status
    return status, failure_of(status, problem.code, problem.detail, param)


def failure_response(status: int, failure: OpenAIFailure, headers: dict[str, str] | None = None) -> Response:
    """Answer with a failure."""
    return Response(failure.model_dump_json(), status, headers, media_type="application/json")


def problem_as_failure(problem: "Problem", headers: dict[str, str]) -> Response:
    """Answer with a problem as a failure; clients are told not to retry what a job itself failed of."""
    if problem.job_id is not None:
        headers = {**headers, "Smalti-Job-Id": problem.job_id, "x-should-retry": "false"}
    return failure_response(*failure_of_problem(problem), headers)
