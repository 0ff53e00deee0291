"""The rule by which a file becomes pixels: against the plain way to do the same, and on what breaks files."""

import io
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from models.media import pixels
from models.media.base import InvalidMedia
from models.media.image import load_image
from models.media.pixels import open_image, upright_size
from tests.models.media.picture_files import (
    DISPLAY_P3,
    ORIENTATION,
    cmyk_profile,
    grey_profile,
    noise,
    png_file,
    rgb_profile,
    saved,
)

MEMORY = """
import re, sys
from models.media.image import load_image
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
load_image(open(sys.argv[1], "rb").read(), 16, 16, 3)  # what is loaded once
data = open(sys.argv[2], "rb").read()
before = peak()
load_image(data, 64, 64, 3)
print(peak() - before)
"""


def whole_at_once(data: bytes, width: int, height: int, mode: str) -> np.ndarray:
    """Return what the rule gives without a profile, done on the whole picture, step by step."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(mode)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(height, width, len(mode))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("strip_pixels", [50, 2**18])
def test_strip_by_strip_gives_the_same_bits_as_the_whole_at_once(mode, strip_pixels, monkeypatch):
    monkeypatch.setattr(pixels, "_STRIP_PIXELS", strip_pixels)
    draw = random.Random(mode)

    for seed in range(25):
        width, height = draw.randint(1, 120), draw.randint(1, 120)
        exif = Image.Exif()
        exif[ORIENTATION] = draw.choice([1, 1, *range(1, 9)])
        transparency = {"transparency": 3} if mode == "P" and seed % 2 else {}
        data = saved(noise(width, height, mode, seed), exif=exif, compress_level=1, **transparency)
        wanted = draw.choice([(width, height), (draw.randint(1, 160), draw.randint(1, 160))])
        for channels, target in ((1, "L"), (3, "RGB")):
            got = load_image(data, *wanted, channels)
            np.testing.assert_array_equal(got, whole_at_once(data, *wanted, target), f"{seed}")


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_other_formats_give_the_same_bits_too(format, mode, monkeypatch):
    monkeypatch.setattr(pixels, "_STRIP_PIXELS", 500)
    image = noise(61, 47, "RGBA" if format == "WEBP" and mode == "RGBA" else "RGB")
    image = image.convert(mode if format == "JPEG" and mode in ("L", "CMYK") else image.mode)
    data = saved(image, format)

    for channels, target in ((1, "L"), (3, "RGB")):
        np.testing.assert_array_equal(load_image(data, 32, 20, channels), whole_at_once(data, 32, 20, target))


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (50, 60), (51, 49), (49, 51), (1, 1)])
def test_strips_cover_every_pixel_once(size, monkeypatch):
    monkeypatch.setattr(pixels, "_STRIP_PIXELS", 50)
    seen = np.zeros(size[::-1], int)

    for left, top, right, bottom in pixels._strips(size):
        assert 0 < (right - left) * (bottom - top) <= 50
        seen[top:bottom, left:right] += 1

    assert (seen == 1).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_upright_picture(format, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # What a camera stores that is turned in this way; from the EXIF standard: where row 0 and column 0 are.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {} if format == "PNG" else {"quality": 100}
    data = saved(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)

    with open_image(io.BytesIO(data)) as opened:
        assert upright_size(opened) == (32, 16)
    got = load_image(data, 32, 16, 3)

    assert np.abs(got[2::8, 2::4].astype(int) - upright[2::8, 2::4]).max() < 60, "colours are coded coarsely"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remark on broken EXIF
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0junk and more junk",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\xff\xff\xff\xff\0\0\0\0",
    ],
)
def test_a_broken_orientation_is_none(format, exif):
    image = noise(12, 8, "RGB")
    plain = saved(image, format)
    np.testing.assert_array_equal(
        load_image(saved(image, format, exif=exif), 12, 8, 3), load_image(plain, 12, 8, 3)
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_turned_transparent_picture_is_upright_on_white(mode):
    picture = Image.new("RGBA", (6, 4), (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 3, 4))
    exif = Image.Exif()
    exif[ORIENTATION] = 8  # turn by 90 degrees counterclockwise
    got = load_image(saved(picture.convert(mode), exif=exif), 4, 6, 3)
    assert (got[:3] == 0).all()
    assert (got[3:] == 255).all()


def test_the_largest_picture_takes_little_more_than_its_pixels(tmp_path):
    side = 5792
    (tmp_path / "small.png").write_bytes(saved(noise(32, 32, "RGBA")))
    (tmp_path / "large.png").write_bytes(png_file([bytes([200, 30, 20, 128]) * side] * side, side, 8, 6))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "small.png"), str(tmp_path / "large.png")]

    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)

    assert 0 < int(done.stdout) <= side * side * 4 + 60 * 10**6


def test_only_a_regular_file_is_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.png"))
        for name in ("fifo.png", "folder.png", "zero.png", "socket.png"):
            with pytest.raises(InvalidMedia, match="not a regular file"):
                open_image(tmp_path / name)
    with pytest.raises(OSError, match="No such file"):
        open_image(tmp_path / "dangling.png")


def test_a_device_that_was_opened_is_not_read_for_ever():
    with (
        Path("/dev/zero").open("rb") as endless,
        pytest.raises(InvalidMedia, match="not a PNG, JPEG or WebP"),
    ):
        open_image(endless, max_bytes=2**16)


@pytest.mark.parametrize("format", ["EPS", "PDF", "PPM", "BMP", "ICO", "TGA", "GIF", "TIFF", "JPEG2000"])
def test_no_other_format_is_opened_and_no_program_started(format, tmp_path, monkeypatch):
    marker, program = tmp_path / "was-run", tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file = tmp_path / "picture.png"
    file.write_bytes(saved(Image.new("RGB", (8, 8)), format))

    for opened in (file, io.BytesIO(file.read_bytes())):
        with pytest.raises(InvalidMedia, match="not a PNG, JPEG or WebP"):
            open_image(opened)

    assert not marker.exists()


def assert_pixels_or_invalid(num_files: int, seed: int) -> None:
    draw = random.Random(seed)
    originals = fuzzed_files()
    num_read = 0
    for _ in range(num_files):
        damaged = bytearray(draw.choice(originals))
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(min(len(damaged), draw.choice([64, 10**6])))
            match draw.randrange(5):
                case 0 | 1:
                    damaged[at] = draw.choice([0, 1, 127, 128, 254, 255, draw.randrange(256)])
                case 2:
                    damaged[at] ^= 1 << draw.randrange(8)
                case 3:
                    del damaged[at : at + draw.randint(1, 8)]
                case 4:
                    damaged[at:at] = draw.randbytes(draw.randint(1, 8))
            damaged = damaged or bytearray(1)
        channels = draw.choice([1, 3])
        try:
            got = load_image(bytes(damaged), 5, 7, channels)
        except InvalidMedia:
            continue
        assert got.shape == (7, 5, channels)
        num_read += 1
    assert 0 < num_read < num_files


def fuzzed_files() -> list[bytes]:
    """Return small files of every format, with profile, orientation and animation."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    rgb = {"exif": exif, "icc_profile": rgb_profile(DISPLAY_P3)}
    frames = {"save_all": True, "append_images": [noise(9, 7, "RGB", 1)]}
    files = [saved(noise(9, 7, mode), exif=exif) for mode in ("1", "P", "LA", "I;16")]
    files += [saved(noise(9, 7, "P"), transparency=2, exif=exif), saved(noise(9, 7, "RGBA"), **rgb)]
    files += [saved(noise(9, 7, "L"), icc_profile=grey_profile(1.8), transparency=3)]
    files += [saved(noise(9, 7, "RGB"), "JPEG", **rgb), saved(noise(9, 7, "RGB"), "JPEG", progressive=True)]
    files += [saved(noise(9, 7, "CMYK"), "JPEG", icc_profile=cmyk_profile())]
    files += [saved(noise(9, 7, "RGB"), "WEBP"), saved(noise(9, 7, "RGBA"), "WEBP", lossless=True, exif=exif)]
    files += [saved(noise(9, 7, "RGB"), format, **frames) for format in ("PNG", "WEBP", "MPO")]
    return files


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remark on damage that it can live with
def test_a_damaged_picture_gives_pixels_or_is_refused():
    assert_pixels_or_invalid(3000, seed=0)


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_many_damaged_pictures_give_pixels_or_are_refused():
    assert_pixels_or_invalid(40_000, seed=1)
