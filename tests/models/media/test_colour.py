"""Colours of profiles as sRGB, compared with what ImageCms gives when it is called directly."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from models.media import pixels
from models.media.image import load_image
from tests.models.media.picture_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    ORIENTATION,
    chunk,
    cmyk_profile,
    grey_profile,
    noise,
    png_file,
    rgb_profile,
    saved,
    srgb_profile,
)

P3, ADOBE = rgb_profile(DISPLAY_P3), rgb_profile(ADOBE_RGB)


def by_image_cms(image: Image.Image, profile: bytes) -> Image.Image:
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    converted = ImageCms.profileToProfile(image, source, target, intent, outputMode="RGB")
    assert converted is not None
    return converted


def on_white(image: Image.Image) -> np.ndarray:
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


@pytest.mark.parametrize("profile", [P3, ADOBE], ids=["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("strip_pixels", [70, 2**18])
def test_colours_of_a_wide_profile_become_srgb(profile, format, strip_pixels, monkeypatch):
    monkeypatch.setattr(pixels, "_STRIP_PIXELS", strip_pixels)
    data = saved(noise(33, 21, "RGB"), format, icc_profile=profile)
    raw = Image.open(io.BytesIO(data)).convert("RGB")
    expected = by_image_cms(raw, profile)

    np.testing.assert_array_equal(load_image(data, 33, 21, 3), np.asarray(expected))
    np.testing.assert_array_equal(load_image(data, 33, 21, 1)[..., 0], np.asarray(expected.convert("L")))
    assert np.abs(np.asarray(expected, int) - np.asarray(raw, int)).max() > 20, "the profile moves colours"


def test_pure_red_of_display_p3_is_as_red_as_srgb_can_be():
    data = saved(Image.new("RGB", (2, 2), (234, 51, 35)), icc_profile=P3)
    red, green, blue = load_image(data, 2, 2, 3)[0, 0].tolist()
    assert (red, green) == (255, 0)
    assert blue < 35


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_stays_with_colours_that_are_converted(mode):
    image = noise(17, 9, mode)
    options = {"transparency": 2} if mode == "P" else {}
    data = saved(image, icc_profile=ADOBE, **options)
    shown = Image.open(io.BytesIO(data)).convert("RGBA")
    expected = by_image_cms(shown.convert("RGB"), ADOBE)
    expected.putalpha(shown.getchannel("A"))

    np.testing.assert_array_equal(load_image(data, 17, 9, 3), on_white(expected))


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_is_taken_before_the_profile(depth):
    code, scale = ("B", 1) if depth == 8 else ("H", 0x101)
    row = struct.pack(f">6{code}", *(value * scale for value in (200, 30, 40, 20, 180, 60)))
    transparent = chunk(b"tRNS", struct.pack(">3H", *(value * scale for value in (200, 30, 40))))
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(P3))
    got = load_image(png_file([row], 2, depth, 2, profile, transparent), 2, 1, 3)
    expected = by_image_cms(Image.new("RGB", (1, 1), (20, 180, 60)), P3).getpixel((0, 0))

    assert got.tolist() == [[[255, 255, 255], list(expected)]]


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_of_another_gamma_becomes_srgb(mode):
    profile = grey_profile(1.0)
    image = noise(13, 8, mode)
    data = saved(image, icc_profile=profile)
    grey = (
        Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if mode == "I;16" else image.convert("L")
    )
    expected = by_image_cms(grey, profile)
    expected.putalpha(image.getchannel("A") if mode == "LA" else 255)

    np.testing.assert_array_equal(load_image(data, 13, 8, 3), on_white(expected))


def test_linear_middle_grey_is_188():
    data = saved(Image.new("L", (2, 2), 128), icc_profile=grey_profile(1.0))
    assert abs(int(load_image(data, 2, 2, 1)[0, 0, 0]) - 188) <= 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("options", [{}, {"icc_profile": srgb_profile()}], ids=["no profile", "sRGB"])
def test_pixels_in_srgb_stay_exactly(mode, options):
    image = noise(40, 30, mode)
    expected = on_white(image.convert("RGBA"))
    np.testing.assert_array_equal(load_image(saved(image, **options), 40, 30, 3), expected)


BROKEN = {
    "empty": b"",
    "junk": b"junk" * 100,
    "junk with a space": b"\0" * 16 + b"RGB " + b"\0" * 200,
    "cut": P3[:200],
    "only a header": P3[:128],
    "far too many tags": P3[:128] + b"\xff\xff\xff\xff" + P3[132:],
    "a tag beyond its end": P3.replace(b"rTRC", b"rTRC\x7f\xff\xff\xf0")[: len(P3)],
    "huge": P3 + bytes(900_000) + np.random.default_rng(0).bytes(200_000),
    "of grey": grey_profile(1.0),
    "of CMYK": cmyk_profile(),
    "of Lab": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    "of XYZ": ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes(),
}


@pytest.mark.parametrize("profile", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_a_profile_that_is_broken_or_of_another_kind_is_ignored(profile, format):
    image = noise(12, 9, "RGB")
    if profile == BROKEN["huge"] and format == "WEBP":
        profile = profile + bytes(4 * 2**20)
    data = saved(image, format, icc_profile=profile, **({} if format == "PNG" else {"lossless": True}))
    np.testing.assert_array_equal(load_image(data, 12, 9, 3), np.asarray(image))


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        *((mode, profile) for mode in ("L", "RGB", "CMYK") for profile in (b"junk" * 100, P3[:200])),
        ("L", cmyk_profile()),
        ("L", grey_profile(1.0)[:150]),
        ("RGB", cmyk_profile()),
        ("RGB", grey_profile(1.0)),
        ("CMYK", grey_profile(1.0)),
        ("CMYK", P3),
        ("CMYK", cmyk_profile()[:400]),
    ],
)
def test_a_jpeg_whose_profile_is_of_another_kind_is_shown_without(mode, profile):
    image = noise(16, 16, mode)
    plain = saved(image, "JPEG")
    got = load_image(saved(image, "JPEG", icc_profile=profile), 16, 16, 3)
    np.testing.assert_array_equal(got, load_image(plain, 16, 16, 3))


def test_inks_of_a_profile_become_srgb_and_inks_without_one_are_inverted():
    data = saved(noise(16, 16, "CMYK"), "JPEG", icc_profile=cmyk_profile(), quality=95)
    inks = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(load_image(data, 16, 16, 3), np.asarray(by_image_cms(inks, cmyk_profile())))

    plain = saved(noise(16, 16, "CMYK"), "JPEG", quality=95)
    np.testing.assert_array_equal(load_image(plain, 16, 16, 3), np.asarray(inks.convert("RGB")))


def test_a_turned_picture_with_a_profile_is_upright_in_srgb():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = noise(18, 11, "RGB")
    expected = np.rot90(np.asarray(by_image_cms(image, P3)), -1)
    np.testing.assert_array_equal(load_image(saved(image, exif=exif, icc_profile=P3), 11, 18, 3), expected)
