"""Send one webhook, signed as Standard Webhooks has it (https://www.standardwebhooks.com)."""

import asyncio
import importlib.metadata
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

import httpcore
from standardwebhooks.webhooks import Webhook

from app.webhooks.addresses import GuardedBackend, RefusedAddress, Resolve, resolve

TIMEOUT_S = 15.0  # for all of it
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Attempt:
    """What came of sending. is_final: whether to send it again is of no use. told: for the log."""

    is_delivered: bool
    is_final: bool
    told: str


class Sender:
    """Sends to addresses that may be; follows no redirect, and reads of the answer its status alone."""

    def __init__(
        self,
        secret: str,
        allowed_hosts: Collection[str],
        *,
        max_connections: int = 16,
        resolve: Resolve = resolve,
        inner: httpcore.AsyncNetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._webhook = Webhook(secret)
        self._agent = f"smalti/{importlib.metadata.version('smalti')}"
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or ssl.create_default_context(),
            max_connections=max_connections,
            max_keepalive_connections=0,
            network_backend=GuardedBackend(allowed_hosts, resolve, inner),
        )

    async def send(self, url: str, message_id: str, body: str) -> Attempt:
        """Send a message, and say what came of it."""
        now = datetime.now(UTC)
        headers: dict[bytes | str, bytes | str] = {
            "content-type": "application/json",
            "user-agent": self._agent,
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(message_id, now, body),
        }
        timeouts = {"connect": CONNECT_TIMEOUT_S, "read": TIMEOUT_S, "write": TIMEOUT_S, "pool": TIMEOUT_S}
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._pool.stream(
                    "POST", url, headers=headers, content=body.encode(), extensions={"timeout": timeouts}
                ) as response,
            ):
                status = response.status
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            httpcore.UnsupportedProtocol,
            OSError,  # which TimeoutError and errors of TLS are, too
            RefusedAddress,
        ) as error:
            return Attempt(False, False, type(error).__name__)
        return Attempt(200 <= status < 300, status == HTTPStatus.GONE, f"status {status}")

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()
