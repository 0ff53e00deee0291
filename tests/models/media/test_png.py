"""PNG files that Pillow alone refuses, or shows wrongly."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from models.media.base import InvalidMedia
from models.media.image import load_image
from models.media.pixels import open_image, upright_size
from models.media.png import only_pixels
from tests.models.media.picture_files import (
    ORIENTATION,
    chunk,
    noise,
    png_file,
    saved,
    srgb_profile,
    with_chunk,
)

PICTURE = noise(20, 10, "RGB")
PIXELS = np.asarray(PICTURE)
LONG = bytes(2**20 + 1)
LONG_TEXTS = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG)),
    "iTXt compressed": chunk(b"iTXt", b"parameters\0\1\0en\0\0" + zlib.compress(LONG)),
    "iTXt": chunk(b"iTXt", b"parameters\0\0\0en\0\0" + LONG),
    "tEXt": chunk(b"tEXt", b"parameters\0" + LONG),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG)),
    "raw EXIF": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LONG)),
    "a profile": chunk(b"iCCP", b"display\0\0" + zlib.compress(srgb_profile() + LONG)),
    "many": b"".join(chunk(b"zTXt", b"k%d\0\0" % at + zlib.compress(LONG[:-2])) for at in range(70)),
    "not compressed": chunk(b"zTXt", b"Comment\0\0not zlib"),
    "of an unknown method": chunk(b"zTXt", b"Comment\0\7abc"),
    "profile of an unknown method": chunk(b"iCCP", b"display\0\7abc"),
    "empty": chunk(b"zTXt", b"") + chunk(b"iTXt", b"") + chunk(b"tEXt", b"") + chunk(b"iCCP", b""),
    "not UTF-8": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\xff\0\xff\0\xff\xfe"),
}


@pytest.mark.parametrize("texts", LONG_TEXTS.values(), ids=LONG_TEXTS)
@pytest.mark.parametrize("is_behind", [False, True])
def test_texts_that_no_pixel_depends_on_are_passed_over(texts, is_behind):
    data = saved(PICTURE)
    data = data[:-12] + texts + data[-12:] if is_behind else with_chunk(data, texts)
    np.testing.assert_array_equal(load_image(data, 20, 10, 3), PIXELS)


@pytest.mark.parametrize(
    "kind", ["tEXt", "zTXt", "iTXt", "iCCP", "eXIf", "gAMA", "pHYs", "tIME", "sRGB", "cHRM", "acTL"]
)
@pytest.mark.parametrize("content", [b"", b"\0", b"short", b"key\0\0" + bytes(40)])
def test_a_broken_chunk_that_carries_no_pixels_is_passed_over(kind, content):
    for checksum in (0xBAD, None):
        broken = chunk(kind.encode(), content, checksum)
        data = saved(PICTURE)
        for damaged in (with_chunk(data, broken), data[:-12] + broken + data[-12:]):
            np.testing.assert_array_equal(load_image(damaged, 20, 10, 3), PIXELS)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_a_broken_checksum_of_what_carries_pixels_is_refused(kind):
    data = bytearray(saved(noise(20, 10, "P"), transparency=3))
    start = data.index(kind)
    (length,) = struct.unpack_from(">I", data, start - 4)
    data[start + 4 + length] ^= 1

    with pytest.raises(InvalidMedia, match="broken"):
        load_image(bytes(data), 20, 10, 3)


def test_a_palette_picture_without_its_palette_is_refused():
    data = saved(noise(20, 10, "P"))
    start = data.index(b"PLTE") - 4
    (length,) = struct.unpack_from(">I", data, start)

    with pytest.raises(InvalidMedia, match="broken"):
        load_image(data[:start] + data[start + 12 + length :], 20, 10, 3)


def test_a_broken_palette_that_is_only_suggested_is_passed_over():
    data = with_chunk(saved(PICTURE), chunk(b"PLTE", bytes(30), 0xBAD))
    np.testing.assert_array_equal(load_image(data, 20, 10, 3), PIXELS)


def test_every_damaged_byte_of_the_pixels_is_refused():
    data = saved(PICTURE)
    start = data.index(b"IDAT") + 4
    (length,) = struct.unpack_from(">I", data, start - 8)

    for at in range(start, start + length, 7):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises(InvalidMedia, match="broken"):
            load_image(bytes(damaged), 20, 10, 3)


def test_cut_pixels_are_refused_and_a_missing_end_is_not():
    data = saved(PICTURE)

    for length in range(len(data) - 32):
        with pytest.raises(InvalidMedia):
            load_image(data[:length], 20, 10, 3)
    np.testing.assert_array_equal(load_image(data[:-12], 20, 10, 3), PIXELS)


@pytest.mark.parametrize("junk", [b"\0", b"junk" * 100, saved(noise(3, 3, "L")), chunk(b"IHDR", bytes(13))])
def test_what_comes_behind_the_end_does_not_matter(junk):
    np.testing.assert_array_equal(load_image(saved(PICTURE) + junk, 20, 10, 3), PIXELS)


@pytest.mark.parametrize("length", [0, 1, 12, 5000, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"tEXt", b"IEND"])
def test_a_length_that_lies_gives_the_picture_or_is_refused(kind, length):
    data = bytearray(with_chunk(saved(PICTURE), chunk(b"tEXt", b"key\0text")))
    struct.pack_into(">I", data, data.index(kind) - 4, length)

    try:
        np.testing.assert_array_equal(load_image(bytes(data), 20, 10, 3), PIXELS)
    except InvalidMedia:
        assert kind != b"IEND"


def test_a_file_without_other_chunks_is_taken_as_it_is():
    data = saved(PICTURE)
    assert only_pixels(data) is data


def test_orientation_is_found_wherever_a_png_notes_it():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    plain, block = saved(PICTURE), exif.tobytes()
    xmp = b'<x:xmpmeta xmlns:tiff="t"><a tiff:Orientation="6"/></x:xmpmeta>'
    raw = b"\nexif\n      %d\n%s\n" % (len(block), block.hex().encode())
    notes = [
        chunk(b"eXIf", block[6:] if block.startswith(b"Exif") else block),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
        chunk(b"tEXt", b"Raw profile type exif\0" + raw),
    ]

    for note in notes:
        for data in (with_chunk(plain, note), plain[:-12] + note + plain[-12:]):
            np.testing.assert_array_equal(load_image(data, 10, 20, 3), np.rot90(PIXELS, -1), str(note[:40]))
            with open_image(io.BytesIO(data)) as opened:
                assert upright_size(opened) == (10, 20)


def test_the_first_frame_of_an_animation_is_its_picture():
    frames = [Image.new("RGBA", (6, 6), (0, 90 * at, 0, 128)) for at in range(3)]
    data = saved(frames[0], save_all=True, append_images=frames[1:])
    on_white = Image.alpha_composite(Image.new("RGBA", (6, 6), "white"), frames[0]).convert("RGB")

    assert b"acTL" in data
    np.testing.assert_array_equal(load_image(data, 6, 6, 3), np.asarray(on_white))


@pytest.mark.parametrize(
    ("depth", "values"), [(1, [0, 1]), (2, [0, 1, 2, 3]), (4, [0, 5, 15]), (8, [0, 77, 255])]
)
def test_the_transparent_value_of_grey_is_white_and_no_other(depth, values):
    highest = 2**depth - 1
    for transparent in values:
        rows = [bytes([value << (8 - depth)]) for value in range(highest + 1)]  # one pixel in each
        data = png_file(rows, 1, depth, 0, chunk(b"tRNS", struct.pack(">H", transparent)))
        expected = np.arange(highest + 1) * 255 // highest
        expected[transparent] = 255
        for channels in (1, 3):
            got = load_image(data, 1, highest + 1, channels)
            np.testing.assert_array_equal(got[..., 0].ravel(), expected)


def test_the_transparent_value_of_16_bit_grey_is_white_and_its_neighbours_are_not():
    row = struct.pack(">4H", 0x1234, 0x1235, 0x1134, 0xFFFF)
    data = png_file([row], 4, 16, 0, chunk(b"tRNS", struct.pack(">H", 0x1234)))
    assert load_image(data, 4, 1, 1).ravel().tolist() == [255, 0x12, 0x11, 255]
    assert load_image(data, 4, 1, 3)[0, :, 2].tolist() == [255, 0x12, 0x11, 255]


def test_the_transparent_colour_is_white_with_8_and_with_16_bits():
    for depth, code in ((8, "B"), (16, "H")):
        scale = 1 if depth == 8 else 0x101
        colours = [(10, 20, 30), (10, 20, 31), (30, 20, 10)]
        row = b"".join(struct.pack(f">3{code}", *(value * scale for value in colour)) for colour in colours)
        transparent = chunk(b"tRNS", struct.pack(">3H", *(value * scale for value in colours[0])))
        got = load_image(png_file([row], 3, depth, 2, transparent), 3, 1, 3)
        assert got.tolist() == [[[255, 255, 255], [10, 20, 31], [30, 20, 10]]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_entries_of_a_palette_are_white(depth):
    palette = chunk(b"PLTE", bytes([0, 0, 0, 100, 110, 120]))
    row = bytes([0, 1]) if depth == 8 else bytes([1 << (8 - 2 * depth)])
    for alphas, expected in ((b"\0", [255, 100]), (b"\xff\0", [0, 255]), (b"\x80\xff", [127, 100])):
        data = png_file([row], 2, depth, 3, palette, chunk(b"tRNS", alphas))
        assert load_image(data, 2, 1, 3)[0, :, 0].tolist() == expected


def test_alpha_of_8_and_16_bits_goes_over_white():
    for depth, code, full in ((8, "B", 255), (16, "H", 65535)):
        grey = struct.pack(f">6{code}", 0, 0, 0, full, full // 5, full)
        assert load_image(png_file([grey], 3, depth, 4), 3, 1, 1).ravel().tolist() == [255, 0, 51]
        colour = struct.pack(f">8{code}", full, 0, 0, 0, full, 0, full // 5, full)
        assert load_image(png_file([colour], 2, depth, 6), 2, 1, 3).tolist() == [
            [[255, 255, 255], [255, 0, 51]]
        ]
