"""JSON Lines: one JSON value a line, and lines end at line feeds alone."""

import json
from pathlib import Path
from typing import Any

from training.data.dataset import DataError


def read_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of a JSON Lines file with their line numbers; blank lines are left out.

    Raises: DataError naming the first line that isn't an object.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-8: {error}") from error
    objects = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(), which cuts inside strings
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number} is not valid JSON: {error}; each line is one whole object"
                ) from error
            if not isinstance(value, dict):
                raise DataError(
                    f"{path}, line {number}: one object a line, as {{…}}, without a list around them,"
                    f" got {line.strip()[:40]}"
                )
            objects.append((number, value))
    return objects
