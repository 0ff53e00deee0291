"""Which pictures are kept from training where nobody says which: the same ones every time, by their names."""

import hashlib
from collections.abc import Sequence
from pathlib import PurePath

_TEST_SHARE_PERCENT = 10


def is_test_file(name: str) -> bool:
    """Whether a file of this name is among the tenth that is kept from training."""
    return _place(name)[0] < _TEST_SHARE_PERCENT


def hold_out(files: Sequence[PurePath]) -> list[bool]:
    """Return for each file whether it is kept from training: about a tenth, by a hash of its name alone.

    So adding files moves none, and one name in several folders stays on one side. Of few files the hash may
    choose none or all: then the first or the last in its order changes sides, so that of two files or more
    each side has one. files: relative to their folder, whose own name must not count.
    """
    names = [file.name for file in files]
    if len(set(names)) < 2:
        names = [file.as_posix() for file in files]
    places = [_place(name) for name in names]
    held_out = [place[0] < _TEST_SHARE_PERCENT for place in places]
    if all(held_out):
        held_out = [place != max(places) for place in places]
    elif not any(held_out) and len(set(places)) > 1:
        held_out = [place == min(places) for place in places]
    return held_out


def describe_share(held_out: Sequence[bool], reason: str) -> str:
    """Return the line that says how many pictures are kept from training, and why that was chosen."""
    return (
        f"held out {sum(held_out)} of {len(held_out)} pictures by a hash of their names,"
        f" to measure on: {reason}"
    )


def _place(name: str) -> tuple[int, int]:
    """Return where a name comes in an order that is as good as random; first a percentage, 0 to 99."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    number = int.from_bytes(digest[:8], "big")
    return number % 100, number
