"""API keys: made here, and shown once."""

import os
from pathlib import Path
from typing import Annotated

import typer

from app.cli.terminal import CommandError, say


def new_key(
    name: Annotated[str, typer.Argument(help="Who it is for: letters, digits, dots, dashes; at most 64.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="generate, batch or admin; may be repeated.  [default: generate, batch]"),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Append its line to this file, of SMALTI_API_KEYS_FILE.")
    ] = None,
) -> None:
    """Make an API key: the key goes to standard output, once, and its hash into the file.

    Services read their keys when they start.
    """
    from app.keys import SCOPES, Scope, make_key

    known: dict[str, Scope] = {each: each for each in SCOPES}
    unknown = [each for each in scope or () if each not in known]
    if unknown:
        raise CommandError(f"--scope must be {', '.join(SCOPES)}, got {unknown[0]!r}")
    try:
        secret, line = make_key(name, [known[each] for each in scope or ("generate", "batch")])
    except ValueError as error:
        raise CommandError("NAME: letters, digits, dots, dashes and underscores, at most 64") from error
    if file is None:
        say(f"put this line into SMALTI_API_KEYS, or a file that SMALTI_API_KEYS_FILE names: {line}")
    else:
        _append(file, line, {each.split()[0] for each in _lines(file)}, name)
    typer.echo(secret)


def _lines(file: Path) -> list[str]:
    if not file.exists():
        return []
    lines = map(str.strip, file.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _append(file: Path, line: str, names: set[str], name: str) -> None:
    """Add a line to a file that nobody else may read.

    Raises: CommandError where the name is taken.
    """
    if name in names:
        raise CommandError(f"{file} has a key {name} already; take another name, or remove its line")
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    ends_open = file.stat().st_size > 0 and not file.read_bytes().endswith(b"\n")
    with os.fdopen(descriptor, "a") as opened:
        opened.write(f"{os.linesep if ends_open else ''}{line}\n")
