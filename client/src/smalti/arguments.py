"""What is given to methods, checked before anything is sent."""

import json
import math
from collections.abc import Mapping
from typing import Any

from smalti.errors import InvalidArgument

_MAX_SHOWN = 64


def check_seconds(name: str, value: Any, most: float = math.inf) -> None:
    """Raises: InvalidArgument when it is not a length of time."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        limit = "0 or more seconds" if most == math.inf else f"0 to {most:g} seconds"
        raise InvalidArgument(name, f"is {limit}, got {shown(value)}")


def check_sendable(fields: Mapping[str, Any]) -> None:
    """Raises: InvalidArgument naming the first field that JSON can't hold."""
    for name, value in fields.items():
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            raise InvalidArgument(name, f"{_problem(error)}, got {shown(value)}") from None


def shown(value: Any) -> str:
    """Return a value as an error may show it: short, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # of a foreign type
        text = f"a {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


def _problem(error: Exception) -> str:
    match error:
        case UnicodeEncodeError():
            return "must be text that UTF-8 can hold"
        case RecursionError():
            return "is nested too deeply"
        case TypeError():
            return "must be text, numbers, lists and mappings of them"
    words = str(error)
    if "Out of range float" in words:
        return "must be finite: no nan, no infinity"
    return "holds itself" if "Circular" in words else words
