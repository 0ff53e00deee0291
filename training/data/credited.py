"""A data set of photographs that are credited, from a folder of a folder for each class.

Licences as CC-BY ask that each photographer is named. A file of credits has a line for each picture,

    daisy/8710109684_e2c5ef6aeb_n.jpg CC-BY by Jon Bunting - https://www.flickr.com/photos/…

as the archive of TensorFlow's flower photographs has it; other lines are kept as its header. What it doesn't
name is left out.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from training.data.dataset import DataError
from training.data.left_out import IMAGE_SUFFIXES

CREDITS_FILE = "CREDITS.txt"
_KNOWN_CREDITS = (CREDITS_FILE, "LICENSE.txt")


@dataclass(frozen=True)
class Credited:
    """What was taken: the number of pictures by class, and how many no line names."""

    num_pictures: Mapping[str, int]
    num_left_out: int


def take_credited(source: Path, out: Path, credits: Path | None = None) -> Credited:
    """Put the credited pictures of ``source/<class>/`` into ``out/<class>/``, with their credits beside them.

    Pictures are linked where the file system can, copied where not. credits: ``CREDITS.txt`` or
    ``LICENSE.txt`` in ``source`` without it. A picture may have another suffix than its line says.

    Raises: DataError when ``out`` is taken, there are no credits, or none of them names a picture.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty: name a new folder")
    file = credits or next((path for name in _KNOWN_CREDITS if (path := source / name).is_file()), None)
    if file is None:
        raise DataError(
            f"{source} holds no {' or '.join(_KNOWN_CREDITS)}: say which file names the photographers"
        )
    header, lines = _read(file)
    pictures = sorted(path for path in source.glob("*/*") if path.suffix.lower() in IMAGE_SUFFIXES)
    credited = {path: lines[key] for path in pictures if (key := f"{path.parent.name}/{path.stem}") in lines}
    if not credited:
        raise DataError(f"{file} names none of the {len(pictures)} pictures in the folders of {source}")
    num_pictures: dict[str, int] = {}
    for path in credited:
        folder = out / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        _place(path, folder / path.name)
        num_pictures[folder.name] = num_pictures.get(folder.name, 0) + 1
    text = "\n".join([*header, *credited.values()]) + "\n"
    (out / CREDITS_FILE).write_text(text, encoding="utf-8")
    return Credited(num_pictures, len(pictures) - len(credited))


def _read(file: Path) -> tuple[list[str], dict[str, str]]:
    """Return the lines that name no picture, and the others by class and name without its suffix.

    Raises: DataError.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} can't be read as text: {error}") from error
    header, lines = [], {}
    for line in map(str.strip, text.splitlines()):
        named = PurePosixPath(line.partition(" ")[0])
        if len(named.parts) == 2 and named.suffix.lower() in IMAGE_SUFFIXES:
            lines[str(named.with_suffix(""))] = line
        else:
            header.append(line)
    return header, lines


def _place(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
