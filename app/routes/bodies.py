"""What the routes that take a body share."""

import json
from collections.abc import Awaitable, Callable, Coroutine
from email.message import Message
from http import HTTPStatus
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.errors import UnsupportedMediaType
from app.negotiation import JSON_MEDIA_TYPE

FORM_MEDIA_TYPE = "multipart/form-data"
MAX_VALUES = 2**20  # of a body; what it takes in memory and time follows from these three
MAX_PARTS = 2**17  # lists and objects of a body
MAX_FIELDS = 256  # of an object
MAX_DIGITS = 100  # of a whole number: reading one takes the square of them
_CHARSETS = ("utf-8", "utf8", "us-ascii")


def takes(*media_types: str) -> Callable[[HttpRequest], Awaitable[None]]:
    """Return a dependency that refuses bodies of other media types; it raises UnsupportedMediaType."""

    async def check(http: HttpRequest) -> None:
        got = media_type_of(http)
        if got not in media_types:
            raise UnsupportedMediaType(
                f"Content-Type: send {' or '.join(media_types)}, got {got[:60] or 'none'}"
            )
        charset = charset_of(http)
        if got == JSON_MEDIA_TYPE and charset not in _CHARSETS:
            raise UnsupportedMediaType(f"Content-Type: JSON is UTF-8, got charset={charset[:60]}")

    return check


takes_json = takes(JSON_MEDIA_TYPE)


def media_type_of(http: HttpRequest) -> str:
    """Return the media type of a request's body, without its parameters."""
    return http.headers.get("content-type", "").partition(";")[0].strip().lower()


def charset_of(http: HttpRequest) -> str:
    """Return the charset of a request's body, in lower case: UTF-8 where it is left out."""
    message = Message()
    message["content-type"] = http.headers.get("content-type", "")
    return message.get_content_charset("utf-8")


class JsonRoute(APIRoute):
    """A route whose JSON is read by ``read_json``."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_and_handle(http: HttpRequest) -> Response:
            return await handle(_JsonRequest(http.scope, http.receive))

        return read_and_handle


class _JsonRequest(HttpRequest):
    async def json(self) -> Any:
        return read_json(await self.body())


def read_json(body: bytes) -> Any:
    """Return what JSON says, as long as it says one thing and no more than any request needs.

    Raises: JSONDecodeError where it is not JSON, which NaN is not; HTTPException for the rest, which
        FastAPI lets through while it reads a body.
    """
    num_parts = body.count(b"[") + body.count(b"{")
    if num_parts > MAX_PARTS:
        _refuse(f"body: has at most {MAX_PARTS} lists and objects, got {num_parts}")
    if (num_values := body.count(b",")) > MAX_VALUES:
        _refuse(f"body: has at most {MAX_VALUES} values, got {num_values}")
    try:
        decoder = _DECODER if num_values <= MAX_PARTS else _DECODER_OF_MANY
        return decoder.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        got = f"byte 0x{body[error.start]:02x} at {error.start}"
        _refuse(f"body: is not UTF-8: got {got}", HTTPStatus.BAD_REQUEST)
    except RecursionError:
        _refuse("body: its lists and objects are nested too deep", HTTPStatus.BAD_REQUEST)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's own limit
        _refuse_long_number()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(pairs) > MAX_FIELDS:
        _refuse(f"body: an object in it has at most {MAX_FIELDS} fields, got {len(pairs)}")
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        _refuse(f"body: the field {twice[:60]!r} is named twice in one object")
    if not all(map(str.isascii, found)):
        try:
            "".join(found).encode()
        except UnicodeEncodeError:
            _refuse("body: the name of a field has half of a surrogate pair")
    return found


def _whole_number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        _refuse_long_number()
    return int(text)


def _refuse_long_number() -> NoReturn:
    _refuse(f"body: a whole number in it has more than {MAX_DIGITS} digits", HTTPStatus.BAD_REQUEST)


def _no_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no number in JSON", "", 0)


_DECODER, _DECODER_OF_MANY = (
    json.JSONDecoder(object_pairs_hook=_object, parse_int=parse_int, parse_constant=_no_constant)
    for parse_int in (_whole_number, int)  # of so many, no number is long
)


def _refuse(detail: str, status: HTTPStatus = HTTPStatus.UNPROCESSABLE_ENTITY) -> NoReturn:
    raise HTTPException(status, detail)
