"""The npm packages that the emoji data set is made from, and what they hold."""

import json
import re
import shutil
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from models.options import ConfigError

NAMES_PACKAGE = "emojibase-data"
TEXTS_PACKAGE = "spdx-license-list"

_VARIATION_SELECTOR = "fe0f"


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


class EmojiError(ConfigError):
    """The data set can't be built; the message says what to do."""


@dataclass(frozen=True)
class Emoji:
    """One emoji, whatever the style. ``code_point`` is as in ``1f468-200d-1f680``."""

    code_point: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str


def fetch_packages(names: Sequence[str], given: Path | None, unpacked: Path) -> None:
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
        found = sorted(archives.glob(f"{slug(name)}-[0-9]*.tgz"))
        if not found:
            raise EmojiError(f"{archives} has no {slug(name)}-*.tgz: `npm pack {name}` makes it")
        with tarfile.open(found[-1]) as archive:
            archive.extractall(unpacked / slug(name), filter="data")


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


def known_names(sources: Sequence[Source], emoji: dict[str, Emoji], unpacked: Path) -> dict[str, str]:
    """Return code points by icon name: of the emoji's own names, and of packages that map them.

    A name that two packages map to different emoji is dropped: its pictures would be mislabelled.
    """
    known = {_plain(entry.name): code_point for code_point, entry in emoji.items()}
    disputed: set[str] = set()
    for source in sources:
        path = unpacked / slug(source.package) / "package/chars.json"
        for code_point, name in (json.loads(path.read_text()) if path.exists() else {}).items():
            code_point, name = _bare(code_point), _plain(name)
            if code_point in emoji and known.setdefault(name, code_point) != code_point:
                disputed.add(name)
    return {name: code_point for name, code_point in known.items() if name not in disputed}


def read_pictures(package: Path, known: dict[str, str]) -> Iterator[tuple[str, str]]:
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


def slug(package: str) -> str:
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
