"""Where a command writes its outputs: checked before anything is computed."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.answers import Answer
from app.cli.pictures import MAX_SHOWN, can_show, show_picture
from app.cli.terminal import CommandError

Show = Annotated[
    bool | None,
    typer.Option(
        "--show/--no-show", help="Pictures in the terminal, too.  [default: where it can show them]"
    ),
]


@dataclass(frozen=True)
class Outputs:
    """The files that ``--out`` names: one, or ``x-0.png``, ``x-1.png``, …; or standard output.

    show: in the terminal, too; None where it can.

    Raises: CommandError when they can't be written.
    """

    out: Path
    as_json: bool = False
    show: bool | None = None

    def __post_init__(self) -> None:
        if self.is_standard_output:
            if self.as_json:
                raise CommandError("--out - and --json both want standard output: name a file")
            if sys.stdout.isatty():
                raise CommandError("--out - would fill the terminal with bytes: pipe them on, or name a file")
            return
        if not self.out.suffix:
            raise CommandError(f"--out must end in .png, .webp or .jpg, got {self.out}")
        if self.out.is_dir():
            raise CommandError(f"--out must name a file, and {self.out} is a folder")
        folder = self.out.parent
        if not folder.is_dir():
            raise CommandError(f"--out {self.out}: the folder {folder} is missing; make it first")
        if not os.access(self.out if self.out.exists() else folder, os.W_OK):
            raise CommandError(f"--out {self.out} can't be written: no permission")

    @property
    def is_standard_output(self) -> bool:
        return str(self.out) == "-"

    @property
    def format(self) -> str | None:
        """The format that the name asks for; standard output gets the pipeline's default."""
        suffix = self.out.suffix.lower().removeprefix(".")
        return None if self.is_standard_output else "jpeg" if suffix == "jpg" else suffix

    def require_room(self, num_outputs: int) -> None:
        """Check that there are names for all outputs.

        Raises: CommandError.
        """
        if self.is_standard_output and num_outputs > 1:
            raise CommandError(f"--out - takes one output, and there are {num_outputs}")

    def write(self, answers: Sequence[Answer]) -> list[str | None]:
        """Write the outputs that there are, tell where each is, and return that; None for one that failed.

        Raises: CommandError.
        """
        made = [each for answer in answers for each in answer.outputs]
        files: list[str | None] = []
        for number, each in enumerate(made):
            if each.read is None:
                files.append(None)
                continue
            data = each.read()
            if self.is_standard_output:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
                continue
            path = self.out.with_stem(f"{self.out.stem}-{number}") if len(made) > 1 else self.out
            self._write_file(path, data)
            files.append(str(path))
            if self._shows and number < MAX_SHOWN:
                show_picture(data)
        return files

    def write_codes(self, result: dict[str, Any]) -> None:
        """Write a result with its codes beside the outputs.

        Raises: CommandError.
        """
        self._write_file(self.out.with_suffix(".json"), json.dumps(result).encode())

    @property
    def _shows(self) -> bool:
        if self.as_json:
            return False
        return can_show() if self.show is None else self.show

    def _write_file(self, path: Path, data: bytes) -> None:
        try:
            path.write_bytes(data)
        except OSError as error:
            raise CommandError(f"{path} can't be written: {error.strerror}") from error
        if not self.as_json:
            typer.echo(path)
