"""Draw the pictures of docs/editing.md: every one is shown, none was chosen.

    python benchmarks/editing_page.py docs
    python benchmarks/editing_page.py docs fashion-mnist-masked

Sources are two drawings of a few shapes, and the first samples of the pipeline itself.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from models.media.image import IMAGE, ImageSpec
from models.options import FlowOptions, MaskedOptions
from models.pipeline import Pipeline
from models.stage import Sample, SampleSpec, run_path

WEIGHTS = Path(__file__).parents[1] / "weights"
STRENGTHS = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NUM_SAMPLES = len(STRENGTHS)
GREY = 160  # where a picture is to be drawn anew
PROMPTS = ("a smiling cat", "a red apple", "a blue car", "a house", "an owl", "a rocket")
CLASSES = (9, 1, 3, 5, 7, 8)  # ankle boot, trouser, dress, sandal, sneaker, bag
SCALES = {"emoji-64": 1, "fashion-mnist": 2, "fashion-mnist-masked": 2}


def main(folder: Path, names: Sequence[str]) -> None:
    """Write one file a pipeline."""
    for name in names or SCALES:
        scale = SCALES[name]
        sheet = draw_page(Pipeline.load(WEIGHTS / name))
        image = Image.fromarray(sheet.squeeze())
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        if image.mode == "RGB":
            image = image.quantize(256, dither=Image.Dither.NONE)  # a third of the file
        image.save(folder / f"editing-{name}.png", optimize=True)


def draw_page(pipeline: Pipeline) -> np.ndarray:
    """Return the pixels of a page: six rows of strengths, six of masks, three of variations."""
    wanted = [
        {"prompt": prompt} if pipeline.spec.takes_prompt else {"labels": {"class": label}}
        for prompt, label in zip(PROMPTS, CLASSES, strict=True)
    ]
    sources = [drawing(pipeline, number) for number in range(2)]
    sources += [generate(pipeline, [each], number)[0] for number, each in enumerate(wanted[2:])]
    rows = []
    for source, asked in zip(sources, wanted, strict=True):
        rows.append([source, *edit(pipeline, source, asked, STRENGTHS)])
    made = [generate(pipeline, [each], number)[0] for number, each in enumerate(wanted)]
    for number, (source, asked) in enumerate(zip(made, wanted, strict=True)):
        mask = masks(pipeline)[number // 2]
        hole = torch.where(mask, torch.tensor(GREY / 127.5 - 1), source)
        rows.append([hole, *edit(pipeline, source, asked, [1.0] * NUM_SAMPLES, mask)])
    strength = getattr(pipeline.spec.defaults, "strength", 1.0)
    for source in made[:3]:
        rows.append([source, *edit(pipeline, source, {}, [strength] * NUM_SAMPLES)])
    return np.concatenate(
        [np.concatenate([IMAGE.from_signal(each.numpy()) for each in row], 1) for row in rows]
    )


def drawing(pipeline: Pipeline, number: int) -> Tensor:
    """Return a drawing of a few shapes: a face and an apple, or a boot and trousers."""
    medium = pipeline.spec.medium
    assert isinstance(medium, ImageSpec)
    image = Image.new("RGB", (64, 64), "white" if medium.channels == 3 else "black")
    draw = ImageDraw.Draw(image)
    if medium.channels == 3 and number == 0:
        draw.polygon([(10, 4), (28, 16), (8, 26)], fill="orange")
        draw.polygon([(54, 4), (36, 16), (56, 26)], fill="orange")
        draw.ellipse((6, 10, 58, 60), fill="orange")
        draw.ellipse((18, 26, 24, 34), fill="black")
        draw.ellipse((40, 26, 46, 34), fill="black")
        draw.arc((20, 30, 44, 50), 20, 160, fill="black", width=3)
    elif medium.channels == 3:
        draw.ellipse((8, 14, 56, 60), fill="red")
        draw.line((32, 16, 36, 4), fill="brown", width=4)
        draw.ellipse((36, 2, 54, 12), fill="green")
    elif number == 0:
        draw.polygon([(22, 8), (40, 8), (42, 36), (60, 44), (60, 54), (20, 54)], fill="gray")
    else:
        draw.rectangle((18, 4, 46, 12), fill="silver")
        draw.polygon([(18, 12), (31, 12), (28, 60), (18, 60)], fill="silver")
        draw.polygon([(33, 12), (46, 12), (46, 60), (36, 60)], fill="silver")
    image = image.resize((medium.width_px, medium.height_px), Image.Resampling.LANCZOS)
    pixels = np.asarray(image.convert("RGB" if medium.channels == 3 else "L"))
    return torch.tensor(IMAGE.to_signal(pixels.reshape(*pixels.shape[:2], medium.channels)))


def masks(pipeline: Pipeline) -> list[Tensor]:
    """Return masks (1, H, W) of the middle, of the right half, and of all but the middle."""
    side = pipeline.autoencoder.signal_shape[1]
    middle, right = torch.zeros(2, 1, side, side, dtype=torch.bool)
    middle[:, side // 4 : -side // 4, side // 4 : -side // 4] = True
    right[:, :, side // 2 :] = True
    return [middle, right, ~middle]


def generate(pipeline: Pipeline, wanted: Sequence[dict], seed: int) -> Tensor:
    """Return pictures (B, C, H, W) of what is wanted."""
    return torch.cat([pipeline.generate(pipeline.conditions(**asked), seed) for asked in wanted])


def edit(
    pipeline: Pipeline, source: Tensor, asked: dict, strengths: Sequence[float], mask: Tensor | None = None
) -> list[Tensor]:
    """Return a picture for each strength; equal ones have different noise."""
    options = pipeline.spec.defaults
    assert isinstance(options, FlowOptions | MaskedOptions)
    conditions, null = pipeline.conditions(**asked), pipeline.conditions()
    samples = [
        Sample(
            SampleSpec(1, replace(options, strength=strength), conditions, null, mask=mask),
            index=number if strength == strengths[0] else 0,
            value=source,
            source=source,
        )
        for number, strength in enumerate(strengths)
    ]
    run_path(pipeline.make_stages(len(samples)).path("generate", is_edit=True), samples)
    return [sample.value for sample in samples if sample.value is not None]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
