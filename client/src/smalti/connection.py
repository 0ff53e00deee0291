"""Requests and answers: which faults are tried again, for how long, and what the rest are called."""

import random
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from smalti.arguments import check_seconds, check_sendable, shown
from smalti.calls import Call
from smalti.errors import (
    AnswerLost,
    AnswerUnreadable,
    ConnectionFailed,
    InvalidArgument,
    RequestFailed,
    SmaltiError,
    request_failed,
)
from smalti.running import IO

Answer = TypeVar("Answer")

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_OWN_FAULTS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)  # which no other try makes good
_REFUSED = frozenset({"queue_full", "not_ready", "pipeline_not_served", "too_busy"})  # surely without a job
_PASSING = frozenset({502, 503, 504})
_MAX_REQUEST_TIMEOUT_S = 86400.0  # sockets know no endless one that is a number
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.25, 8.0


@dataclass(frozen=True)
class ConnectionConfig:
    """Where the service is, and how long to try.

    retry_s: how long a service that is full, not ready or gone is tried again. request_timeout_s: how long
    one answer may take.
    """

    base_url: str
    api_key: str | None
    retry_s: float
    request_timeout_s: float
    user_agent: str

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.base_url)
        except (httpx.InvalidURL, TypeError) as error:
            raise InvalidArgument("base_url", f"{error}, got {shown(self.base_url)}") from None
        if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
            raise InvalidArgument("base_url", f"is like http://127.0.0.1:8000, got {shown(self.base_url)}")
        key: object = self.api_key
        if key is not None and not (isinstance(key, str) and re.fullmatch(r"[!-~]+", key)):
            raise InvalidArgument(
                "api_key", "is printable ASCII without spaces; is there a line break at its end?"
            )
        check_seconds("retry_s", self.retry_s)
        check_seconds("request_timeout_s", self.request_timeout_s, _MAX_REQUEST_TIMEOUT_S)

    def __repr__(self) -> str:
        return f"ConnectionConfig({self.base_url!r})"  # the key is nobody's business


class Connection:
    """Sends requests, again where that is safe.

    A request that makes a job is sent again when it surely made none: the service could not be reached, or
    said that it is full. After a lost answer only where the service's /openapi.json has ``Idempotency-Key``.
    """

    def __init__(self, io: IO, config: ConnectionConfig) -> None:
        self._io = io
        self._config = config
        self._base = httpx.URL(config.base_url.rstrip("/") + "/")
        self._keyed: frozenset[str] | None = None  # patterns of paths that know Idempotency-Key

    async def request(self, call: Call, retry_s: float | None = None) -> httpx.Response:
        """Return a successful answer.

        Raises: RequestFailed; ConnectionFailed; AnswerLost.
        """
        ends_at = time.monotonic() + (self._config.retry_s if retry_s is None else retry_s)
        for num_tries in count():
            failure: SmaltiError
            try:
                response = await self._io.send(self._checked(call))
            except httpx.TransportError as error:
                failure = self._fault(call, error)
                is_safe = isinstance(error, _NEVER_SENT)
                is_passing = not isinstance(error, _OWN_FAULTS)
            else:
                if response.is_success:
                    return response
                failure = failure_of(response)
                is_safe = response.status_code == 429 or failure.code in _REFUSED
                if failure.job_id is not None:
                    raise failure  # a job's own, and not the request's
                is_passing = is_safe or (
                    response.status_code in _PASSING
                    and (failure.code == "unknown" or failure.retry_after_s is not None)
                )
            wait_s = _wait_s(failure, num_tries)
            has_time = time.monotonic() + wait_s <= ends_at
            if not is_passing or not has_time:
                raise failure
            if call.makes_job and not is_safe and not await self._knows_keys(call.path, ends_at):
                raise failure
            await self._io.sleep(wait_s)
        raise AssertionError

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[httpx.Response]:
        """Yield an answer whose body is still to come, whatever its status; nothing is tried again.

        Raises: httpx.TransportError.
        """
        response = await self._io.send(self._checked(call), stream=True)
        try:
            yield response
        finally:
            await self._io.close(response)

    def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """Yield the body of a stream. Raises: httpx.TransportError."""
        return self._io.chunks(response)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._io.sleep(seconds)

    def _checked(self, call: Call) -> httpx.Request:
        """Return a request. Raises: InvalidArgument naming a field that can't be sent."""
        try:
            return self._build(call)
        except (ValueError, TypeError, RecursionError):
            for fields in (call.json, call.form):
                if isinstance(fields, Mapping):
                    check_sendable(fields)
            raise

    def _build(self, call: Call) -> httpx.Request:
        url = self._base.join(call.path)
        headers = {"User-Agent": self._config.user_agent, **call.headers}
        is_ours = (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port)
        if self._config.api_key and is_ours:  # a store elsewhere must not see it
            headers["Authorization"] = f"Bearer {self._config.api_key}"
        timeout_s = self._config.request_timeout_s
        timeout = httpx.Timeout(timeout_s, connect=min(10, timeout_s), read=call.read_timeout_s or timeout_s)
        return httpx.Request(
            call.method,
            url,
            headers=headers,
            json=call.json,
            data=call.form,
            files=[(each.field, (each.name, each.content, each.media_type)) for each in call.files] or None,
            content=call.content,
            extensions={"timeout": timeout.as_dict()},
        )

    def _fault(self, call: Call, error: httpx.TransportError) -> ConnectionFailed:
        told = f"{self._base}: {_reason(error)}"
        if isinstance(error, _NEVER_SENT):
            return ConnectionFailed(f"can't reach the service at {told}. Does it run there?")
        if call.makes_job:
            return AnswerLost(
                f"no answer from {told}. The job may have been made: to send the request again without making"
                " a second one takes a service that knows Idempotency-Key"
            )
        return ConnectionFailed(f"no answer from {told}")

    async def _knows_keys(self, path: str, ends_at: float) -> bool:
        """Return whether sending a request twice makes one job; asked for when it first matters."""
        if self._keyed is None:
            try:
                answer = await self.request(Call("GET", "openapi.json"), max(0.0, ends_at - time.monotonic()))
                self._keyed = _keyed_paths(answer.json())
            except (SmaltiError, ValueError, LookupError, AttributeError):  # or no such document
                return False
        return any(re.fullmatch(known, "/" + path.partition("?")[0]) for known in self._keyed)


def failure_of(response: httpx.Response) -> RequestFailed:
    """Return what an answer without success says."""
    if response.is_redirect:
        target = f"is redirected to {response.headers.get('location', '')}: set base_url to where that is"
        return request_failed(response.status_code, {"detail": target})
    try:
        problem = response.json()
    except (ValueError, httpx.ResponseNotRead):
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    return request_failed(response.status_code, problem, _retry_after_s(response))


def read(answer: httpx.Response, kind: TypeAdapter[Answer]) -> Answer:
    """Return what an answer's JSON says.

    Raises: AnswerUnreadable.
    """
    try:
        return kind.validate_json(answer.content)
    except ValidationError as error:
        where = f"{answer.request.method} {answer.request.url.path}"
        got = answer.headers.get("content-type", "no media type")
        raise AnswerUnreadable(
            f"{where} was answered by something else than Smalti's API (or a version that this client can't"
            f" read): {got}; {error.errors()[0]['msg']}. Is the base_url right?"
        ) from None


def _wait_s(failure: SmaltiError, num_tries: int) -> float:
    """Return how long to wait before another try: exponential back-off with jitter, or what was told."""
    told = failure.retry_after_s if isinstance(failure, RequestFailed) else None
    if told is not None:
        return told * random.uniform(1, 1.25)  # clients that were refused together don't come together
    return min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(num_tries, 10)) * random.uniform(0.5, 1)


def _retry_after_s(response: httpx.Response) -> float | None:
    told = response.headers.get("retry-after", "")
    if told.isdecimal():
        return float(told[:9])
    try:
        seconds: float = (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds()
        return max(0.0, seconds)
    except (ValueError, TypeError):  # the latter of a date without a zone
        return None


def _keyed_paths(openapi: Any) -> frozenset[str]:
    """Return patterns of the paths at which a POST has the header Idempotency-Key."""
    return frozenset(
        re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))
        for path, methods in openapi["paths"].items()
        for parameter in methods.get("post", {}).get("parameters", ())
        if str(parameter.get("name")).lower() == "idempotency-key" and parameter.get("in") == "header"
    )


def _reason(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__
