"""The one place where bodies come in: how large, how fast, and how many bytes at a time."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooLarge, RequestTimeout, TooBusy, refuse
from app.memory import Trimmer
from app.metrics import HttpMetrics
from app.root_path import path_below_root

MIB = 2**20
MAX_BODY_BYTES: Mapping[str, int] = {
    "/generate": 28 * MIB,  # two files of at most 10 MiB, in base64
    "/encode": 64 * MIB + 64 * 2**10,  # each file in it is at most 10 MiB
    "/decode": 4 * MIB,
    "/files": 64 * MIB + 64 * 2**10,  # one file, and what a form puts around it
    "/batches": 64 * MIB,
    "/v1/files": 64 * MIB + 64 * 2**10,
    "/v1/images/edits": 20 * MIB + 64 * 2**10,  # two files, and what a form puts around them
    "/v1/images/variations": 20 * MIB + 64 * 2**10,
}
_MAX_OTHER_BYTES = 64 * 2**10
_LARGE_BYTES = 64 * 2**10


@dataclass(frozen=True)
class BodyLimits:
    """Bounds on bodies.

    max_in_flight_bytes: over all requests. Any ``timeout_s`` must bring ``min_bytes_per_s`` on average, or
    the end of the body: what came fast before does not count, so nobody holds much for long.
    """

    max_in_flight_bytes: int
    timeout_s: float
    min_bytes_per_s: int


class ClientGone(Exception):
    """The client went away before its body was whole."""


class AdmitBodies:
    """Middleware that reads a body whole before anything else sees the request, within the limits.

    The bytes count as held until the answer is complete. Where the client says how much it sends, nothing
    is read of what is too much. An upload that is aborted gets no answer and makes no noise.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, limits: BodyLimits) -> None:
        self._app = app
        self._metrics = metrics
        self._limits = limits
        self._num_held_bytes = 0
        self._trimmer = Trimmer()
        metrics.body_bytes.set_function(lambda: self._num_held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        num_bytes = 0
        try:
            try:
                await self._read(scope, receive, body)
            except ClientGone:
                return
            except (BodyTooLarge, RequestTimeout, TooBusy) as error:
                self._metrics.count_turned_away(error.code)
                # One who sends slowly is cut off; others may still be sending, and lose the answer by that.
                headers = {"Connection": "close"} if isinstance(error, RequestTimeout) else {}
                await refuse(error, scope, receive, send, headers)
                return
            finally:
                num_bytes = len(body)
            await self._app(scope, _Replay(body, receive), send)
        finally:
            self._num_held_bytes -= num_bytes
            if num_bytes > _LARGE_BYTES:
                self._trimmer.trim_soon()

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """Append what comes to ``body``, whose bytes are counted from then on.

        Raises: BodyTooLarge; TooBusy; RequestTimeout; ClientGone.
        """
        limit = min(
            MAX_BODY_BYTES.get(path_below_root(scope), _MAX_OTHER_BYTES), self._limits.max_in_flight_bytes
        )
        told = Headers(scope=scope).get("content-length", "")
        if told.isdecimal():
            if len(told) > 18 or int(told) > limit:
                raise BodyTooLarge(f"the body is at most {limit} bytes, got {told[:24]}")
            self._check_room(int(told))
        loop = asyncio.get_running_loop()
        quota = self._limits.timeout_s * self._limits.min_bytes_per_s
        num_at_start, ends_at = 0, loop.time() + self._limits.timeout_s
        while True:
            try:
                async with asyncio.timeout_at(ends_at):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeout(
                    f"the body came too slowly, under {self._limits.min_bytes_per_s} bytes a second;"
                    " send it again, faster"
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            if len(body) + len(chunk) > limit:
                raise BodyTooLarge(f"the body is at most {limit} bytes, got more")
            self._check_room(len(chunk))
            self._num_held_bytes += len(chunk)
            body += chunk
            if not message.get("more_body", False):
                return
            if len(body) - num_at_start > quota:
                num_at_start, ends_at = len(body), loop.time() + self._limits.timeout_s

    def _check_room(self, num_bytes: int) -> None:
        if self._num_held_bytes + num_bytes > self._limits.max_in_flight_bytes:
            raise TooBusy(
                f"bodies of all requests may hold {self._limits.max_in_flight_bytes} bytes at a time, and"
                " this one does not fit; try again soon"
            )


class _Replay:
    """Hands a body on in one piece, keeping nothing of it; then what happens to the connection."""

    def __init__(self, body: bytearray, receive: Receive) -> None:
        self._body: bytearray | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body = bytes(self._body)
        self._body.clear()
        self._body = None
        return {"type": "http.request", "body": body, "more_body": False}


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
