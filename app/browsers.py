"""What keeps the pages of others from using a visitor's browser against this service.

Browsers send requests for any page: to names that its author points here (DNS rebinding), and forms without
asking first. Programs such as curl are not concerned.
"""

import ipaddress
import socket
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ForbiddenOrigin, MisdirectedHost, problem_of, problem_response, refuse
from app.metrics import HttpMetrics

ANY = "*"
EXPOSED_HEADERS = (
    "Content-Disposition",
    "Content-Location",
    "Content-Range",
    "ETag",
    "Idempotency-Replayed",
    "Location",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Smalti-Job-Id",
    "Smalti-Seed",
    "Smalti-Tokenizer",
    "X-Request-Id",
)
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_SHOWS_A_FILE = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
_SHOWS_DOCS = (  # Swagger UI has a script and styles in its page, and shows pictures that it has fetched
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class CheckSite:
    """Middleware that refuses requests by a foreign host name, and changes asked for by foreign pages.

    A name can be made to lead here by anyone, unless it is an address, a name without a dot, or known.
    """

    def __init__(
        self, app: ASGIApp, metrics: HttpMetrics, allowed_hosts: Sequence[str], origins: Collection[str]
    ) -> None:
        self._app = app
        self._metrics = metrics
        own = socket.gethostname().lower()
        self._hosts = (*allowed_hosts, own, f"{own}.local", "*.localhost")
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._check_host(headers)
                if scope["method"] not in _SAFE_METHODS:
                    self._check_origin(headers)
            except (MisdirectedHost, ForbiddenOrigin) as error:
                self._metrics.count_turned_away(error.code)
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        for value in headers.getlist("host"):  # HTTP/1.0, as of some health checks, has none
            host = host_of(value)
            if not _is_local_name(host) and not any(_matches(host, known) for known in self._hosts):
                raise MisdirectedHost(
                    f"Host: this server does not answer for {value[:100]!r}; the operator can allow the"
                    " name with SMALTI_ALLOWED_HOSTS"
                )

    def _check_origin(self, headers: Headers) -> None:
        """Refuse what a browser says comes from the page of another origin, unless that is allowed."""
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site")
        if site in ("same-origin", "none") or (site is None and origin is None):
            return
        if ANY in self._origins or (origin or "").lower() in self._origins:
            return
        if site is None and _netloc(origin or "") == headers.get("host", "").lower() != "":
            return
        raise ForbiddenOrigin(
            f"Origin: pages of {(origin or 'another site')[:100]!r} may not do that; the operator"
            " can allow it with SMALTI_CORS_ORIGINS"
        )


class SecureHeaders:
    """Middleware that tells browsers, with every answer, to take it for nothing but what it is."""

    def __init__(self, app: ASGIApp, has_foreign_pages: bool) -> None:
        self._app = app
        self._headers = {
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "cross-origin" if has_foreign_pages else "same-site",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                is_page = headers.get("content-type", "").startswith("text/html")
                headers.setdefault("Content-Security-Policy", _SHOWS_DOCS if is_page else _SHOWS_A_FILE)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class AllowOrigins(CORSMiddleware):
    """Starlette's, with our headers, and with refusals in our shape."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=(ANY,),
            expose_headers=EXPOSED_HEADERS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        told = bytes(response.body).decode()
        return problem_response(
            problem_of("forbidden_origin", f"{told}; SMALTI_CORS_ORIGINS names the origins that may")
        )


def _netloc(origin: str) -> str:
    """Return the host and port of an origin; "" for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def host_of(header: str) -> str:
    """Return the name or address in a Host header: in lower case, without port, brackets or final dot."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


def _is_local_name(host: str) -> bool:
    """Say whether a host is an address, or a name without a dot, which no public DNS answers for."""
    if host and not set(host) - set("abcdefghijklmnopqrstuvwxyz0123456789-_"):
        return True
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _matches(host: str, pattern: str) -> bool:
    return pattern in (ANY, host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))
