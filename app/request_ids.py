"""Ids of requests: the client's where it sends some, told in every answer and every line of the log."""

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workers.traces import Trace, current_trace, new_trace, working_for

REQUEST_ID = "X-Request-Id"
_SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")


class IdentifyRequests:
    """Middleware that knows each request by `X-Request-Id`, and takes part in the trace of `traceparent`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = trace_of(Headers(scope=scope))
        told = (REQUEST_ID.lower().encode(), trace.request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), told]
            await send(message)

        with working_for(trace):
            await self._app(scope, receive, send_with_id)


def trace_of(headers: Headers) -> Trace:
    """Return the ids of a request; of what is not sane, or there twice, nothing is taken."""
    ids, parents = headers.getlist(REQUEST_ID), headers.getlist("traceparent")
    request_id = ids[0] if len(ids) == 1 and _SANE.fullmatch(ids[0]) else None
    return new_trace(request_id, parents[0] if len(parents) == 1 else None)


def current_request_id() -> str | None:
    """Return the id of the request that is answered now."""
    trace = current_trace.get()
    return trace.request_id if trace else None
