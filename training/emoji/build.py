"""Build the emoji data set from npm packages: ``smalti data emoji --out DIR``.

The folder it makes is one of captioned images (``training/data/captioned.py``): ``images/<style>/<code
point>.png`` (64×64 RGB on white), ``captions.jsonl``, whose lines also say where each picture is from, and
``dataset.json``. Besides, ``montage.png`` to look at, and ``NOTICE`` with the credits and licence texts.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from training.data.caption_line import SPLITS, CaptionSplit
from training.data.captioned import CAPTIONS_FILE, DATASET_FILE
from training.emoji.captions import caption_texts
from training.emoji.packages import (
    NAMES_PACKAGE,
    SOURCES,
    TEXTS_PACKAGE,
    Emoji,
    EmojiError,
    Source,
    fetch_packages,
    known_names,
    read_emoji,
    read_pictures,
    slug,
)
from training.evaluation.plots import GridBlock, save_labelled_grid

IMAGE_SIZE_PX = 64
KIND = "emoji"  # in dataset.json

_UNSEEN_PERCENT = 5.0  # of the emoji: in no style part of the training
_HELD_OUT_PERCENT = 5.0  # of the (emoji, style) pairs of the others
_MIN_STYLES = 3  # that an emoji needs for one of them to be held out
_MIN_INK = 0.01  # of the pixels; less is a blank picture


@dataclass(frozen=True)
class EmojiPicture:
    """A picture of an emoji in a style."""

    file: str
    emoji: Emoji
    source: Source
    split: CaptionSplit = "train"

    def line(self) -> dict[str, Any]:
        """Return a line of ``captions.jsonl``."""
        emoji, source = self.emoji, self.source
        return {
            "file": self.file,
            "caption": caption_texts(emoji, source.style),
            "labels": {"style": source.style, "group": emoji.group},
            "split": self.split,
            "code_point": emoji.code_point,
            "name": emoji.name,
            "keywords": emoji.keywords,
            "subgroup": emoji.subgroup,
            "licence": source.licence,
            "credit": source.credit,
        }


@dataclass(frozen=True)
class Built:
    """What a build made: the number of images by split, and what was left out and why."""

    num_images: dict[CaptionSplit, int]
    left_out: dict[str, int]


def build_emoji(out: Path, *, packages: Path | None = None, with_share_alike: bool = False) -> Built:
    """Build the data set in ``out``, which must be empty or missing.

    packages: a folder of ``.tgz`` files as ``npm pack`` makes them; without it, npm downloads them.
    with_share_alike: also take styles under share-alike licences, which bind what is made from them.

    Raises: EmojiError when ``out`` is taken, npm is missing or fails, or a package isn't there.
    """
    if packages is not None and not packages.is_dir():
        raise EmojiError(f"packages: {packages} is not a folder")
    _make_empty(out)
    sources = [source for source in SOURCES if with_share_alike or not source.is_share_alike]
    wanted = [source.package for source in sources] + [NAMES_PACKAGE, TEXTS_PACKAGE]
    with TemporaryDirectory() as temporary:
        unpacked = Path(temporary)
        fetch_packages(wanted, packages, unpacked)
        emoji = read_emoji(unpacked / slug(NAMES_PACKAGE))
        drawn, left_out = _draw_all(sources, emoji, unpacked, out)
        pictures = split_pictures(drawn)
        _write_dataset(out, pictures)
        (out / "NOTICE").write_text(_notice(sources, unpacked), encoding="utf-8")
    _save_montage(out, pictures, [source.style for source in sources])
    return Built({split: sum(p.split == split for p in pictures) for split in SPLITS}, left_out)


def _make_empty(out: Path) -> None:
    """Make the folder, before minutes of work."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out):
            pass
    except OSError as error:
        raise EmojiError(f"{out} can't be written: {error.strerror}") from error
    if any(out.iterdir()):
        raise EmojiError(f"{out} is not empty: name a new folder, or remove it")


def _write_dataset(out: Path, pictures: Sequence[EmojiPicture]) -> None:
    """Write captions and the names of the labels: styles in the order of their sources, groups sorted."""
    lines = [json.dumps(picture.line(), ensure_ascii=False) + "\n" for picture in pictures]
    (out / CAPTIONS_FILE).write_text("".join(lines), encoding="utf-8")
    styles = list(dict.fromkeys(picture.source.style for picture in pictures))
    groups = sorted({picture.emoji.group for picture in pictures})
    info = {"kind": KIND, "labels": {"style": styles, "group": groups}}
    (out / DATASET_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def split_pictures(pictures: Sequence[EmojiPicture]) -> list[EmojiPicture]:
    """Set every picture's split by hashes of its code point and style alone.

    unseen: emoji that no training image shows. held_out: pairs of an emoji and a style, of emoji that
    training shows in other styles. train: the rest.
    """
    num_styles: dict[str, int] = {}
    for picture in pictures:
        code_point = picture.emoji.code_point
        num_styles[code_point] = num_styles.get(code_point, 0) + 1
    done = []
    for picture in pictures:
        code_point = picture.emoji.code_point
        split: CaptionSplit = "train"
        if _percentile(code_point) < _UNSEEN_PERCENT:
            split = "unseen"
        elif (
            num_styles[code_point] >= _MIN_STYLES
            and _percentile(f"{code_point}/{picture.source.style}") < _HELD_OUT_PERCENT
        ):
            split = "held_out"
        done.append(replace(picture, split=split))
    return done


def _draw_all(
    sources: list[Source], emoji: dict[str, Emoji], unpacked: Path, out: Path
) -> tuple[list[EmojiPicture], dict[str, int]]:
    """Write every picture that is not blank and not a copy of another."""
    written: list[EmojiPicture] = []
    left_out = {"unknown emoji": 0, "blank": 0, "copy of another": 0}
    seen: set[bytes] = set()
    code_points_by_name = known_names(sources, emoji, unpacked)
    for source in sources:
        drawn: set[str] = set()
        folder = out / "images" / source.style
        folder.mkdir(parents=True)
        pictures = list(read_pictures(unpacked / slug(source.package), code_points_by_name))
        for code_point, svg in tqdm(pictures, desc=source.style, unit="image"):
            if code_point not in emoji:
                left_out["unknown emoji"] += 1
                continue
            if code_point in drawn:
                continue
            image = _rasterise(svg)
            pixels = np.asarray(image)
            digest = hashlib.sha256(pixels.tobytes()).digest()
            if (pixels < 250).any(-1).mean() < _MIN_INK:
                left_out["blank"] += 1
            elif digest in seen:
                left_out["copy of another"] += 1
            else:
                seen.add(digest)
                drawn.add(code_point)
                path = folder / f"{code_point}.png"
                image.save(path)
                written.append(EmojiPicture(path.relative_to(out).as_posix(), emoji[code_point], source))
    return written, left_out


def _rasterise(svg: str) -> Image.Image:
    """Return 64×64 RGB on white."""
    import resvg_py  # an extra

    rendered = resvg_py.svg_to_bytes(svg_string=svg, width=2 * IMAGE_SIZE_PX, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(rendered))).convert("RGBA")
    side = max(image.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas.convert("RGB").resize((IMAGE_SIZE_PX, IMAGE_SIZE_PX), Image.Resampling.LANCZOS)


def _notice(sources: list[Source], unpacked: Path) -> str:
    """Return the credits of every style, then every licence's text."""
    lines = ["Pictures and names in this data set come from:", ""]
    for source in sources:
        version = json.loads((unpacked / slug(source.package) / "package/package.json").read_text())[
            "version"
        ]
        lines.append(f"- {source.style}: {source.credit} ({source.package} {version}), {source.licence}")
    lines += [
        f"- names, keywords and groups: emojibase, Miles Johnson ({NAMES_PACKAGE}), MIT",
        "",
        "The pictures were drawn at 64×64 pixels on white; nothing else was changed.",
    ]
    for licence in sorted({source.licence for source in sources} | {"MIT"}):
        path = unpacked / slug(TEXTS_PACKAGE) / "package/licenses" / f"{licence}.json"
        text = json.loads(path.read_text())["licenseText"]
        lines += ["", "=" * 80, licence, "=" * 80, "", text.strip()]
    return "\n".join(lines) + "\n"


def _save_montage(
    out: Path, pictures: Sequence[EmojiPicture], styles: Sequence[str], num_emoji: int = 24
) -> None:
    """Draw emoji that most styles have, a row for each style."""
    by_emoji: dict[str, dict[str, str]] = {}
    for picture in pictures:
        by_emoji.setdefault(picture.emoji.code_point, {})[picture.source.style] = picture.file
    widest = sorted(by_emoji, key=lambda c: (-len(by_emoji[c]), _percentile(c)))[:num_emoji]
    white = torch.full((3, IMAGE_SIZE_PX, IMAGE_SIZE_PX), 255, dtype=torch.uint8)
    rows = []
    for style in styles:
        cells = [white] * len(widest)
        for i, code_point in enumerate(widest):
            if style in by_emoji[code_point]:
                with Image.open(out / by_emoji[code_point][style]) as image:
                    cells[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        rows.append(torch.stack(cells))
    save_labelled_grid(out / "montage.png", [GridBlock("", torch.stack(rows))], row_names=styles)


def _percentile(text: str) -> float:
    """Return a number in [0, 100) that ``text`` alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 * 100
