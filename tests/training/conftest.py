"""A small data set with captions."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from training.data.captioned import CAPTIONS_FILE, Caption

COLOURS = ("red", "blue")
THINGS = ("cat", "dog", "apple", "emoji")


@pytest.fixture(scope="session")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight things in three styles, 16×16: one pair held out of training, one thing unseen."""
    folder = tmp_path_factory.mktemp("captioned")
    lines = []
    for style, shape in (("round", "ellipse"), ("flat", "rectangle"), ("small", "ellipse")):
        (folder / "images" / style).mkdir(parents=True)
        for number, (colour, thing) in enumerate((c, t) for c in COLOURS for t in THINGS):
            image = Image.new("RGB", (16, 16), "white")
            margin = 5 if style == "small" else 2
            box = (margin, 2 + THINGS.index(thing), 15 - margin, 15 - margin)
            getattr(ImageDraw.Draw(image), shape)(box, fill=colour)
            file = f"images/{style}/{number}.png"
            image.save(folder / file)
            split = "unseen" if number == 7 else "held_out" if (number, style) == (2, "flat") else "train"
            caption = Caption(
                file=file, code_point=str(number), name=f"{colour} {thing}", keywords=(colour, thing),
                group="food" if thing == "apple" else "animals", subgroup="", style=style,
                licence="MIT", credit="", split=split,
            )  # fmt: skip
            lines.append(json.dumps(asdict(caption)))
    (folder / CAPTIONS_FILE).write_text("\n".join(lines) + "\n")
    return folder
