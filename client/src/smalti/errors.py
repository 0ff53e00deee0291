"""What can go wrong, each with what to do about it. All are ``SmaltiError``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smalti.models import BatchInfo, ErrorInfo, JobInfo


class SmaltiError(Exception):
    """Anything that this package raises."""


class InvalidArgument(SmaltiError, ValueError):
    """What a method was given can't be sent, and nothing was: ``field`` names it."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(f"{field}: {message}")


class ClientClosed(SmaltiError, RuntimeError):
    """The client was closed, and is asked for more."""

    def __init__(self) -> None:
        super().__init__("the client is closed: make another, or do this inside its `with` block")


class MissingPackage(SmaltiError, ImportError):
    """An optional package is asked for and not installed."""

    def __init__(self, package: str, purpose: str) -> None:
        super().__init__(f"{purpose} need {package}: pip install {package}")


class NoBytes(SmaltiError, ValueError):
    """An output has no bytes, or no codes: it failed, or was not fetched."""


class UnusableSource(SmaltiError, ValueError):
    """What was given to encode is not a file, an image or an array of pixels."""


class ConnectionFailed(SmaltiError, ConnectionError):
    """The service can't be reached, or stopped answering, for longer than ``retry_s``."""


class AnswerLost(ConnectionFailed):
    """The connection broke after a request was sent, and the service may have made its job.

    It was not sent again, since this service doesn't tell that it knows Idempotency-Key: the job could have
    been made twice.
    """


class AnswerUnreadable(SmaltiError):
    """The answer is not what the API answers: another service, or a proxy, is at this address."""


@dataclass(frozen=True)
class FieldError:
    """A bad field of a request."""

    field: str
    message: str


class RequestFailed(SmaltiError):
    """The service refused a request.

    code: stable, for programs. status: of HTTP. errors: the bad fields, ten at most. retry_after_s: when to
    come again, where the service says so. job_id: of the job whose failure it is, if it is one's.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after_s: float | None = None) -> None:
        self.status = status
        self.code = str(problem.get("code", "unknown"))
        self.detail = str(problem.get("detail") or problem.get("title") or f"HTTP status {status}")
        self.errors = tuple(
            FieldError(str(each.get("field", "")), str(each.get("message", "")))
            for each in problem.get("errors", ())
            if isinstance(each, dict)
        )
        self.job_id = str(problem["job_id"]) if problem.get("job_id") else None
        self.retry_after_s = retry_after_s
        super().__init__(f"{self.detail} ({status} {self.code})")


class InvalidRequest(RequestFailed):
    """The request can't be served as it is: ``errors`` names the fields."""


class NotAllowed(RequestFailed):
    """The API key is missing, wrong, or may not do this."""


class NotFound(RequestFailed):
    """There is no such job or output, or it has expired."""


class Unavailable(RequestFailed):
    """The service is full, not ready, or ill, and was for longer than ``retry_s``."""


class JobFailed(SmaltiError):
    """The job ended without a result. job: as it ended."""

    def __init__(self, job: "JobInfo") -> None:
        self.job = job
        super().__init__(f"job {job.id} {_why(job.status, job.error)}")

    @property
    def code(self) -> str:
        """The stable code of the failure."""
        return self.job.error.code if self.job.error else f"job_{self.job.status}"


class JobCancelled(JobFailed):
    """The job was cancelled."""


class WaitTimeout(SmaltiError, TimeoutError):
    """The job did not end within ``timeout_s``. It goes on unless it was to be cancelled.

    job: as last seen.
    """

    def __init__(self, job: "JobInfo", timeout_s: float, *, is_cancelled: bool) -> None:
        self.job = job
        after = (
            "it was cancelled, as asked" if is_cancelled else f"it goes on: wait with client.job({job.id!r})"
        )
        super().__init__(f"job {job.id} did not end within {timeout_s:g} s (it is {job.status}); {after}")


class BatchTimeout(SmaltiError, TimeoutError):
    """The batch did not end within ``timeout_s``. It goes on.

    batch: as last seen.
    """

    def __init__(self, batch: "BatchInfo", timeout_s: float) -> None:
        self.batch = batch
        super().__init__(
            f"batch {batch.id} did not end within {timeout_s:g} s ({batch.num_ended} of {batch.num_rows} rows"
            f" have); it goes on: wait with client.get_batch({batch.id!r})"
        )


def _why(status: str, error: "ErrorInfo | None") -> str:
    if error is None:
        return "was cancelled" if status == "cancelled" else f"has no result: it is {status}"
    return f"failed: {error.message} ({error.code})"


def request_failed(
    status: int, problem: Mapping[str, Any], retry_after_s: float | None = None
) -> RequestFailed:
    """Return the error that an answer with a problem is."""
    kind: type[RequestFailed] = RequestFailed
    if status in (401, 403):
        kind = NotAllowed
    elif status == 404:
        kind = NotFound
    elif status == 429 or status >= 500:
        kind = Unavailable
    elif status in (400, 413, 415, 422):
        kind = InvalidRequest
    return kind(status, problem, retry_after_s)
