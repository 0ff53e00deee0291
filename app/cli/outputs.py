"""Where a command writes its outputs: checked before anything is computed."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from app.cli.terminal import CommandError

if TYPE_CHECKING:
    from workers.compute import Finished, Work


@dataclass(frozen=True)
class Outputs:
    """The files that ``--out`` names: one, or ``x-0.png``, ``x-1.png``, …; or standard output.

    Raises: CommandError when they can't be written.
    """

    out: Path

    def __post_init__(self) -> None:
        if self.is_standard_output:
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

    def require_room(self, works: "Sequence[Work]") -> None:
        """Check that there are names for all outputs.

        Raises: CommandError.
        """
        number = sum(work.request.num_samples for work in works)
        if self.is_standard_output and number > 1:
            raise CommandError(f"--out - takes one output, and there are {number}")

    def write(
        self, works: "Sequence[Work]", finished: "Sequence[Finished]", *, tells_provenance: bool
    ) -> None:
        """Write the outputs that there are and print where each is.

        Raises: CommandError.
        """
        from workers.files import encode_output

        number_of_outputs = sum(len(each.samples) for each in finished)
        places = (
            (work, each, index)
            for work, each in zip(works, finished, strict=True)
            for index in range(len(each.samples))
        )
        for number, (work, job, index) in enumerate(places):
            if job.samples[index].signal is None:
                continue
            data = encode_output(work.request, job, index, tells_provenance=tells_provenance)
            if self.is_standard_output:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
                continue
            several = number_of_outputs > 1
            self.write_file(self.out.with_stem(f"{self.out.stem}-{number}") if several else self.out, data)

    def write_file(self, path: Path, data: bytes) -> None:
        """Write a file and print where it is.

        Raises: CommandError.
        """
        try:
            path.write_bytes(data)
        except OSError as error:
            raise CommandError(f"{path} can't be written: {error.strerror}") from error
        typer.echo(path)


def require_success(finished: "Sequence[Finished]") -> None:
    """Check that all samples are there.

    Raises: CommandError naming those that failed, and why.
    """
    failed = [f"output {number}: {error}" for number, error in enumerate(_errors(finished)) if error]
    if failed:
        raise CommandError("; ".join(failed))


def _errors(finished: "Sequence[Finished]") -> "Iterator[Exception | None]":
    for each in finished:
        if each.error is not None:
            yield each.error
        yield from (sample.error for sample in each.samples)
