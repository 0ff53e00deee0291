"""What the routes that take a body share."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request as HttpRequest

from app.errors import UnsupportedMediaType
from app.negotiation import JSON_MEDIA_TYPE

FORM_MEDIA_TYPE = "multipart/form-data"


def takes(*media_types: str) -> Callable[[HttpRequest], Awaitable[None]]:
    """Return a dependency that refuses bodies of other media types; it raises UnsupportedMediaType."""

    async def check(http: HttpRequest) -> None:
        got = media_type_of(http)
        if got not in media_types:
            raise UnsupportedMediaType(
                f"Content-Type: send {' or '.join(media_types)}, got {got[:60] or 'none'}"
            )

    return check


takes_json = takes(JSON_MEDIA_TYPE)


def media_type_of(http: HttpRequest) -> str:
    """Return the media type of a request's body, without its parameters."""
    return http.headers.get("content-type", "").partition(";")[0].strip().lower()
