"""How much memory a header announces."""

import random
import struct

import pytest
from PIL import Image

from models.media.announced import announced_bytes
from tests.models.media.picture_files import noise, saved, srgb_profile

EXIF = Image.Exif()
EXIF[0x010E] = "described at some length"
WIDTH, HEIGHT = 301, 203
PIXELS = WIDTH * HEIGHT
FILES = {
    "PNG": (saved(noise(WIDTH, HEIGHT, "RGBA")), "PNG"),
    "JPEG": (saved(noise(WIDTH, HEIGHT, "RGB"), "JPEG"), "JPEG"),
    "JPEG with more": (
        saved(
            noise(WIDTH, HEIGHT, "RGB"),
            "JPEG",
            exif=EXIF,
            icc_profile=srgb_profile(),
            comment=b"\xff\xc0" * 9,
        ),
        "JPEG",
    ),
    "progressive": (saved(noise(WIDTH, HEIGHT, "RGB"), "JPEG", progressive=True), "JPEG"),
    "grey": (saved(noise(WIDTH, HEIGHT, "L"), "JPEG"), "JPEG"),
    "CMYK": (saved(noise(WIDTH, HEIGHT, "CMYK"), "JPEG"), "JPEG"),
    "VP8": (saved(noise(WIDTH, HEIGHT, "RGB"), "WEBP"), "WEBP"),
    "VP8L": (saved(noise(WIDTH, HEIGHT, "RGBA"), "WEBP", lossless=True), "WEBP"),
    "VP8X": (saved(noise(WIDTH, HEIGHT, "RGBA"), "WEBP", exif=EXIF), "WEBP"),
    "animation": (
        saved(
            noise(WIDTH, HEIGHT, "RGB"), "WEBP", save_all=True, append_images=[noise(WIDTH, HEIGHT, "RGB", 1)]
        ),
        "WEBP",
    ),
}
PER_PIXEL = {"PNG": 5, "JPEG": 8, "WEBP": 16}


@pytest.mark.parametrize(("data", "format"), FILES.values(), ids=FILES)
def test_every_kind_of_file_announces_its_pixels(data, format):
    assert announced_bytes(data) == PIXELS * PER_PIXEL[format]


@pytest.mark.parametrize("kind", ["VP8 ", "VP8L", "VP8X"])
def test_the_three_kinds_of_webp_are_told_apart(kind):
    name = kind.strip()
    assert FILES[name][0][12:16] == kind.encode()


@pytest.mark.parametrize(
    "between", [b"\xff" * 7, b"\xff\xd0", b"\xff\x01", b"\xff\xfe\0\2", b"\xff\0", b"\0\0\0"]
)
def test_what_stands_between_the_segments_of_a_jpeg_hides_nothing(between):
    data = FILES["JPEG"][0]
    assert announced_bytes(data[:2] + between + data[2:]) == PIXELS * 8


def test_a_jpeg_whose_size_is_hidden_counts_as_the_largest():
    assert announced_bytes(b"\xff\xd8" + b"\xff\xfe\0\2" * 5000 + FILES["JPEG"][0][2:]) > 2**30


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"RIFF\0\0\0\0WAVE", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe"]
)
def test_what_is_not_a_picture_announces_nothing(data):
    assert announced_bytes(data) == 0


@pytest.mark.parametrize(("data", "format"), FILES.values(), ids=FILES)
def test_a_cut_header_announces_nothing_or_the_picture(data, format):
    answers = {announced_bytes(data[:length]) for length in range(min(len(data), 1500))}
    assert answers <= {0, PIXELS * PER_PIXEL[format]}


def test_headers_that_lie_give_a_number():
    draw = random.Random(0)
    originals = [data[:1200] for data, _ in FILES.values()]

    for _ in range(20_000):
        damaged = bytearray(draw.choice(originals))
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(draw.choice([40, len(damaged)]))
            struct.pack_into("B", damaged, at, draw.choice([0, 1, 0xD8, 0xFF, draw.randrange(256)]))
        number = announced_bytes(bytes(damaged))
        assert isinstance(number, int)
        assert 0 <= number <= 2**64 * 16
