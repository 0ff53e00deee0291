"""Folders of captioned images: two fields a line are enough."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from training.data.captioned import is_captioned, load_captioned, read_captions
from training.data.dataset import DataError
from training.data.sources import load_dataset
from training.data.splits import is_test_file
from training.examples import read_training_data


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


def test_lines_with_windows_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", *({"file": f"{n}.png", "caption": "x\u2028\x85"} for n in range(3)))
    path = folder / "captions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [line.caption for line in read_captions(folder).lines] == [("x\u2028\x85",)] * 3


def test_hugging_face_s_names_stand_for_ours(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", *({"file": f"{n}.png", "caption": "x"} for n in range(3)))
    ours = read_captions(folder)
    text = (folder / "captions.jsonl").read_text()
    (folder / "captions.jsonl").unlink()
    (folder / "metadata.jsonl").write_text(
        text.replace('"file"', '"file_name"').replace('"caption"', '"text"')
    )
    assert is_captioned(folder)
    assert read_captions(folder).lines == ours.lines
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "label": 3}\n')
    assert not is_captioned(folder)


def test_paths_of_windows_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "elsewhere.png")
    (tmp_path / "data" / "images" / "1.png").symlink_to(tmp_path / "elsewhere.png")
    folder = write(tmp_path / "data", json.dumps({"file": "images\\1.png", "caption": "x"}))
    assert load_captioned(folder).images.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("split", ["train", "held_out", "unseen", None])
@pytest.mark.parametrize("number", [2, 5, 40])
def test_captions_on_one_side_are_split_by_a_hash(
    tmp_path: Path, split: str | None, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    names = [f"{n}.png" for n in range(200) if not is_test_file(f"{n}.png")][: number - number // 10]
    names += [f"{n}.png" for n in range(200) if is_test_file(f"{n}.png")][: number // 10]
    given = {} if split is None else {"split": split}
    folder = write(tmp_path / "data", *({"file": name, "caption": "x", **given} for name in names))
    held_out = max(1, number // 10)
    assert [len(load_dataset(folder, side)) for side in ("train", "test")] == [number - held_out, held_out]
    assert f"held out {held_out} of {number} pictures by a hash of their names" in caplog.text
    assert read_training_data(str(folder), image_size_px=8, channels=3).images.shape[0] == number - held_out


def test_one_captioned_picture_is_too_few(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"file": "1.png", "caption": "x", "split": "held_out"})
    assert len(load_dataset(folder, "train")) == 1
    with pytest.raises(DataError, match="one to train on and one to measure on are the least, got 1"):
        load_dataset(folder, "test")


def test_files_on_several_lines_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    line = {"file": "1.png", "caption": "x"}
    load_captioned(write(tmp_path / "data", line, {**line, "file": "2.png"}, {**line, "file": "./1.png"}))
    assert "1 lines name a file that an earlier line names" in caplog.text
    assert "(./1.png on lines 1 and 3)" in caplog.text


GOOD = {"file": "1.png", "caption": "a cat", "labels": {"style": "ink"}}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({}, "line 2: file: "),
        ("no JSON", "line 2 is not valid JSON"),
        ({**GOOD, "caption": []}, "line 2: caption: "),
        ({**GOOD, "caption": " "}, r"line 2: caption\.0: "),
        ({**GOOD, "split": "test"}, "line 2: split: .*'held_out'"),
        ([GOOD], "line 2: one object a line, as .*, without a list around them"),
        ("[" * 5000, "line 2 is not valid JSON"),
        ('{"file": "1.png",', "line 2 is not valid JSON: .* each line is one whole object"),
        ({**GOOD, "caption": 5}, "line 2: caption: must be a text, or a list of texts, got 5"),
        ({**GOOD, "caption": None}, "line 2: caption: must be a text, or a list of texts, got None"),
        ({**GOOD, "caption": ["a", 5]}, r"line 2: caption\.1: "),
        ({**GOOD, "caption": "\ud800"}, "line 2: caption.*unicode"),
        ({**GOOD, "file": "1\0.png"}, "line 2: file: must lie inside"),
        ({**GOOD, "file": "..\\1.png"}, "line 2: file: must lie inside"),
        ({**GOOD, "file": "/etc/hostname"}, "line 2: file: must lie inside"),
        ({**GOOD, "file": 7}, "line 2: file: .*got 7"),
        ({**GOOD, "file": "."}, "line 2: file: .*not a file"),
        ({**GOOD, "labels": ["ink"]}, "line 2: labels: "),
        ({**GOOD, "labels": {"style": 3}}, r"line 2: labels\.style: .*got 3"),
        ({**GOOD, "labels": {"style": "Ink"}}, r"labels\.style: '[Ii]nk' and '[Ii]nk' differ in case"),
        ({**GOOD, "caption": "x" * 10**6, "split": 1}, "line 2: split: "),
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
    assert len(str(raised.value)) < 500


def test_missing_or_empty_captions_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"captions\.jsonl can't be read: No such file"):
        read_captions(tmp_path)
    (tmp_path / "captions.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no caption"):
        read_captions(tmp_path)


def test_a_folder_without_held_out_images_says_how_to_get_some(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {**GOOD, "split": "train"})  # a single one, of which none is held out
    with pytest.raises(DataError, match="holds no test image: give some lines the split 'held_out'"):
        load_dataset(folder, "test")
