"""What is done to pictures that don't have the wanted size and colours, said before it is done."""

import logging
from collections.abc import Sequence
from pathlib import Path

from models.media.base import InvalidMedia
from models.media.pixels import open_image
from training.data.pictures import MAX_BYTES, MAX_PIXELS

logger = logging.getLogger(__name__)

_MAX_LOOKED_AT = 1000  # headers: a fifth of a second
_GREY_MODES = frozenset({"1", "L", "LA", "I;16"})
_WITH_TRANSPARENCY = frozenset({"RGBA", "LA", "PA"})


def say_choices(
    folder: Path, files: Sequence[Path], *, image_size_px: int | None, channels: int | None
) -> None:
    """Log how many of a folder's pictures will be cut, enlarged, made grey or laid on white.

    Of many files some are looked at, spread evenly. Those that can't be read are left to whoever reads them.
    """
    step = -(-len(files) // _MAX_LOOKED_AT) or 1
    counts = dict.fromkeys(("cut", "enlarged", "grey", "white"), 0)
    looked_at = files[::step]
    for file in looked_at:
        try:
            with open_image(file, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS) as image:
                (width_px, height_px), mode = image.size, image.mode
                is_transparent = mode in _WITH_TRANSPARENCY or "transparency" in image.info
        except (InvalidMedia, OSError):
            continue
        if image_size_px is not None:
            counts["cut"] += width_px != height_px
            counts["enlarged"] += min(width_px, height_px) < image_size_px
        counts["grey"] += channels == 1 and mode not in _GREY_MODES
        counts["white"] += is_transparent
    told = {
        "cut": "aren't square: their middle is cut out",
        "enlarged": f"are smaller than {image_size_px}x{image_size_px} pixels: they are enlarged",
        "grey": "have colours: they are made grey",
        "white": "can be transparent: white is put behind them",
    }
    of = f"{len(looked_at)} pictures" + (f" looked at, of {len(files)} in all," if step > 1 else "")
    for name, count in counts.items():
        if count:
            logger.info("%s: %d of %s %s", folder, count, of, told[name])
