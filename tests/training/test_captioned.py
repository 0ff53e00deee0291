"""Folders of captioned images: two fields a line are enough."""

import json
from pathlib import Path

import pytest
from PIL import Image

from training.data.captioned import load_captioned, read_captions
from training.data.dataset import DataError
from training.data.image_folder import is_test_file
from training.data.sources import load_dataset


def write(folder: Path, *lines: object, info: object = None) -> Path:
    """Write captions, with a picture for each file that they name."""
    folder.mkdir(exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (folder / "captions.jsonl").write_text("\n".join(text) + "\n", encoding="utf-8")
    for line in lines:
        if isinstance(line, dict) and "file" in line:
            Image.new("RGB", (8, 8), "red").save(folder / line["file"])
    if info is not None:
        (folder / "dataset.json").write_text(json.dumps(info))
    return folder


def test_two_fields_are_enough_and_a_tenth_is_held_out_by_name(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(40)]
    folder = write(tmp_path / "data", *({"file": name, "caption": f"number {name}"} for name in names))
    data = load_captioned(folder)
    assert data.images.shape == (40, 3, 8, 8)
    assert data.labels.shape == (40, 0)
    assert data.lines[3].caption == ("number 3.png",)
    held_out = [line.file for line in data.where("held_out").lines]
    assert held_out == [name for name in names if is_test_file(name)]
    assert 0 < len(held_out) < 15
    assert len(load_dataset(folder, "test")) == len(held_out)
    assert load_dataset(folder, "train", image_size_px=4).class_names == ("image",)


def test_lines_end_at_line_feeds_only_and_other_fields_are_left_alone(tmp_path: Path) -> None:
    line = {
        "file": "1.png",
        "caption": ["one\u2028two", "\x0bthree\x85"],
        "credit": {"by": "me"},
        "split": "train",
    }
    folder = write(tmp_path / "data", line, "", {**line, "split": "unseen"})
    captions = read_captions(folder)
    assert [each.caption for each in captions.lines] == [("one\u2028two", "\x0bthree\x85")] * 2
    assert [each.split for each in captions.lines] == ["train", "unseen"]


def test_any_sets_of_labels_are_numbered_in_a_given_order_or_sorted(tmp_path: Path) -> None:
    lines = [
        {"file": f"{n}.png", "caption": "x", "labels": {"season": season, "ink": "dry"}}
        for n, season in enumerate(("summer", "autumn", "winter"))
    ]
    folder = write(tmp_path / "data", *lines)
    captions = read_captions(folder)
    assert captions.label_names == {"season": ("autumn", "summer", "winter"), "ink": ("dry",)}
    assert captions.labels.tolist() == [[1, 0], [0, 0], [2, 0]]
    ordered = {"ink": ["wet", "dry"], "season": ["winter", "summer", "autumn"]}
    write(folder, *lines, info={"labels": ordered})
    assert read_captions(folder).labels.tolist() == [[1, 1], [1, 2], [1, 0]]
    given = {"season": ("summer", "winter", "autumn"), "ink": ("dry",)}
    assert read_captions(folder, given).labels.tolist() == [[0, 0], [2, 0], [1, 0]]


GOOD = {"file": "1.png", "caption": "a cat", "labels": {"style": "ink"}}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({}, "line 2: file: "),
        ("no JSON", "line 2 is not valid JSON"),
        ({**GOOD, "caption": []}, "line 2: caption: "),
        ({**GOOD, "caption": " "}, r"line 2: caption\.0: "),
        ({**GOOD, "split": "test"}, "line 2: split: "),
        ({**GOOD, "file": "../1.png"}, "line 2: file: .*inside the folder"),
        ({"file": "1.png", "caption": "a cat"}, r"line 2: labels: expected one of each set \(style\), got none"),
        ({**GOOD, "file": "nowhere.png"}, r"nowhere\.png can't be read: No such file"),
    ],
)  # fmt: skip
def test_a_line_that_cant_be_used_is_named_in_one_line(tmp_path: Path, line: object, said: str) -> None:
    folder = write(tmp_path / "data", GOOD)
    text = line if isinstance(line, str) else json.dumps(line)
    with (folder / "captions.jsonl").open("a") as file:
        file.write(text + "\n")
    with pytest.raises(DataError, match=said) as raised:
        load_captioned(folder)
    assert "\n" not in str(raised.value)


def test_missing_or_empty_captions_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"captions\.jsonl can't be read: No such file"):
        read_captions(tmp_path)
    (tmp_path / "captions.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no caption"):
        read_captions(tmp_path)


def test_a_folder_without_held_out_images_says_how_to_get_some(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {**GOOD, "split": "train"})
    with pytest.raises(DataError, match="holds no test image: give some lines the split 'held_out'"):
        load_dataset(folder, "test")
