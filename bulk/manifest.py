"""``manifest.json``: what the rows of a folder of codes were made by, the same for all of its shards."""

import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bulk.errors import BulkError
from models.code_shards import MANIFEST
from models.media.image import ImageSpec
from models.options import Precision, describe_invalid

# In words, as no field of the specification says it. Another rule gets another name.
RULE = "upright, sRGB, white behind transparency, middle cut out, Lanczos"

MAX_CROPS = 64
_MAX_UINT16_CODES = 2**16
_MAX_SHARDS = 10**6  # names have six digits


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Transform(_Part):
    """How a picture's file becomes what is encoded."""

    width_px: int = Field(ge=1, le=8192)
    height_px: int = Field(ge=1, le=8192)
    channels: Literal[1, 3]
    rule: str = RULE
    flips: bool = False
    crops: int = Field(default=1, ge=1, le=MAX_CROPS)


class SourcesInfo(_Part):
    """given: as the first run named them, unless they are many. digest: of ids and sizes of all items."""

    given: tuple[str, ...]
    column: str | None = None
    num_items: int = Field(ge=1)
    digest: str


class Manifest(_Part):
    """What a folder of codes holds. shard_size: items a shard, each of a row for each crop and flip.

    format: 2 where codes are packed, ``bits_per_code`` each.
    """

    format: Literal[1, 2] = 1
    smalti: str
    pipeline: str
    tokenizer: str = Field(pattern=r"^[0-9a-f]{16}$")
    precision: Precision = "float32"
    grid: tuple[int, ...] = Field(min_length=1, max_length=3)
    num_codebooks: int = Field(ge=1)
    codebook_size: int = Field(ge=2, le=2**20)
    bits_per_code: int | None = Field(default=None, ge=1, le=20)
    effort: int = 0
    return_psnr: bool = False
    transform: Transform
    shard_size: int = Field(ge=1)
    sources: SourcesInfo

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The smallest type that every code fits into, little-endian."""
        return np.dtype("<u2" if self.codebook_size <= _MAX_UINT16_CODES else "<u4")

    @property
    def codes_shape(self) -> tuple[int, ...]:
        """Of one row, as /encode nests them: (*grid), or (num_codebooks, *grid)."""
        return self.grid if self.num_codebooks == 1 else (self.num_codebooks, *self.grid)

    @property
    def num_codes(self) -> int:
        """Of one row."""
        return math.prod(self.codes_shape)

    @property
    def rows_per_item(self) -> int:
        return self.transform.crops * (2 if self.transform.flips else 1)

    @property
    def num_shards(self) -> int:
        return -(-self.sources.num_items // self.shard_size)

    @property
    def medium(self) -> ImageSpec:
        transform = self.transform
        return ImageSpec(
            width_px=transform.width_px, height_px=transform.height_px, channels=transform.channels
        )

    def check(self) -> "Manifest":
        """Return this manifest.

        Raises: BulkError when it would make more shards than have names.
        """
        if self.num_shards > _MAX_SHARDS:
            least = -(-self.sources.num_items // _MAX_SHARDS)
            raise BulkError(
                f"--shard-size: must be {least} or more for {self.sources.num_items} pictures,"
                f" got {self.shard_size}"
            )
        return self

    def num_items_of(self, shard: int) -> int:
        """Return how many items a shard has; the last may have fewer."""
        return min(self.shard_size, self.sources.num_items - shard * self.shard_size)

    def footer(self) -> dict[str, Any]:
        """Return what each shard says of itself; what is asked for seldom, only where it is."""
        footer = self.model_dump(mode="json", exclude={"sources", "shard_size"})
        if self.bits_per_code is None:
            del footer["bits_per_code"]
        if self.transform.crops == 1:
            del footer["transform"]["crops"]
        return footer

    def write(self, folder: Path) -> None:
        """Write the file, or check that the one that is there is of the same rows.

        Raises: BulkError naming what differs; OSError.
        """
        if not self.check_fits(folder):
            write_whole(folder / MANIFEST, (self.model_dump_json(indent=2) + "\n").encode())

    def check_fits(self, folder: Path) -> bool:
        """Return whether the folder was begun, which then must have been with the same rows.

        Raises: BulkError naming what differs.
        """
        if not (folder / MANIFEST).exists():
            return False
        self._check_same(Manifest.load(folder), folder)
        return True

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read the file of a folder of codes.

        Raises: BulkError.
        """
        path = folder / MANIFEST
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise BulkError(f"{folder} is not a folder of codes: {path}: {error.strerror}") from error
        except ValidationError as error:
            raise BulkError(f"{path}: {describe_invalid(error)}") from error

    def _check_same(self, other: "Manifest", folder: Path) -> None:
        for what, mine, theirs in (
            ("tokenizer", self.tokenizer, other.tokenizer),
            ("the tokenizer's precision", self.precision, other.precision),
            ("transform", self.transform, other.transform),
            ("bits of a code (--pack)", self.bits_per_code, other.bits_per_code),
            ("--effort", self.effort, other.effort),
            ("--return-psnr", self.return_psnr, other.return_psnr),
            ("--shard-size", self.shard_size, other.shard_size),
            ("--column", self.sources.column, other.sources.column),
            ("number of pictures", self.sources.num_items, other.sources.num_items),
            ("names and sizes of the pictures", self.sources.digest, other.sources.digest),
        ):
            if mine != theirs:
                raise BulkError(
                    f"{folder} holds other codes: {what}: there {theirs}, now {mine}."
                    " Go on as it was begun, or name another folder"
                )


@dataclass(frozen=True)
class Share:
    """``--shard i/n``: of n machines, this is number i, from 1 on."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Raises: BulkError."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise BulkError(f"--shard must be I/N with I from 1 to N, as in 2/4, got {text!r:.40}")
        return cls(int(number), int(of))

    def has(self, shard: int) -> bool:
        return shard % self.of == self.number - 1


def partial_suffix(process: int | None = None) -> str:
    """Return the end of names of what a process of this machine is writing."""
    return f".partial-{socket.gethostname()}-{os.getpid() if process is None else process}"


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that it is there whole, or not at all, whatever ends this process.

    Raises: OSError.
    """
    partial = path.with_name(f".{path.name}{partial_suffix()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
