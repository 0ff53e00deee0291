"""Pictures for codes are those of /encode, with what was cut out of them told."""

import io

import numpy as np
import pytest
from PIL import Image

from bulk.pictures import crop_box, read_picture, unpack
from models.media.base import InvalidMedia
from models.media.image import load_image
from tests.bulk.pictures import picture

SIZES = [(20, 16), (16, 20), (12, 12), (13, 7), (100, 99)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(12, 12), (12, 8)])
def test_the_box_is_what_the_one_rule_cuts_out(size, shape):
    data = picture(0, *size)
    found, pixels = unpack(read_picture(data, *shape, 3), *shape, 3)
    assert found == size
    assert np.array_equal(pixels, load_image(data, *shape, 3))
    with Image.open(io.BytesIO(data)) as image:
        cut = image.resize(shape, Image.Resampling.LANCZOS, box=crop_box(size, *shape))
    assert np.array_equal(pixels, np.asarray(cut))


def test_size_and_box_are_those_of_the_upright_picture():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (20, 10), "red").save(buffer, "JPEG", exif=exif)
    size, _ = unpack(read_picture(buffer.getvalue(), 8, 8, 3), 8, 8, 3)
    assert size == (10, 20)
    assert crop_box(size, 8, 8) == (0, 5, 10, 15)


@pytest.mark.parametrize("format", ["WEBP", "PNG"])
def test_an_animation_is_refused(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(InvalidMedia, match="is animated"):
        read_picture(buffer.getvalue(), 8, 8, 3)
    still = io.BytesIO()
    frames[0].save(still, format, lossless=True, exif=Image.Exif().tobytes())
    read_picture(still.getvalue(), 8, 8, 3)
