"""What both clients' ``map`` share."""

from collections.abc import Iterable, Mapping, Sized
from typing import Any

from smalti.arguments import shown
from smalti.errors import InvalidArgument
from smalti.fields import Operation

MAX_CONCURRENCY = 256
_MAIN_FIELD = {"generate": "prompt", "encode": "source", "decode": "codes"}


def check_many(requests: Iterable[Any], concurrency: int) -> None:
    """Check what ``map`` is asked for. Raises: InvalidArgument."""
    if isinstance(requests, (str, bytes, Mapping)):
        raise InvalidArgument(
            "requests", f"is a list or another iterable of them, got one {type(requests).__name__}"
        )
    if not isinstance(concurrency, int) or not 1 <= concurrency <= MAX_CONCURRENCY:
        raise InvalidArgument("concurrency", f"is 1 to {MAX_CONCURRENCY}, got {shown(concurrency)}")


def fields_of(operation: Operation, request: Any) -> dict[str, Any]:
    """Return the fields of a request that may be its prompt, source or codes alone."""
    return dict(request) if isinstance(request, Mapping) else {_MAIN_FIELD[operation]: request}


def total_of(requests: Iterable[Any]) -> int | None:
    """Return how many requests there are, where that is known."""
    return len(requests) if isinstance(requests, Sized) else None
