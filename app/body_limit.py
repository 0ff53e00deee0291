"""Bound the bodies of requests while they arrive."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIB = 2**20
MAX_BODY_BYTES: Mapping[str, int] = {
    "/generate": 64 * 2**10,
    "/encode": 64 * MIB + 64 * 2**10,  # each file in it is at most 10 MiB
    "/decode": 4 * MIB,
}
_MAX_OTHER_BYTES = 64 * 2**10


class LimitBodies:
    """Middleware that reads no more of a body than its path may have.

    Where the client says how much it sends, nothing is read of a body that is too large. FastAPI's own
    ``max_body_size`` answers in plain text then, and ours is problem+json.
    """

    def __init__(self, app: ASGIApp, limits: Mapping[str, int] = MAX_BODY_BYTES) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], _MAX_OTHER_BYTES)
        content_length = Headers(scope=scope).get("content-length", "")
        num_bytes = 0

        async def receive_within_limit() -> Message:
            nonlocal num_bytes
            if content_length.isdecimal() and int(content_length) > limit:
                raise _too_large(limit, content_length)
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                raise _too_large(limit, "more")
            return message

        await self._app(scope, receive_within_limit, send)


def _too_large(limit: int, got: str) -> HTTPException:
    """Return the one kind of error that FastAPI lets through while it reads a body."""
    detail = f"the body is at most {limit} bytes, got {got}"
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
