"""What pydantic found wrong with a request, in words for its client."""

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

_MAX_VALUE_CHARS = 60
_MAX_NAME_CHARS = 60  # of each part of a field's name, which may be the client's own
_NOT_AN_OBJECT = ("model_type", "model_attributes_type", "dict_type")


class FieldError(BaseModel):
    """What is wrong with one field."""

    field: str
    message: str


def field_errors(errors: Sequence[ErrorDetails | Any], fields: Sequence[str] = ()) -> tuple[FieldError, ...]:
    """Say what pydantic found, one entry a field, with the value where it is short.

    fields: the names that there are, to point out a misspelt one.
    """
    found: dict[str, list[ErrorDetails | Any]] = {}
    for error in errors:
        found.setdefault(_field_name(error["loc"]), []).append(error)
    # Of a union's errors, those that say more than "not this type".
    telling = {
        name: [error for error in same if not _is_about_type(error)] or same
        for name, same in found.items()
        if not (all(map(_is_about_type, same)) and _has_parts(name, found))
    }
    is_alone = len(telling) == 1
    return tuple(
        FieldError(field=name, message=_message(same, name, fields, is_alone))
        for name, same in telling.items()
    )


def short(name: str) -> str:
    """Return the beginning of a name that may be the client's own."""
    return name if len(name) <= _MAX_NAME_CHARS else f"{name[:_MAX_NAME_CHARS]}…"


def _field_name(location: Sequence[int | str]) -> str:
    """Return `codes[0]` for ("codes", "list[list[any]]", 0): names of a union's types are left out."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif not name or not _is_type_name(part):
            name += f".{short(part)}" if name else short(part)
    return name or "body"


def _is_type_name(part: str) -> bool:
    """Say whether a part names one of a union's types: `CodesInfo`, `list[any]`, `constrained-int`."""
    return part in ("str", "int") or part[:1].isupper() or "[" in part or part.startswith("constrained-")


def _is_about_type(error: ErrorDetails | Any) -> bool:
    return str(error["type"]).endswith(("_type", "_parsing"))


def _has_parts(name: str, names: Iterable[str]) -> bool:
    """Say whether there are errors deeper inside a field."""
    return name != "body" and any(other.startswith((f"{name}.", f"{name}[")) for other in names)


def _message(errors: Sequence[ErrorDetails | Any], name: str, fields: Sequence[str], is_alone: bool) -> str:
    """Say what is wrong with a field, which a union's types may see differently, and what was got."""
    match errors[0]["type"]:
        case "missing":
            return "is required"
        case "json_invalid":
            return f"is not valid JSON: {errors[0]['ctx']['error']}"
        case "extra_forbidden" if "." in name or not fields:
            return "unknown field"
        case "extra_forbidden":
            nearest = difflib.get_close_matches(name, fields, n=1)
            if nearest:
                return f"unknown field; did you mean {nearest[0]}?"
            return f"unknown field; known are {', '.join(fields)}" if is_alone else "unknown field"
    message = " or ".join(map(_claim, errors))
    tells_value = name != "body" and errors[0]["type"] != "value_error"
    return f"{message}{_value(errors[0]['input'])}" if tells_value else message


def _claim(error: ErrorDetails | Any) -> str:
    if error["type"] in _NOT_AN_OBJECT:
        return "should be an object"
    message = str(error["msg"]).partition(" after validation")[0]
    for subject in ("Input ", "String ", "List ", "Dictionary ", "Value error, "):
        message = message.removeprefix(subject)
    return message


def _value(value: object) -> str:
    match value:
        case str() if len(value) > _MAX_VALUE_CHARS:
            return f", got {len(value)} characters"
        case list() | tuple():
            return f", got {len(value)} of them"
        case dict():
            return ", got an object"
        case bool() | None:
            return f", got {json.dumps(value)}"
        case int():
            return f", got {str(value)[:_MAX_VALUE_CHARS]}"
        case str() | float():
            return f", got {value!r}"
        case _:
            return ""
