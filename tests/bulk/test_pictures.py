"""Pictures for codes are those of /encode, with what was cut out of them told."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from bulk.pictures import crop_box, crop_boxes, read_picture, unpack
from models.media.base import InvalidMedia
from models.media.image import load_image
from models.media.pixels import open_image, read_crops
from tests.bulk.pictures import picture

SIZES = [(20, 16), (16, 20), (12, 12), (13, 7), (100, 99)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(12, 12), (12, 8)])
def test_the_box_is_what_the_one_rule_cuts_out(size, shape):
    data = picture(0, *size)
    found, (pixels,) = unpack(read_picture(data, *shape, 3), *shape, 3)
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


def test_crops_are_the_middle_and_then_boxes_drawn_by_the_files_bytes():
    data = picture(0, 40, 24)
    size, crops = unpack(read_picture(data, 8, 8, 3, 5), 8, 8, 3)
    boxes = crop_boxes(size, 8, 8, hashlib.sha256(data).digest(), 5)
    assert boxes[0] == crop_box(size, 8, 8)
    assert len(set(boxes)) == 5
    with Image.open(io.BytesIO(data)) as image:
        for box, pixels in zip(boxes, crops, strict=True):
            assert np.array_equal(pixels, image.resize((8, 8), Image.Resampling.LANCZOS, box=box))
    for left, top, right, bottom in boxes[1:]:
        assert 0 <= left < right <= 40
        assert 0 <= top < bottom <= 24
        assert right - left == pytest.approx(bottom - top)
        assert 18 <= right - left <= 24


def test_a_crop_is_drawn_as_the_docs_say():
    digest = hashlib.sha256(b"a picture").digest()
    drawn = hashlib.sha256(digest + b"\x02").digest()
    scale, across, down = (int.from_bytes(drawn[at : at + 8], "little") / 2**64 for at in (0, 8, 16))
    side = 24 * (0.75 + 0.25 * scale)
    expected = (across * (40 - side), down * (24 - side))
    assert crop_boxes((40, 24), 8, 8, digest, 3)[2][:2] == pytest.approx(expected, rel=1e-12)


def test_crops_of_pictures_that_are_changed_in_place_are_those_of_opaque_ones():
    opaque = Image.open(io.BytesIO(picture(1, 30, 30)))
    buffer = io.BytesIO()
    opaque.convert("RGBA").save(buffer, "PNG")  # whose pixels are written over, a channel is left
    boxes = [None, (0.0, 0.0, 20.5, 20.5)]
    with open_image(io.BytesIO(buffer.getvalue())) as image:
        crops = read_crops(image, 8, 8, 3, lambda _: boxes)
    for box, pixels in zip([(0, 0, 30, 30), boxes[1]], crops, strict=True):
        assert np.array_equal(pixels, opaque.resize((8, 8), Image.Resampling.LANCZOS, box=box))
