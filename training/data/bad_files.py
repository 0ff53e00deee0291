"""Files of a data set that can't be used: named, counted, and left out while they are few."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.data.dataset import DataError

logger = logging.getLogger(__name__)

MAX_BAD_SHARE = 0.01

_FEW_FILES = 20  # of fewer, none is left out by itself
_NUM_NAMED = 3


def skip_bad_files(files: Sequence[Path], bad: Mapping[int, str], max_bad_share: float) -> list[int]:
    """Return the rows of the files that can be used; the others are named in a line.

    bad: why a file can't be used, by its row. Of 20 files and more, one may always be left out.

    Raises: DataError, in one line, when more than the share of ``max_bad_share`` are bad.
    """
    if not bad:
        return list(range(len(files)))
    named = "; ".join(f"{_shown(files[row])}: {bad[row]}" for row in sorted(bad)[:_NUM_NAMED])
    if len(bad) > _NUM_NAMED:
        named += f"; and {len(bad) - _NUM_NAMED} more"
    most = max(int(max_bad_share * len(files)), 1 if len(files) >= _FEW_FILES and max_bad_share else 0)
    if len(bad) == len(files):
        raise DataError(f"none of {len(files)} files can be used: {named}")
    if len(bad) > most:
        raise DataError(
            f"{len(bad)} of {len(files)} files can't be used: {named}. Mend or remove them, or raise"
            f" max_bad_share, of which {max_bad_share:g} lets {most} be left out"
        )
    logger.warning("left out %d of %d files, which can't be used: %s", len(bad), len(files), named)
    return [row for row in range(len(files)) if row not in bad]


def _shown(file: Path) -> str:
    """Return a file's name for a line of a log, which a line break in it must not end."""
    return str(file) if str(file).isprintable() else ascii(str(file))
