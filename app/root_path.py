"""The prefix under which a proxy shows the API: taken off what comes in, put before addresses that go out."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ADDRESSES = (b"location", b"content-location")


class UseRootPath:
    """Middleware that knows the prefix, whether the proxy cuts it off or not.

    Addresses in headers get it here; those in bodies where they are written (``app.codes``, ``app.errors``).
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._root_path:
            await self._app(scope, receive, send)
            return
        scope["root_path"] = self._root_path
        if not is_below(scope["path"], self._root_path):
            scope["path"] = self._root_path + scope["path"]
            scope["raw_path"] = self._root_path.encode() + scope.get("raw_path", b"")

        async def send_prefixed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, self._prefix(value) if name.lower() in _ADDRESSES else value)
                    for name, value in message.get("headers", ())
                ]
            await send(message)

        await self._app(scope, receive, send_prefixed)

    def _prefix(self, address: bytes) -> bytes:
        root_path = self._root_path.encode()
        is_ours = address.startswith(b"/") and not address.startswith((b"//", root_path + b"/"))
        return root_path + address if is_ours else address


def is_below(path: str, root_path: str) -> bool:
    """Say whether a path has the prefix already."""
    return path == root_path or path.startswith(root_path + "/")


def path_below_root(scope: Scope) -> str:
    """Return the path of a request without the prefix."""
    path, root_path = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root_path) :] if root_path and is_below(path, root_path) else path
