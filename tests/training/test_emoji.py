"""Building the emoji data set from packages laid out as the real ones are."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from training.data.captioned import read_captions, read_info, read_json_lines
from training.emoji.build import EmojiPicture, build_emoji, split_pictures
from training.emoji.captions import caption_texts
from training.emoji.dataset import load_emoji
from training.emoji.packages import SOURCES, Emoji, EmojiError

pytest.importorskip("resvg_py")

EMOJI = {  # code point: (label, tags, group, subgroup)
    "1F600": ("grinning face", ["face", "grin"], 0, 0),
    "1F34E": ("red apple", ["apple", "fruit"], 4, 1),
    "2764": ("red heart", ["heart"], 0, 2),
    "1F99C": ("parrot", ["bird"], 3, 3),
}
GROUPS = {
    "groups": {"0": "smileys-emotion", "2": "component", "3": "animals-nature", "4": "food-drink"},
    "subgroups": {"0": "face-smiling", "1": "food-fruit", "2": "heart", "3": "animal-bird"},
}


def square(colour: str, size: int = 20) -> dict[str, object]:
    return {"body": f'<rect x="2" y="2" width="{size}" height="{size}" fill="{colour}"/>'}


def icons(names: dict[str, str], chars: dict[str, str] | None = None) -> dict[str, bytes]:
    """Return the files of a package of SVG icons: colours by name, names by code point."""
    drawn = {name: square(colour) for name, colour in names.items()}
    document = {"prefix": "x", "width": 24, "height": 24, "icons": drawn}
    return {"icons.json": json.dumps(document).encode(), "chars.json": json.dumps(chars or {}).encode()}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Small packages of all styles: some icons mapped by code point, some by name, some wrong."""
    folder = tmp_path / "packages"
    folder.mkdir()
    contents = {
        "@iconify-json/noto": icons(
            {"grinning-face": "gold", "apple-red": "red", "red-heart": "crimson", "smile": "gold"},
            {"1f600": "grinning-face", "1f34e": "apple-red", "2764-fe0f": "red-heart", "1f99c": "odd"},
        ),
        # "odd" is a parrot above and an apple here: a name that can't be trusted
        "@iconify-json/twemoji": icons({"grinning-face": "yellow", "odd": "navy"}, {"1f34e": "odd"}),
        "@iconify-json/fluent-emoji-flat": icons({"red-apple": "tomato", "grinning-face": "orange"}),
        "@iconify-json/fluent-emoji": icons({"red-apple": "pink", "odd": "teal", "apple-red": "black"}),
        "@iconify-json/noto-v1": icons({"red-heart": "crimson", "parrot": "white"}),  # a copy, a blank
        "@iconify-json/emojione": icons({"parrot": "green", "nothing-known": "blue"}),
        "@iconify-json/fxemoji": icons({"redheart": "purple"}),
        "@iconify-json/openmoji": icons({"parrot": "lime"}),
        "emojibase-data": {
            "meta/groups.json": json.dumps(GROUPS).encode(),
            "en/data.json": json.dumps(
                [
                    {
                        "hexcode": code_point,
                        "label": label,
                        "tags": tags,
                        "group": group,
                        "subgroup": subgroup,
                    }
                    for code_point, (label, tags, group, subgroup) in EMOJI.items()
                ]
                + [{"hexcode": "1F1E6", "label": "regional indicator A"}]
            ).encode(),
        },
        "spdx-license-list": {
            f"licenses/{name}.json": json.dumps({"licenseText": f"The text of {name}."}).encode()
            for name in ("MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0")
        },
    }
    for name, files in contents.items():
        files.setdefault("package.json", b'{"version": "1.0.0"}')
        slug = name.lstrip("@").replace("/", "-")
        with tarfile.open(folder / f"{slug}-1.0.0.tgz", "w:gz") as archive:
            for path, data in files.items():
                info = tarfile.TarInfo(f"package/{path}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return folder


def test_pictures_get_the_names_of_their_emoji(packages: Path, tmp_path: Path) -> None:
    built = build_emoji(tmp_path / "emoji", packages=packages)

    data = load_emoji(tmp_path / "emoji")
    lines = [line for _, line in read_json_lines(tmp_path / "emoji/captions.jsonl")]
    found = {(line["labels"]["style"], line["name"]) for line in lines}
    assert found == {
        ("noto", "grinning face"),
        ("noto", "red apple"),
        ("noto", "red heart"),
        ("twemoji", "grinning face"),
        ("twemoji", "red apple"),  # its own package says so
        ("fluent-flat", "red apple"),
        ("fluent-flat", "grinning face"),
        ("fluent", "red apple"),  # once; neither by a disputed name, nor again by another's name
        ("emojione", "parrot"),
        ("fxemoji", "red heart"),
    }
    assert built.left_out == {"unknown emoji": 0, "blank": 1, "copy of another": 1}
    assert sum(built.num_images.values()) == len(data) == 10
    assert data.images.shape == (10, 3, 64, 64)
    row = next(row for row, line in enumerate(lines) if line["name"] == "red apple")
    apple = lines[row]
    assert (apple["keywords"], apple["labels"]["group"]) == (["apple", "fruit"], "food-drink")
    assert (apple["code_point"], apple["licence"], apple["subgroup"]) == ("1f34e", "Apache-2.0", "food-fruit")
    assert data.code_points[row] == "1f34e"
    assert data.captions.lines[row].caption[:2] == ("red apple", "a red apple")
    assert data.style_names == ("noto", "twemoji", "fluent-flat", "fluent", "emojione", "fxemoji")
    assert read_info(tmp_path / "emoji").kind == "emoji"
    pixels = data.images[row]
    assert pixels[:, 32, 32].tolist() == [255, 0, 0]
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]


def test_credits_and_licence_texts_go_with_the_pictures(packages: Path, tmp_path: Path) -> None:
    build_emoji(tmp_path / "emoji", packages=packages)

    notice = (tmp_path / "emoji/NOTICE").read_text()
    for source in SOURCES:
        assert (source.credit in notice) != source.is_share_alike
    assert "@iconify-json/noto 1.0.0" in notice
    assert all(f"The text of {name}." in notice for name in ("MIT", "Apache-2.0", "CC-BY-4.0"))
    with Image.open(tmp_path / "emoji/montage.png") as montage:
        assert montage.height > 7 * 64


def test_share_alike_pictures_come_only_when_asked_for(packages: Path, tmp_path: Path) -> None:
    build_emoji(tmp_path / "emoji", packages=packages, with_share_alike=True)

    assert "openmoji" in read_captions(tmp_path / "emoji").label_names["style"]
    assert "The text of CC-BY-SA-4.0." in (tmp_path / "emoji/NOTICE").read_text()


def test_the_command_says_what_it_made_and_what_is_wrong(packages: Path, tmp_path: Path) -> None:
    made = CliRunner().invoke(
        cli, ["data", "emoji", "--out", str(tmp_path / "emoji"), "--packages", str(packages)]
    )
    assert made.exit_code == 0, made.output
    assert "images" in made.stdout
    assert made.stdout.endswith(f"{tmp_path / 'emoji'}\n")
    with pytest.raises(EmojiError, match="is not empty"):
        build_emoji(tmp_path / "emoji", packages=packages)
    with pytest.raises(EmojiError, match=r"NOTICE can't be written: File exists"):
        build_emoji(tmp_path / "emoji" / "NOTICE", packages=packages)
    with pytest.raises(EmojiError, match=r"packages: .*nowhere is not a folder"):
        build_emoji(tmp_path / "new", packages=tmp_path / "nowhere")
    next(packages.glob("emojibase*")).unlink()
    with pytest.raises(EmojiError, match="`npm pack emojibase-data` makes it"):
        build_emoji(tmp_path / "new", packages=packages)


def test_npm_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmojiError, match=r"apt-get install npm.*--packages DIR"):
        build_emoji(tmp_path / "emoji")


def test_an_emoji_is_on_one_side_in_every_style() -> None:
    pictures = [
        EmojiPicture("", Emoji(f"{number:x}", "", (), "", ""), source)
        for number in range(2000)
        for source in SOURCES[:3]
    ]
    split = split_pictures(pictures)
    unseen = {picture.emoji.code_point for picture in split if picture.split == "unseen"}
    assert 60 < len(unseen) < 140, "5 % of 2,000"
    assert all((each.emoji.code_point in unseen) == (each.split == "unseen") for each in split)
    held_out = [picture for picture in split if picture.split == "held_out"]
    assert 220 < len(held_out) < 350, "5 % of 5,700"
    assert split_pictures(pictures[::-1])[::-1] == split
    assert not [picture for picture in split_pictures(pictures[::3]) if picture.split == "held_out"]


def test_captions_vary_and_hold_to_the_same_thing() -> None:
    cat = Emoji("1", "red cat", ("fur", "meow", "pet", "whiskers"), "animals", "")
    texts = caption_texts(cat, "round")
    assert texts[:4] == ["red cat", "a red cat", "red cat emoji", "a red cat emoji in round style"]
    assert texts[4] == "red cat, fur, meow, pet, whiskers"
    assert len(texts) == len(set(texts)) == 8
    assert texts == caption_texts(cat, "round")
