"""Pictures as sixels: bands of six rows, in each of which every colour is drawn by itself.

After DEC's VT330/VT340 Programmer Reference Manual, volume 2, chapter 14.
"""

import io
from itertools import groupby

import numpy as np
import numpy.typing as npt
from PIL import Image

_MAX_SIDE_PX = 640
_NUM_COLOURS = 256
_BAND = 6
_MIN_RUN = 4  # a shorter one is shorter written out


def sixels(data: bytes) -> str:
    """Return what draws a picture's file, at most 640 pixels wide and high; transparent pixels are white."""
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    indexed = image.quantize(_NUM_COLOURS, dither=Image.Dither.NONE)
    colours = np.reshape(indexed.getpalette() or (), (-1, 3)) * 100 // 255  # in percent
    palette = "".join(f"#{number};2;{r};{g};{b}" for number, (r, g, b) in enumerate(colours))
    pixels = np.asarray(indexed)
    bands = (_band(pixels[start : start + _BAND]) for start in range(0, len(pixels), _BAND))
    return f'\x1bP0;1q"1;1;{image.width};{image.height}{palette}{"-".join(bands)}\x1b\\'


def _band(rows: npt.NDArray[np.uint8]) -> str:
    """Draw up to six rows of colour numbers, one colour over the other."""
    bits = 1 << np.arange(len(rows))
    return "$".join(f"#{colour}{_runs(bits @ (rows == colour))}" for colour in np.unique(rows))


def _runs(columns: npt.NDArray[np.int64]) -> str:
    """Write columns of six pixels, each a character, and runs of the same with their length."""
    found = ((chr(63 + int(bits)), len(list(run))) for bits, run in groupby(columns))
    return "".join(f"!{length}{each}" if length >= _MIN_RUN else each * length for each, length in found)
