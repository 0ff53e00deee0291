"""Photographs are taken with their credits, and without one not at all."""

from pathlib import Path

import pytest

from training.data.credited import take_credited
from training.data.dataset import DataError

CREDITS = (
    "Thanks to all of them.\n\ndaisy/1.jpg CC-BY by A\nroses/2.jpg CC-BY by B C - https://example.org/2\n"
)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for name in ("daisy/1.webp", "roses/2.jpg", "roses/3.jpg"):
        path = tmp_path / "photographs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "photographs" / "LICENSE.txt").write_text(CREDITS)
    return tmp_path / "photographs"


def test_what_nobody_is_named_for_is_left_out(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    taken = take_credited(photographs, out)
    assert (taken.num_pictures, taken.num_left_out) == ({"daisy": 1, "roses": 1}, 1)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == [
        "CREDITS.txt", "daisy/1.webp", "roses/2.jpg",
    ]  # fmt: skip
    assert (out / "CREDITS.txt").read_text() == CREDITS
    assert (out / "roses" / "2.jpg").read_bytes() == b"roses/2.jpg"


@pytest.mark.parametrize(
    ("credits", "said"),
    [
        (None, "holds no CREDITS.txt or LICENSE.txt"),
        ("tulips/9.jpg CC-BY by D\n", "names none of the 3 pictures"),
    ],
)
def test_credits_that_say_nothing_are_refused(
    photographs: Path, tmp_path: Path, credits: str | None, said: str
) -> None:
    (photographs / "LICENSE.txt").unlink()
    if credits:
        (photographs / "CREDITS.txt").write_text(credits)
    with pytest.raises(DataError, match=said):
        take_credited(photographs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not empty"):
        take_credited(photographs, photographs)
