import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from models.media.base import InvalidMedia
from models.media.image import (
    IMAGE,
    ImageSpec,
    clear_background,
    encode_image,
    load_image,
)
from models.media.pixels import MAX_IMAGE_BYTES

SAMPLES = Path(__file__).parents[3] / "weights" / "emoji-64" / "samples.png"

GRADIENT = np.arange(24 * 24 * 3, dtype=np.uint32).reshape(24, 24, 3).astype(np.uint8)


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [header, data, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.parametrize("format", ["png", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_keep_every_pixel(format, channels):
    pixels = GRADIENT[:, :, :channels]

    data = encode_image(pixels, format)

    assert IMAGE.info(data).media_type == f"image/{format}"
    np.testing.assert_array_equal(load_image(data, 24, 24, channels), pixels)
    assert encode_image(pixels, format) == data


def test_a_png_is_about_as_small_as_one_that_takes_twice_the_time():
    with Image.open(SAMPLES) as opened:
        picture = opened.convert("RGB").crop((200, 200, 400, 400))
    slow = io.BytesIO()
    picture.save(slow, "PNG", compress_level=6)

    assert len(encode_image(np.asarray(picture), "png")) < 1.05 * len(slow.getvalue())


def test_jpeg_is_near():
    smooth = np.linspace(0, 255, 24, dtype=np.uint8)[None, :, None].repeat(24, axis=0)

    data = encode_image(smooth, "jpeg")

    assert IMAGE.info(data).media_type == "image/jpeg"
    assert np.abs(load_image(data, 24, 24, 1).astype(int) - smooth).max() <= 3


def test_the_centred_square_is_taken():
    pixels = np.zeros((8, 16, 1), np.uint8)
    pixels[:, 4:12] = 200

    assert (load_image(encode_image(pixels, "png"), 8, 8, 1) == 200).all()
    assert (load_image(encode_image(pixels.transpose(1, 0, 2), "png"), 8, 8, 1) == 200).all()


def test_the_orientation_of_the_camera_is_applied():
    image = Image.fromarray(GRADIENT)
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right: turn by 90 degrees clockwise

    turned = load_image(saved(image, exif=exif), 24, 24, 3)

    np.testing.assert_array_equal(turned, np.rot90(GRADIENT, k=-1))


def test_transparent_parts_are_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (load_image(saved(image), 4, 4, 3) == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    assert (load_image(saved(palette, transparency=0), 4, 4, 3) == 255).all()


def test_16_bit_grey_keeps_its_brightness():
    image = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert (load_image(saved(image), 4, 4, 1) == 0x80).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_png_mode_gives_the_asked_channels(mode):
    data = saved(Image.new(mode, (6, 5)))
    assert load_image(data, 4, 4, 1).shape == (4, 4, 1)
    assert load_image(data, 4, 4, 3).shape == (4, 4, 3)


def test_cmyk_jpeg_is_taken():
    assert load_image(saved(Image.new("CMYK", (4, 4)), "JPEG"), 4, 4, 3).min() > 250


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(format):
    first, second = Image.new("RGB", (8, 8), (0, 200, 0)), Image.new("RGB", (8, 8), (200, 0, 0))
    data = saved(first, format, save_all=True, append_images=[second], lossless=True)
    assert (load_image(data, 8, 8, 3) == (0, 200, 0)).all()


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", saved(Image.new("L", (2, 2)), "GIF"), saved(Image.new("L", (2, 2)), "TIFF")],
)
def test_other_formats_are_refused(data):
    with pytest.raises(InvalidMedia, match="not a PNG, JPEG or WebP"):
        IMAGE.info(data)


def test_too_many_bytes_are_refused_with_the_limit_and_the_count():
    with pytest.raises(InvalidMedia, match=rf"at most {MAX_IMAGE_BYTES} bytes, got {MAX_IMAGE_BYTES + 1}"):
        IMAGE.info(b"\0" * (MAX_IMAGE_BYTES + 1))


@pytest.mark.parametrize("size", [(8000, 8000), (12000, 12000), (60000, 60000), (2**31 - 1, 1)])
def test_a_bomb_is_refused_by_its_header(size):
    with pytest.raises(InvalidMedia, match="at most 33554432 pixels"):
        IMAGE.info(png_header(*size))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_cut_file_is_refused(format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), format)

    for length in range(0, len(data) - 32, len(data) // 50):
        with pytest.raises(InvalidMedia):
            load_image(data[:length], 8, 8, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remark on damage that it can live with
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_file_is_an_image_or_refused(format):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), format, exif=exif)
    draw = random.Random(0)

    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            damaged[draw.randrange(min(len(damaged), 300))] = draw.randrange(256)
        try:
            assert load_image(bytes(damaged), 8, 8, 3).shape == (8, 8, 3)
        except InvalidMedia:
            continue


def ring() -> np.ndarray:
    """Return a red ring on white, with soft edges, around a white hole."""
    large = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(large)
    draw.ellipse((30, 30, 226, 226), fill=(200, 20, 30))
    draw.ellipse((100, 100, 156, 156), fill="white")
    return np.asarray(large.resize((64, 64), Image.Resampling.BOX))


def test_a_transparent_background_clears_what_is_around_and_not_what_is_within():
    cleared = clear_background(ring())

    assert cleared.shape == (64, 64, 4)
    assert cleared[0, 0, 3] == cleared[63, 32, 3] == 0
    assert cleared[32, 32].tolist() == [255, 255, 255, 255]
    assert cleared[32, 12].tolist() == [200, 20, 30, 255]
    assert cleared[..., 3][cleared[..., 3] < 255].max() > 0, "edges are soft"


def test_a_transparent_picture_on_white_is_the_picture():
    cleared = Image.fromarray(clear_background(ring()))
    on_white = Image.alpha_composite(Image.new("RGBA", cleared.size, "white"), cleared).convert("RGB")

    assert np.abs(np.asarray(on_white).astype(int) - ring()).max() <= 2  # both are rounded


def test_a_background_is_cleared_only_where_it_is_asked_for():
    opened = Image.open(io.BytesIO(IMAGE.save(ring(), "png")))
    cleared = Image.open(io.BytesIO(IMAGE.save(ring(), "png", background="transparent")))
    assert (opened.mode, cleared.mode) == ("RGB", "RGBA")


def test_a_wide_picture_is_fitted_to_a_wide_specification():
    spec = ImageSpec(width_px=12, height_px=6, channels=3)
    assert IMAGE.load(saved(Image.fromarray(GRADIENT)), spec).shape == (6, 12, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back_from_a_signal_exactly(channels):
    pixels = GRADIENT[:, :, :channels]
    signal = IMAGE.to_signal(pixels)
    assert signal.shape == (channels, 24, 24)
    assert (signal.min() >= -1, signal.max() <= 1) == (True, True)
    np.testing.assert_array_equal(IMAGE.from_signal(signal), pixels)


def test_a_signal_outside_its_range_is_clipped():
    signal = np.array([[[-3.0, 0.0, 3.0]]], np.float32)
    assert IMAGE.from_signal(signal)[0, :, 0].tolist() == [0, 128, 255]
