"""One rule for pictures: training with and without captions sees what serving sees."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.media.image import load_image
from models.media.isolated import IsolatedProcess, Limits
from tests.harmful_decoders import jpeg_of_scans
from training.data import pictures
from training.data.captioned import load_captioned
from training.data.dataset import DataError
from training.data.pictures import read_pictures
from training.data.sources import load_dataset


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def transparent(path: Path) -> None:
    Image.fromarray(noise(20, 30, 4)).save(path)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(20, 30, 3)).save(path, exif=exif)


def deep_grey(path: Path) -> None:
    Image.fromarray(noise(20, 30).astype(np.uint16) * 257).save(path)


def palette(path: Path) -> None:
    Image.fromarray(noise(20, 30, 3)).quantize(16).save(path, transparency=3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("make", "name"),
    [(transparent, "a.png"), (transparent, "a.webp"), (turned, "a.jpg"), (turned, "a.png"),
     (deep_grey, "a.png"), (palette, "a.png")],
)  # fmt: skip
def test_every_reader_gives_the_same_pixels(tmp_path: Path, make: object, name: str, channels: int) -> None:
    folder, captioned = tmp_path / "folder", tmp_path / "captioned"
    (folder / "train").mkdir(parents=True)
    captioned.mkdir()
    make(folder / "train" / name)
    make(captioned / name)
    line = {"file": name, "caption": "noise", "split": "train"}
    (captioned / "captions.jsonl").write_text(json.dumps(line))

    served = load_image((captioned / name).read_bytes(), 16, 16, channels)
    expected = torch.from_numpy(served.copy()).permute(2, 0, 1)[None]
    shape = {"image_size_px": 16, "channels": channels}
    assert torch.equal(load_dataset(folder, "train", **shape).images, expected)
    assert torch.equal(load_captioned(captioned, **shape).images, expected)


def test_the_size_of_a_turned_picture_is_that_of_the_upright_one(tmp_path: Path) -> None:
    turned(tmp_path / "a.jpg")
    Image.fromarray(noise(30, 20, 3)).save(tmp_path / "b.png")
    files = [tmp_path / "a.jpg", tmp_path / "b.png"]
    assert read_pictures(files, image_size_px=None, channels=None, title="").images.shape == (2, 3, 30, 20)


def test_other_kinds_of_files_are_never_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format="GIF")
    with pytest.raises(DataError, match=r"a\.png: the bytes are not a PNG, JPEG or WebP file"):
        read_pictures([tmp_path / "a.png"], image_size_px=8, channels=3, title="")


def test_a_broken_file_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut\.png: the PNG file is broken or truncated") as raised:
        read_pictures([path], image_size_px=8, channels=3, title="")
    assert "\n" not in str(raised.value)


def test_bounds_are_training_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 899)
    with pytest.raises(DataError, match=r"a\.png: at most 899 pixels, got 30 x 30"):
        read_pictures([tmp_path / "a.png"], image_size_px=8, channels=3, title="")
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="at most 10 bytes"):
        read_pictures([tmp_path / "a.png"], image_size_px=8, channels=3, title="")


def folder_of(path: Path, number: int) -> list[Path]:
    """Write so many pictures, each of one grey that is its number."""
    path.mkdir(parents=True)
    for grey in range(number):
        Image.new("L", (8, 8), grey).save(path / f"{grey:03}.png")
    return sorted(path.iterdir())


def test_a_bad_file_is_named_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = folder_of(tmp_path / "data", 40)
    files[7].write_bytes(files[7].read_bytes()[:-30])
    read = read_pictures(files, image_size_px=8, channels=1, title="")
    assert read.rows == [row for row in range(40) if row != 7]
    assert read.images[:, 0, 0, 0].tolist() == read.rows
    [told] = caplog.messages
    assert (
        told
        == f"left out 1 of 40 files, which can't be used: {files[7]}: the PNG file is broken or truncated"
    )


def test_more_bad_files_than_their_share_end_the_run_before_it_begins(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "data", 40)
    for row in (1, 5, 6, 9):
        files[row].write_bytes(b"nothing")
    with pytest.raises(DataError) as raised:
        read_pictures(files, image_size_px=8, channels=1, title="")
    reason = "the bytes are not a PNG, JPEG or WebP file"
    named = "; ".join(f"{files[row]}: {reason}" for row in (1, 5, 6))
    assert str(raised.value) == (
        f"4 of 40 files can't be used: {named}; and 1 more. Mend or remove them, or raise max_bad_share, of"
        " which 0.01 lets 1 be left out"
    )
    read = read_pictures(files, image_size_px=8, channels=1, title="", max_bad_share=0.1)
    assert len(read.rows) == 36
    with pytest.raises(DataError, match="1 of 2 files can't be used"):
        read_pictures(files[:2], image_size_px=8, channels=1, title="")


def test_labels_and_captions_stay_with_their_pictures(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        folder_of(tmp_path / "train" / name, 15)
        folder_of(tmp_path / "test" / name, 2)
    (tmp_path / "train" / "cats" / "003.png").write_bytes(b"nothing")
    dataset = load_dataset(tmp_path, "train")
    assert dataset.labels.tolist() == [0] * 14 + [1] * 15
    assert dataset.images[:14, 0, 0, 0].tolist() == [0, 1, 2, *range(4, 15)]

    folder_of(tmp_path / "captioned", 30)
    lines = [{"file": f"{grey:03}.png", "caption": f"grey {grey}", "split": "train"} for grey in range(30)]
    (tmp_path / "captioned" / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "captioned" / "011.png").write_bytes(b"nothing")
    data = load_captioned(tmp_path / "captioned", image_size_px=8, channels=1)
    assert len(data) == len(data.images) == 29
    assert [line.caption for line in data.lines] == [
        (f"grey {grey}",) for grey in data.images[:, 0, 0, 0].tolist()
    ]


def test_a_picture_that_takes_too_long_is_a_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = IsolatedProcess(Limits(cpu_s=0.5))
    monkeypatch.setattr(pictures, "_processes", lambda: [process])
    files = folder_of(tmp_path / "data", 25)
    files[3].write_bytes(jpeg_of_scans(2048, 4000))
    try:
        assert len(read_pictures(files, image_size_px=8, channels=1, title="").rows) == 24
    finally:
        process.end()


def test_what_is_left_out_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cats", "dogs"):
        folder_of(tmp_path / "train" / name, 2)
        folder_of(tmp_path / "test" / name, 1)
    folder_of(tmp_path / "val" / "cats", 3)
    folder_of(tmp_path / "unsorted", 1)
    for other in ("train/.hidden.png", "Thumbs.db", "train/__MACOSX/1.png", "train/cats/.DS_Store",
                  "train/cats/deeper/1.png", "loose.png"):  # fmt: skip
        path = tmp_path / other
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(path, "PNG")
    for name in ("1.gif", "2.GIF", "3.tif", "notes", "README.md"):
        (tmp_path / "train" / "dogs" / name).touch()
    (tmp_path / "train" / "empty").mkdir()
    os.mkfifo(tmp_path / "train" / "dogs" / "pipe.png")
    dataset = load_dataset(tmp_path, "train")
    assert (dataset.class_names, len(dataset)) == (("cats", "dogs"), 4)
    [told] = [message for message in caplog.messages if "left out" in message]
    assert told.startswith(f"{tmp_path}: left out: 6 pictures in other folders, 4 hidden or made by a system")
    assert set(told.partition("left out: ")[2].split(", ")) == {
        "6 pictures in other folders",
        "4 hidden or made by a system",
        "2 .gif",
        "1 .tif",
        "1 without a suffix",
        "1 not files",
        "1 empty folders",
    }


def test_pictures_without_a_line_of_captions_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder_of(tmp_path / "data", 24)
    lines = [{"file": f"{grey:03}.png", "caption": "grey"} for grey in range(10)]
    (tmp_path / "data" / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    load_dataset(tmp_path / "data", "train")
    assert f"{tmp_path / 'data'}: left out: 14 pictures that no line names" in caplog.messages


def test_a_name_with_a_line_break_stays_in_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nERROR all is lost.png"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of 1 files can be used") as raised:
        read_pictures([path], image_size_px=8, channels=1, title="", max_bad_share=1)
    assert "\n" not in str(raised.value)


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "test"):
        folder_of(tmp_path / split / "cats", 1)
    load_dataset(tmp_path, "train")
    assert not [message for message in caplog.messages if "left out" in message]


def test_a_postscript_file_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "started"
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {marker}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:{os.environ['PATH']}")
    files = folder_of(tmp_path / "data", 25)
    files[0].write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    assert len(read_pictures(files, image_size_px=8, channels=1, title="").rows) == 24
    assert not marker.exists()
