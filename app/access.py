"""What a request needs a key for, checked before anything of it is read."""

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Forbidden, Unauthorized, refuse
from app.keys import Key, Keys, current_key
from app.keys import Scope as KeyScope
from app.metrics import HttpMetrics
from app.root_path import path_below_root

_OPEN = re.compile(r"/|/health/.*|/docs.*|/openapi\.json|/static-offline-docs/.*")
_ADMIN = re.compile(r"/(metrics|queue/|workers|pipelines/).*", re.DOTALL)
_BATCH = re.compile(r"(/v1)?/batches.*", re.DOTALL)
_FOR_BATCHES = re.compile(r"(/v1)?/files.*|/pipelines|/v1/models.*", re.DOTALL)  # what rows are written with
_SIGNED = re.compile(
    r"/jobs/[^/]+/(events|latents|(outputs|images)/[^/]+)"
)  # which browsers ask for without a header
API_KEY, SIGNATURE = "API key", "Signed address"  # as OpenAPI names what lets a request in
SECURITY_SCHEMES = {
    API_KEY: {"type": "http", "scheme": "bearer"},
    SIGNATURE: {
        "type": "apiKey",
        "in": "query",
        "name": "signature",
        "description": "An address as a job tells it, with its whole query.",
    },
}
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="smalti"'}


def security_of(method: str, path: str) -> list[dict[str, list[str]]]:
    """Return what OpenAPI says that a request needs where there are keys: one of these, or nothing."""
    if _OPEN.fullmatch(path):
        return []
    is_signed = method in ("get", "head") and _SIGNED.fullmatch(path)
    return [{API_KEY: []}, {SIGNATURE: []}] if is_signed else [{API_KEY: []}]


class CheckKey:
    """Middleware that lets requests in by their key: ``Authorization: Bearer``, or a signed address."""

    def __init__(self, app: ASGIApp, keys: Keys, metrics: HttpMetrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] != "http" or scope["method"] == "OPTIONS"  # which only says what there is
        if is_open or _OPEN.fullmatch(path_below_root(scope)):
            await self._app(scope, receive, send)
            return
        try:
            key = self._admit(scope)
        except (Unauthorized, Forbidden) as error:
            self._metrics.count_turned_away(error.code)
            await refuse(error, scope, receive, send, _CHALLENGE if error.code == "unauthorized" else None)
            return
        token = current_key.set(key)
        try:
            await self._app(scope, receive, send)
        finally:
            current_key.reset(token)

    def _admit(self, scope: Scope) -> Key:
        """Return the key of a request.

        Raises: Unauthorized; Forbidden.
        """
        path = path_below_root(scope)
        kind, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
        key = self._keys.find(secret.strip()) if kind.lower() == "bearer" else None
        if key is None and not kind and scope["method"] in ("GET", "HEAD") and _SIGNED.fullmatch(path):
            signer = self._keys.signer(path, scope["query_string"].decode("latin-1"))
            if signer is not None:
                return signer
        if key is None:
            raise Unauthorized(
                "Authorization: this address takes an API key, as `Authorization: Bearer KEY`; "
                + ("the one that came is unknown" if kind else "none came")
            )
        enough = _enough(path)
        if not any(map(key.may, enough)):
            raise Forbidden(
                f"Authorization: the key {key.name} lacks the scope {' or '.join(enough)}, which this needs"
            )
        return key


def _enough(path: str) -> tuple[KeyScope, ...]:
    """Return the scopes of which a key needs one."""
    if _ADMIN.fullmatch(path):
        return ("admin",)
    if _BATCH.fullmatch(path):
        return ("batch",)
    return ("generate", "batch") if _FOR_BATCHES.fullmatch(path) else ("generate",)
