"""One rule for pictures: training with and without captions sees what serving sees."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.media.image import load_image
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
    assert read_pictures(files, image_size_px=None, channels=None, title="").shape == (2, 3, 30, 20)


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
