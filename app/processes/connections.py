"""Bounds on connections: how many, how long one may take to say what it wants, and how slowly it may read.

Uvicorn closes a connection that is idle after an answer; it waits for ever for the head of a request, and
takes any number of connections. Long answers, such as streams of events, are not concerned.
"""

import asyncio
import http
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import h11
from starlette.datastructures import Headers
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from app.errors import BadRequest, RequestTimeout, TooBusy, problem_of, problem_response
from app.metrics import HttpMetrics
from app.request_ids import REQUEST_ID, trace_of
from workers.errors import ServiceError

MAX_HEAD_BYTES = 32 * 2**10
_LINGER_S = 0.5  # so that one who is turned away may read why
_MAX_LINGERING = 64


@dataclass
class Connections:
    """The connections of a server, and their limits. max_per_client: of one address; 0 is no bound."""

    metrics: HttpMetrics
    max_in_all: int
    max_per_client: int
    header_timeout_s: float
    min_bytes_per_s: int
    num_lingering: int = 0
    by_client: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.metrics.connections.set_function(self.by_client.total)

    def let_in(self, client: str) -> None:
        """Count a connection, until it is ``let_out``.

        Raises: TooBusy.
        """
        num_in_all, num_of_client = self.by_client.total(), self.by_client[client]
        if num_in_all >= self.max_in_all:
            raise TooBusy(f"{num_in_all} connections are open, which is the most that may be; try again soon")
        if client and 0 < self.max_per_client <= num_of_client:
            raise TooBusy(
                f"{num_of_client} connections of this address are open, which is the most that may be;"
                " close some, or use them again"
            )
        self.by_client[client] += 1

    def let_out(self, client: str) -> None:
        """Stop counting a connection."""
        self.by_client[client] -= 1
        if not self.by_client[client]:
            del self.by_client[client]


class BoundedProtocol(AutoHTTPProtocol):  # type: ignore[valid-type, misc]
    """Uvicorn's protocol, httptools or h11, within the limits."""

    def __init__(self, *args: Any, limits: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._is_let_in = False
        self._is_turned_away = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._num_head_bytes = 0
        self._is_in_body = False  # httptools'; h11 knows
        self._num_unsent_bytes: int | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._client = self.client[0] if self.client else ""  # a Unix socket has none
        try:
            self._limits.let_in(self._client)
        except TooBusy as error:
            self._turn_away(error)
            return
        self._is_let_in = True
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        if self._is_let_in:
            self._limits.let_out(self._client)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_turned_away:
            return
        was_in_body, cycle = self._reads_body(), self.cycle
        super().data_received(data)
        if self._is_turned_away or self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_expecting()
        elif was_in_body and not self._reads_body() and self.cycle is cycle:
            # The rest of a body that was answered early is over: idle from now on.
            self._stop_expecting()
            self._keep_alive()
        else:
            self._expect_head()
            if not (was_in_body or self._reads_body()):
                self._num_head_bytes += len(data)
                if self._num_head_bytes > MAX_HEAD_BYTES:
                    self._turn_away(BadRequest(f"the head of a request is at most {MAX_HEAD_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        self._is_in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless its client still reads the answer, fast enough."""
        num_unsent, before = self.transport.get_write_buffer_size(), self._num_unsent_bytes
        if not num_unsent:
            self.transport.close()
            return
        least = self._limits.min_bytes_per_s * self.timeout_keep_alive
        if before is not None and before - num_unsent < least:
            self.transport.abort()
            return
        self._num_unsent_bytes = num_unsent
        self._keep_alive()

    def send_400_response(self, msg: str) -> None:
        self._turn_away(BadRequest(f"the request can't be read: {msg}"))

    def _reads_body(self) -> bool:
        connection = getattr(self, "conn", None)
        return self._is_in_body if connection is None else connection.their_state is h11.SEND_BODY

    def _keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.header_timeout_s, self._on_slow_head)

    def _stop_expecting(self) -> None:
        self._num_head_bytes = 0
        self._num_unsent_bytes = None
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        if self._num_head_bytes:
            timeout_s = self._limits.header_timeout_s
            self._turn_away(RequestTimeout(f"the head of a request may take {timeout_s:g} s"))
        else:
            self.transport.close()

    def _turn_away(self, error: ServiceError) -> None:
        """Say why, and close the connection."""
        self._is_turned_away = True
        self._limits.metrics.count_turned_away(error.code)
        self._stop_expecting()
        if self._limits.num_lingering >= _MAX_LINGERING:
            self.transport.abort()
            return
        headers = {"Connection": "close", REQUEST_ID: trace_of(Headers()).request_id}
        response = problem_response(problem_of(error.code, str(error)), headers)
        lines = [f"HTTP/1.1 {response.status_code} {http.HTTPStatus(response.status_code).phrase}".encode()]
        lines += [name + b": " + value for name, value in response.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
        self.transport.write_eof()
        self._limits.num_lingering += 1
        self.loop.call_later(_LINGER_S, self._end)

    def _end(self) -> None:
        self._limits.num_lingering -= 1
        self.transport.abort()
