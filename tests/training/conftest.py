"""A small data set with captions."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from training.data.captioned import CAPTIONS_FILE, DATASET_FILE

COLOURS = ("red", "blue")
THINGS = ("cat", "dog", "apple", "emoji")


@pytest.fixture(scope="session")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight things in three styles, 16×16, as the emoji data set: one pair held out, one thing unseen."""
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
            name = f"{colour} {thing}"
            line = {
                "file": file,
                "caption": [name, f"a {name}", thing],
                "labels": {"style": style, "group": "food" if thing == "apple" else "animals"},
                "split": split,
                "code_point": str(number),
            }
            lines.append(json.dumps(line))
    info = {
        "kind": "emoji",
        "labels": {"style": ["round", "flat", "small"], "group": ["animals", "food"]},
    }
    (folder / DATASET_FILE).write_text(json.dumps(info))
    (folder / CAPTIONS_FILE).write_text("\n".join(lines) + "\n")
    return folder
