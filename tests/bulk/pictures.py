"""Pictures for folders of codes."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

OPTIONS = ("--shard-size", "8", "--decoders", "1", "--pipeline", "tiny")  # of `smalti encode`


def picture(number: int, width_px: int = 20, height_px: int = 16, format: str = "PNG") -> bytes:
    """Return a file of a picture of its own for each number: large squares, which the tiny tokenizer tells apart."""
    squares = np.random.default_rng(number).choice([0, 128, 255], (4, 5, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(squares).resize((width_px, height_px), Image.Resampling.NEAREST).save(buffer, format)
    return buffer.getvalue()


def write_pictures(folder: Path, num_pictures: int) -> None:
    """Write small pictures ``0000.png``, …."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_pictures):
        (folder / f"{number:04d}.png").write_bytes(picture(number))


def write_tar(path: Path, names: Sequence[str]) -> None:
    """Write a tar whose members have these names, and pictures 0, 1, …."""
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            data = picture(number)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
