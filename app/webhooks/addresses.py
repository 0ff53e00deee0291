"""Which addresses webhooks may go to: none inside the operator's network, unless the operator names it."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpcore

from workers.errors import InvalidRequest

if TYPE_CHECKING:
    from app.settings import AppSettings

MAX_URL_CHARS = 2048
_PORTS = {"https": 443, "http": 80}
# IPv6 addresses that stand for IPv4 ones, which a gateway may reach: translated, 6to4, Teredo.
_TUNNELS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))

# Of their own, as a client's name server may keep each for half a minute, and files are read in the loop's.
_RESOLVERS = ThreadPoolExecutor(64, "resolver")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]  # host, port → addresses


class RefusedAddress(Exception):
    """A webhook's host is an address that none may go to."""


def check_webhook(url: str | None, settings: "AppSettings") -> None:
    """Check that an end can be told where a client wants that, if it does.

    Raises: InvalidRequest.
    """
    if url is None:
        return
    if settings.webhook_secret is None:
        raise InvalidRequest(
            "webhook_url: this server sends no webhooks: the operator has set no SMALTI_WEBHOOK_SECRET;"
            " follow what you have sent by its events or results instead"
        )
    check_url(url, settings.webhook_hosts)


def check_url(url: str, allowed_hosts: Collection[str]) -> None:
    """Check what can be said of a webhook's address before it is resolved.

    allowed_hosts: ``host`` or ``host:port``, which may also be private, and reached without TLS.

    Raises: InvalidRequest.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise InvalidRequest(f"webhook_url: is not an address: {error}") from None
    if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidRequest(f"webhook_url: is at most {MAX_URL_CHARS} printable ASCII characters, no space")
    if not url.startswith(("https://", "http://")) or not host:
        raise InvalidRequest("webhook_url: is an address such as https://example.com/hook")
    if parts.username is not None or parts.fragment:
        raise InvalidRequest("webhook_url: has no user, password or fragment")
    if is_allowed(host, port, allowed_hosts):
        return
    if parts.scheme != "https":
        raise InvalidRequest(
            "webhook_url: must be https; the operator can allow a host with SMALTI_WEBHOOK_HOSTS"
        )
    if _is_address(host) and not is_public(host):
        raise InvalidRequest(
            "webhook_url: is not a public address; the operator can allow it with SMALTI_WEBHOOK_HOSTS"
        )


def is_allowed(host: str, port: int, allowed_hosts: Collection[str]) -> bool:
    """Whether the operator has named a host, or a port of it."""
    shown = f"[{host}]" if ":" in host else host
    return bool({host, shown, f"{shown}:{port}"} & set(allowed_hosts))


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, and of no other network."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in network for network in _TUNNELS):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host.

    Raises: OSError.
    """
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVERS, ask)
    return [str(address[0]) for *_, address in found]


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked: a name is resolved once, and not again by who connects."""

    def __init__(
        self,
        allowed_hosts: Collection[str],
        resolve: Resolve = resolve,
        inner: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._allowed_hosts = allowed_hosts
        self._resolve = resolve
        self._inner = inner or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of a host that may be and answers.

        Raises: RefusedAddress; OSError and httpcore's errors.
        """
        addresses = await self._resolve(host, port)
        if not is_allowed(host, port, self._allowed_hosts):
            addresses = [address for address in addresses if is_public(address)]
        failure: Exception = RefusedAddress("its host has no public address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
