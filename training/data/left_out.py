"""What lies in a data set's folder beside the pictures that are taken."""

import logging
import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})

_OF_SYSTEMS = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
# What people write beside pictures, and what belongs to the data set itself.
_TEXTS = frozenset({"readme", "license", "captions", "metadata", "dataset"})
_MAX_KINDS = 8


def is_of_users(path: Path) -> bool:
    """Say whether a person put this there: it is not hidden, and not made by a system."""
    return not path.name.startswith(".") and path.name not in _OF_SYSTEMS


def say_left_out(folder: Path, taken: Collection[Path], elsewhere: str) -> None:
    """Log in a line what is in a folder and not among the pictures that are taken; nothing if all is.

    elsewhere: what to call pictures that are not taken.
    """
    counts: Counter[str] = Counter()
    for place, folders, names in os.walk(folder):
        if not folders and not names and Path(place) != folder:
            counts["empty folders"] += 1
        counts["hidden or made by a system"] += sum(not is_of_users(Path(name)) for name in folders + names)
        folders[:] = [name for name in folders if is_of_users(Path(name))]
        for path in (Path(place, name) for name in names):
            if is_of_users(path) and path not in taken and path.stem.lower() not in _TEXTS:
                counts[_kind(path, elsewhere)] += 1
    if counts := +counts:
        told = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(_MAX_KINDS))
        logger.warning("%s: left out: %s", folder, told)


def _kind(path: Path, elsewhere: str) -> str:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return elsewhere if path.is_file() else "not files"
    return suffix if suffix.isprintable() and suffix else "without a suffix"
