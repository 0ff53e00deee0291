"""Requests from what the command line was given."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.answers import read_file
from app.cli.terminal import CommandError, given

if TYPE_CHECKING:
    from workers.messages import Operation, Request


def request_of(operation: "Operation", fields: Mapping[str, Any]) -> "Request":
    """Make a request of the options given.

    Raises: CommandError naming each option that can't be used.
    """
    from pydantic import ValidationError

    from app.field_errors import field_errors
    from workers.messages import DecodeRequest, EncodeRequest, GenerateRequest

    kinds: Mapping[Operation, type[Request]] = {
        "generate": GenerateRequest,
        "encode": EncodeRequest,
        "decode": DecodeRequest,
    }
    try:
        return kinds[operation](**given(dict(fields)))
    except ValidationError as error:
        found = field_errors(error.errors(include_url=False))
        raise CommandError("; ".join(f"{each.field}: {each.message}" for each in found)) from error


def labels_of(pairs: Sequence[str]) -> dict[str, str] | None:
    """Return the labels that options name as SET=NAME.

    Raises: CommandError.
    """
    labels: dict[str, str] = {}
    for pair in pairs:
        name, is_pair, label = pair.partition("=")
        if not (name and is_pair and label):
            raise CommandError(f"--labels must be SET=NAME, as in style=noto, got {pair!r}")
        if name in labels:
            raise CommandError(f"--labels names the set {name!r} twice: {labels[name]!r} and {label!r}")
        labels[name] = label
    return labels or None


def read_codes(path: Path) -> list[dict[str, Any]]:
    """Return the requests for /decode that a file holds: one, or one a line.

    Raises: CommandError.
    """
    from app.codes import codes_of_answer

    data = read_file(path)
    try:
        try:
            answers = [json.loads(data)]
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise
            answers = [json.loads(line) for line in data.split(b"\n") if line.strip()]
        bodies = list(map(codes_of_answer, answers))
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path} does not hold codes in JSON: {error}") from error
    kept = [body if isinstance(body, dict) else {} for body in bodies]
    return [{name: body.get(name) for name in ("codes", "tokenizer")} for body in kept]
