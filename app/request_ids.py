"""Ids of requests: the client's where it sends some, told in every answer and every line of the log."""

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workers.traces import Trace, current_trace, new_trace, working_for

if TYPE_CHECKING:
    from workers.spans import Spans

REQUEST_ID = "X-Request-Id"
_REQUEST_ID, _TRACEPARENT = REQUEST_ID.lower().encode(), b"traceparent"
_WATCHING = ("/health", "/metrics")
_FIRST_SERVER_ERROR = 500
_SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")


class IdentifyRequests:
    """Middleware that knows each request by `X-Request-Id`, and takes part in the trace of `traceparent`."""

    def __init__(self, app: ASGIApp, spans: "Spans | None" = None) -> None:
        self._app = app
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace, spans, began_at = trace_of(Headers(scope=scope)), self._spans, time.time()
        if spans is not None:
            trace = replace(trace, is_sampled=spans.is_sampled(trace))
        status = 0
        told = (_REQUEST_ID, trace.request_id.encode())

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), told]
            await send(message)

        with working_for(trace):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                if spans is not None:
                    _record(spans, trace, scope, began_at, status)


def _record(spans: "Spans", trace: Trace, scope: Scope, began_at: float, status: int) -> None:
    """Record a request, unless it is one of those that watch the service."""
    route = getattr(scope.get("route"), "path", None)
    if route is not None and route.startswith(_WATCHING):
        return
    about: dict[str, str | int] = {
        "http.request.method": scope["method"],
        "http.response.status_code": status,
        "smalti.request_id": trace.request_id,
    }
    if route is not None:
        about["http.route"] = route
    name = f"{scope['method']} {route or ''}".strip()
    spans.record_request(trace, name, began_at, about, failed=status == 0 or status >= _FIRST_SERVER_ERROR)


def trace_of(headers: Headers) -> Trace:
    """Return the ids of a request; of what is not sane, or there twice, nothing is taken."""
    found: dict[bytes, list[bytes]] = {_REQUEST_ID: [], _TRACEPARENT: []}
    for name, value in headers.raw:  # which asks each header once
        if name in found:
            found[name].append(value)
    ids, parents = (values[0].decode("latin-1") if len(values) == 1 else "" for values in found.values())
    return new_trace(ids if _SANE.fullmatch(ids) else None, parents)


def current_request_id() -> str | None:
    """Return the id of the request that is answered now."""
    trace = current_trace.get()
    return trace.request_id if trace else None
