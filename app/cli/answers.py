"""What commands ask for and get, whether it is computed here or by a service."""

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import typer

from app.cli.exit_status import ExitStatus
from app.cli.terminal import CommandError, say


@dataclass(frozen=True)
class Asked:
    """A request: its fields, the file that it is about, and the mask of that; ``-`` is standard input."""

    fields: Mapping[str, Any]
    path: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Made:
    """One output: what reads its bytes, or why it has none; one of /encode has neither."""

    read: Callable[[], bytes] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    result: as JSON. options: that were chosen for it, where that is known. latents: what reads their NumPy
    file, where it has some.
    """

    result: dict[str, Any]
    outputs: Sequence[Made] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    latents: Callable[[], bytes] | None = None


class Place(Protocol):
    """Where requests are computed."""

    def answers(
        self,
        operation: Literal["generate", "encode", "decode"],
        requests: Sequence[Asked],
        *,
        return_errors: bool = False,
    ) -> "Sequence[Answer | Exception]":
        """Return the answers to requests in their order; with ``return_errors`` an error instead of one.

        Raises: the first error, else.
        """
        ...


def place_of(url: str | None) -> Place:
    """Return the service at an address, or this process."""
    if url is not None:
        from app.cli.at_service import AtService

        return AtService(url)
    from app.cli.local import Local
    from app.cli.terminal import local_settings

    return Local(local_settings())


def answer_of(answer: Answer | Exception) -> Answer:
    """Return an answer. Raises: the error that there is instead."""
    if isinstance(answer, Exception):
        raise answer
    return answer


def require_success(answers: Sequence[Answer]) -> None:
    """Check that all outputs are there.

    Raises: CommandError naming those that failed, and why.
    """
    made = [each for answer in answers for each in answer.outputs]
    failed = [f"output {number}: {each.error}" for number, each in enumerate(made) if each.error]
    if failed:
        raise CommandError("; ".join(failed), ExitStatus.FAILED)


def say_warnings(answers: Sequence[Answer]) -> None:
    """Say once what was not done as asked."""
    for warning in dict.fromkeys(warning for answer in answers for warning in answer.result["warnings"]):
        say(warning)


def tell_json(value: object) -> None:
    """Write one line of JSON to standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def array_of(path: Path) -> Any:
    """Return the array of a NumPy file.

    Raises: CommandError.
    """
    import numpy as np

    try:
        return np.load(io.BytesIO(read_file(path)), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise CommandError(f"{path} is not a NumPy file (.npy) of numbers") from error


def read_file(path: Path) -> bytes:
    """Return the bytes of a file, or of standard input.

    Raises: CommandError.
    """
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} can't be read: {error.strerror}") from error
