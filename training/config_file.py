"""A training's TOML file, read into its configuration; every mistake in it is said in a line of its own."""

import dataclasses
import difflib
import math
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from models.options import ConfigError

Config = TypeVar("Config")

_MAX_SHOWN_CHARS = 60


class TrainingError(ConfigError):
    """A run that can't start or go on; the message says what to change."""


def load_config(path: Path, config_class: type[Config]) -> Config:
    """Read a TOML file into ``config_class``.

    Raises: TrainingError when it can't be read, or has missing, unknown or bad fields: a line for each.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise TrainingError(f"{path} is not valid TOML: {error}") from error
    if problems := [f"{path}: {name} must be finite, got {number}" for name, number in _not_finite(raw)]:
        raise TrainingError("\n".join(problems))
    try:
        return TypeAdapter(config_class).validate_python(raw)
    except ConfigError as error:
        raise TrainingError(f"{path}: {error}") from error
    except ValidationError as error:
        lines = [f"{path}: {_describe(each, config_class)}" for each in error.errors(include_url=False)]
        raise TrainingError("\n".join(dict.fromkeys(lines))) from error


def _not_finite(raw: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found = []
    for name, value in raw.items():
        if isinstance(value, dict):
            found += _not_finite(value, f"{prefix}{name}.")
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, float) and not math.isfinite(each):
                found.append((f"{prefix}{name}", each))
    return found


def _describe(error: Any, config_class: type[Any]) -> str:
    """Return a mistake that pydantic found in our words: the field, what was got, and what is known."""
    *tables, name = (str(part) for part in error["loc"]) if error["loc"] else ("the file",)
    where = ".".join([*tables, name])
    match error["type"]:
        case "missing":
            return f"{where} is missing"
        case "unexpected_keyword_argument":
            known = _names(config_class, tables)
            near = difflib.get_close_matches(name, known, n=1)
            elsewhere = [table for table in _tables(config_class) if name in _names(config_class, [table])]
            if near:
                hint = f"did you mean {near[0]}?"
            elif elsewhere and not tables:
                hint = f"it belongs into the table [{elsewhere[0]}]"
            elif tables and name in _names(config_class, []):
                hint = f"it belongs above the table [{tables[0]}]"
            else:
                hint = f"known are {', '.join(known)}"
            return f"{where} is not a setting: {hint}"
    said = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    got = repr(error["input"])
    if error["type"] == "value_error" or len(got) > _MAX_SHOWN_CHARS:
        return f"{where}: {said}"
    return f"{where} {said}, got {got}"


def _names(config_class: type[Any], tables: list[str]) -> list[str]:
    """Return the settings that a table may have."""
    for table in tables:
        config_class = _tables(config_class).get(table, object)
    return [each.name for each in dataclasses.fields(config_class)] if _is_table(config_class) else []


def _tables(config_class: type[Any]) -> dict[str, type[Any]]:
    if not _is_table(config_class):
        return {}
    fields = dataclasses.fields(config_class)
    return {each.name: each.type for each in fields if isinstance(each.type, type) and _is_table(each.type)}


def _is_table(kind: type[Any]) -> bool:
    return dataclasses.is_dataclass(kind)
