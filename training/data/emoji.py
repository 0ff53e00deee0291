"""Build the emoji data set from npm packages: ``smalti data emoji --out DIR``.

The folder it makes has ``images/<style>/<code point>.png`` (64×64 RGB on white), ``captions.jsonl`` with a
line for each (``training/data/captioned.py`` reads it), ``montage.png`` to look at, and ``NOTICE`` with the
credits and licence texts.
"""

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from training.data.captioned import CAPTIONS_FILE, Caption, CaptionSplit
from training.plots import GridBlock, save_labelled_grid

IMAGE_SIZE_PX = 64

_TEXTS_PACKAGE = "spdx-license-list"
_NAMES_PACKAGE = "emojibase-data"
_UNSEEN_PERCENT = 5.0  # of the emoji: in no style part of the training
_HELD_OUT_PERCENT = 5.0  # of the (emoji, style) pairs of the others
_MIN_STYLES = 3  # that an emoji needs for one of them to be held out
_VARIATION_SELECTOR = "fe0f"
_MIN_INK = 0.01  # of the pixels; less is a blank picture


@dataclass(frozen=True)
class Source:
    """A package of emoji pictures in one style."""

    style: str
    package: str
    licence: str
    credit: str
    is_share_alike: bool = False


# Not among them: Fluent Emoji in 3D, which at 64 pixels are nearly the pictures of `fluent`.
SOURCES = (
    Source("noto", "@iconify-json/noto", "Apache-2.0", "Noto Emoji, Google LLC"),
    Source("twemoji", "@iconify-json/twemoji", "CC-BY-4.0", "Twemoji, Twitter, Inc and other contributors"),
    Source("fluent-flat", "@iconify-json/fluent-emoji-flat", "MIT", "Fluent Emoji, Microsoft Corporation"),
    Source("fluent", "@iconify-json/fluent-emoji", "MIT", "Fluent Emoji, Microsoft Corporation"),
    Source("noto-v1", "@iconify-json/noto-v1", "Apache-2.0", "Noto Emoji before 2018, Google LLC"),
    Source("emojione", "@iconify-json/emojione", "CC-BY-4.0", "EmojiTwo, from EmojiOne 2.2"),
    Source("fxemoji", "@iconify-json/fxemoji", "Apache-2.0", "FxEmojis, Mozilla Foundation"),
    Source("openmoji", "@iconify-json/openmoji", "CC-BY-SA-4.0", "OpenMoji", is_share_alike=True),
)


class EmojiError(ValueError):
    """The data set can't be built; the message says what to do."""


@dataclass(frozen=True)
class Emoji:
    """One emoji, whatever the style. ``code_point`` is as in ``1f468-200d-1f680``."""

    code_point: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str


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
    if out.exists() and any(out.iterdir()):
        raise EmojiError(f"{out} is not empty: name a new folder, or remove it")
    sources = [source for source in SOURCES if with_share_alike or not source.is_share_alike]
    wanted = [source.package for source in sources] + [_NAMES_PACKAGE, _TEXTS_PACKAGE]
    with TemporaryDirectory() as temporary:
        unpacked = Path(temporary)
        fetch_packages(wanted, packages, unpacked)
        emoji = read_emoji(unpacked / _slug(_NAMES_PACKAGE))
        captions, left_out = _draw_all(sources, emoji, unpacked, out)
        captions = split_captions(captions)
        lines = "".join(json.dumps(asdict(caption), ensure_ascii=False) + "\n" for caption in captions)
        (out / CAPTIONS_FILE).write_text(lines)
        (out / "NOTICE").write_text(_notice(sources, unpacked))
    _save_montage(out, captions, [source.style for source in sources])
    splits: tuple[CaptionSplit, ...] = ("train", "held_out", "unseen")
    return Built({split: sum(c.split == split for c in captions) for split in splits}, left_out)


def fetch_packages(names: list[str], given: Path | None, unpacked: Path) -> None:
    """Unpack npm packages into ``unpacked/<slug>``: files given in a folder, or fetched by npm."""
    if given is None and shutil.which("npm") is None:
        raise EmojiError("npm is missing: install it (Debian: apt-get install npm), or give --packages DIR")
    for name in tqdm(names, desc="packages", unit="package"):
        archives = unpacked if given is None else given
        if given is None:
            done = subprocess.run(
                ["npm", "pack", "--silent", name], cwd=unpacked, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise EmojiError(f"npm can't fetch {name}: {done.stderr.strip()[-500:]}")
        found = sorted(archives.glob(f"{_slug(name)}-[0-9]*.tgz"))
        if not found:
            raise EmojiError(f"{archives} has no {_slug(name)}-*.tgz: `npm pack {name}` makes it")
        with tarfile.open(found[-1]) as archive:
            archive.extractall(unpacked / _slug(name), filter="data")


def read_emoji(package: Path) -> dict[str, Emoji]:
    """Return the emoji of ``emojibase-data`` by code point, without their skin tones."""
    root = package / "package"
    groups = json.loads((root / "meta/groups.json").read_text())
    found = {}
    for entry in json.loads((root / "en/data.json").read_text()):
        if "group" not in entry or groups["groups"][str(entry["group"])] == "component":
            continue
        code_point = _bare(entry["hexcode"])
        found[code_point] = Emoji(
            code_point,
            entry["label"],
            tuple(tag for tag in entry.get("tags", ()) if tag != entry["label"]),
            groups["groups"][str(entry["group"])],
            groups["subgroups"][str(entry["subgroup"])],
        )
    return found


def split_captions(captions: list[Caption]) -> list[Caption]:
    """Set every caption's split by hashes of its code point and style alone.

    unseen: emoji that no training image shows. held_out: pairs of an emoji and a style, of emoji that
    training shows in other styles. train: the rest.
    """
    num_styles: dict[str, int] = {}
    for caption in captions:
        num_styles[caption.code_point] = num_styles.get(caption.code_point, 0) + 1
    done = []
    for caption in captions:
        split: CaptionSplit = "train"
        if _percentile(caption.code_point) < _UNSEEN_PERCENT:
            split = "unseen"
        elif (
            num_styles[caption.code_point] >= _MIN_STYLES
            and _percentile(f"{caption.code_point}/{caption.style}") < _HELD_OUT_PERCENT
        ):
            split = "held_out"
        done.append(replace(caption, split=split))
    return done


def _draw_all(
    sources: list[Source], emoji: dict[str, Emoji], unpacked: Path, out: Path
) -> tuple[list[Caption], dict[str, int]]:
    """Write every picture that is not blank and not a copy of another; return their captions."""
    captions: list[Caption] = []
    left_out = {"unknown emoji": 0, "blank": 0, "copy of another": 0}
    seen: set[bytes] = set()
    code_points_by_name = _known_names(sources, emoji, unpacked)
    for source in sources:
        drawn: set[str] = set()
        folder = out / "images" / source.style
        folder.mkdir(parents=True)
        pictures = list(_pictures(unpacked / _slug(source.package), code_points_by_name))
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
                about = emoji[code_point]
                captions.append(
                    Caption(
                        file=str(path.relative_to(out)),
                        code_point=code_point,
                        name=about.name,
                        keywords=about.keywords,
                        group=about.group,
                        subgroup=about.subgroup,
                        style=source.style,
                        licence=source.licence,
                        credit=source.credit,
                        split="train",
                    )
                )
    return captions, left_out


def _known_names(sources: list[Source], emoji: dict[str, Emoji], unpacked: Path) -> dict[str, str]:
    """Return code points by icon name: of the emoji's own names, and of packages that map them.

    A name that two packages map to different emoji is dropped: its pictures would be mislabelled.
    """
    known = {_plain(entry.name): code_point for code_point, entry in emoji.items()}
    disputed: set[str] = set()
    for source in sources:
        path = unpacked / _slug(source.package) / "package/chars.json"
        for code_point, name in (json.loads(path.read_text()) if path.exists() else {}).items():
            code_point, name = _bare(code_point), _plain(name)
            if code_point in emoji and known.setdefault(name, code_point) != code_point:
                disputed.add(name)
    return {name: code_point for name, code_point in known.items() if name not in disputed}


def _pictures(package: Path, known: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (code point, SVG text) of every picture of a package."""
    root = package / "package"
    icons = json.loads((root / "icons.json").read_text())
    own = {
        name: _bare(code_point) for code_point, name in json.loads((root / "chars.json").read_text()).items()
    }
    for name, icon in sorted(icons["icons"].items()):
        code_point = own.get(name) or known.get(_plain(name))
        if code_point:
            yield code_point, _svg(icons, icon)


def _svg(icons: dict[str, Any], icon: dict[str, Any]) -> str:
    left, top, width, height = (
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )


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
        version = json.loads((unpacked / _slug(source.package) / "package/package.json").read_text())[
            "version"
        ]
        lines.append(f"- {source.style}: {source.credit} ({source.package} {version}), {source.licence}")
    lines += [
        f"- names, keywords and groups: emojibase, Miles Johnson ({_NAMES_PACKAGE}), MIT",
        "",
        "The pictures were drawn at 64×64 pixels on white; nothing else was changed.",
    ]
    for licence in sorted({source.licence for source in sources} | {"MIT"}):
        path = unpacked / _slug(_TEXTS_PACKAGE) / "package/licenses" / f"{licence}.json"
        text = json.loads(path.read_text())["licenseText"]
        lines += ["", "=" * 80, licence, "=" * 80, "", text.strip()]
    return "\n".join(lines) + "\n"


def _save_montage(out: Path, captions: list[Caption], styles: list[str], num_emoji: int = 24) -> None:
    """Draw emoji that most styles have, a row for each style."""
    by_emoji: dict[str, dict[str, str]] = {}
    for caption in captions:
        by_emoji.setdefault(caption.code_point, {})[caption.style] = caption.file
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


def _slug(package: str) -> str:
    """Return how ``npm pack`` names a package's file."""
    return package.lstrip("@").replace("/", "-")


def _bare(code_point: str) -> str:
    """Return a code point in lower case without variation selectors, which packages set as they like."""
    parts = code_point.lower().split("-")
    return "-".join(part.lstrip("0") or "0" for part in parts if part != _VARIATION_SELECTOR)


def _plain(name: str) -> str:
    """Return a name as its letters and digits alone."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", ascii_only.lower())
