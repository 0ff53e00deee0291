import gzip
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.dataset import DataError, ImageDataset, Split
from training.data.fashion_mnist import CLASS_NAMES
from training.data.sources import load_dataset
from training.data.splits import is_test_file


def write_idx(path: Path, values: torch.Tensor) -> None:
    header = bytes([0, 0, 8, values.ndim])
    header += b"".join(size.to_bytes(4, "big") for size in values.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + values.to(torch.uint8).numpy().tobytes())


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for prefix, num_images in (("train", 6), ("t10k", 3)):
        images = torch.randint(0, 256, (num_images, 28, 28), generator=generator)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", torch.arange(num_images))
    return tmp_path


def save(path: Path, colour: object, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]


def test_fashion_mnist_is_read_from_a_given_folder(idx_folder: Path) -> None:
    train = load_dataset(f"fashion-mnist:{idx_folder}", "train")
    test = load_dataset(f"fashion-mnist:{idx_folder}", "test", image_size_px=32, channels=3)
    assert train.images.shape == (6, 1, 28, 28)
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert train.class_names == CLASS_NAMES
    assert test.images.shape == (3, 3, 32, 32)
    assert torch.equal(test.images[:, 0], test.images[:, 2])
    for path in idx_folder.glob("*.gz"):  # as torchvision leaves them
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert torch.equal(load_dataset(f"fashion-mnist:{idx_folder}", "train").images, train.images)


def test_missing_fashion_mnist_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        load_dataset(f"fashion-mnist:{tmp_path}", "train")


def test_damaged_idx_file_is_refused(idx_folder: Path) -> None:
    path = idx_folder / "train-labels-idx1-ubyte.gz"
    with gzip.open(path, "wb") as file:
        file.write(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1, 2]))
    with pytest.raises(ValueError, match="9 elements announced, got 2"):
        load_dataset(f"fashion-mnist:{idx_folder}", "train")
    whole = gzip.compress(bytes(range(250)) * 4)
    for damaged in (b"not gzip", b"", whole[:-20], whole[:20] + b"\xff" * 9 + whole[29:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged gzip|not an IDX file") as raised:
            load_dataset(f"fashion-mnist:{idx_folder}", "train")
        assert "\n" not in str(raised.value)
    write_idx(path, torch.full((6,), 10))
    with pytest.raises(DataError, match=r"labels lie in 0\.\.9, got 10"):
        load_dataset(f"fashion-mnist:{idx_folder}", "train")
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"can't be read: Is a directory"):
        load_dataset(f"fashion-mnist:{idx_folder}", "train")


def test_folder_without_splits_is_split_by_file_name(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(60)]
    for name in names:
        save(tmp_path / "red" / name, "red")
        save(tmp_path / "blue" / name, "blue")
    train, test = load_dataset(tmp_path, "train"), load_dataset(tmp_path, "test")
    num_test = sum(is_test_file(name) for name in names)
    assert 0 < num_test < 20
    assert len(test) == 2 * num_test
    assert len(train) + len(test) == 120
    assert train.class_names == test.class_names == ("blue", "red")
    red = test.images[test.labels == 1]
    assert red.shape == (num_test, 3, 8, 8)
    assert red[:, 0].min() == 255
    assert red[:, 2].max() == 0


def test_split_folders_share_their_class_names(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "1.png", 3, mode="L")
    save(tmp_path / "train" / "b" / "1.png", 5, mode="L")
    save(tmp_path / "test" / "b" / "2.webp", 5, mode="L")
    test = load_dataset(str(tmp_path), "test", channels=1)
    assert test.class_names == ("a", "b")
    assert test.labels.tolist() == [1]


def names_held_out(folder: Path, names: list[str]) -> set[str]:
    """Return the file names of the test split, which no picture of the training split has."""
    for number, name in enumerate(names):
        save(folder / name, (number, 0, 0))
    red = {split: set(load_dataset(folder, split).images[:, 0].unique().tolist()) for split in SPLITS}
    assert not red["train"] & red["test"]
    assert len(red["train"] | red["test"]) == len(names)
    return {names[number] for number in red["test"]}


SPLITS: tuple[Split, Split] = ("train", "test")
HELD_OUT = [f"{n}.png" for n in range(200) if is_test_file(f"{n}.png")]
TRAINED = [f"{n}.png" for n in range(200) if not is_test_file(f"{n}.png")]


@pytest.mark.parametrize("names", [TRAINED[:2], TRAINED[:5], HELD_OUT[:2], HELD_OUT[:5]])
@pytest.mark.parametrize("inside", [".", "train"])
def test_few_pictures_are_split_so_that_each_side_has_some(
    tmp_path: Path, names: list[str], inside: str
) -> None:
    held_out = names_held_out(tmp_path, [f"{inside}/{name}" for name in names])
    assert len(held_out) == (1 if names[0] in TRAINED else len(names) - 1)
    moved = tmp_path / "elsewhere"
    assert names_held_out(moved, [f"{inside}/{name}" for name in names]) == held_out


def test_train_without_test_holds_a_tenth_out_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    names = [*TRAINED[:37], *HELD_OUT[:3]]
    assert names_held_out(tmp_path / "train", names) == set(HELD_OUT[:3])
    assert names_held_out(tmp_path, [f"train/{name}" for name in names]) == {
        f"train/{name}" for name in HELD_OUT[:3]
    }
    told = "held out 3 of 40 pictures by a hash of their names, to measure on: there is no test/ folder"
    assert caplog.messages.count(f"{tmp_path}: {told}") == 1
    (tmp_path / "test").mkdir()
    assert len(load_dataset(tmp_path, "test")) == 3
    save(tmp_path / "Validation" / "1.png", "red")
    assert len(load_dataset(tmp_path, "test")) == 1
    assert len(load_dataset(tmp_path, "train")) == 40


def test_a_name_in_two_classes_is_split_by_its_folder_where_there_is_no_other(tmp_path: Path) -> None:
    assert len(names_held_out(tmp_path, ["a/1.png", "b/1.png"])) == 1


def test_one_picture_is_too_few(tmp_path: Path) -> None:
    save(tmp_path / HELD_OUT[0], "red")
    assert len(load_dataset(tmp_path, "train")) == 1
    with pytest.raises(DataError, match=r"no test image: at least 2 pictures .* one to measure on, got 1"):
        load_dataset(tmp_path, "test")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="holds test/ and no train/"):
        load_dataset(tmp_path, "train")


def test_what_is_done_to_pictures_is_said_with_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for number in range(12):
        save(tmp_path / "train" / "many" / f"{number}.png", "red")
    save(tmp_path / "train" / "few" / "wide.png", 3, (40, 20), "L")
    save(tmp_path / "train" / "few" / "clear.png", 3, (4, 4), "RGBA")
    save(tmp_path / "test" / "none" / "1.png", "red")
    load_dataset(tmp_path, "train", image_size_px=8, channels=1)
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "1 of 14 pictures aren't square: their middle is cut out",
        "1 of 14 pictures are smaller than 8x8 pixels: they are enlarged",
        "13 of 14 pictures have colours: they are made grey",
        "1 of 14 pictures can be transparent: white is put behind them",
        "14 pictures to train on, in 3 classes",
        "2 of 3 classes have fewer than 10 pictures to train on: few 2, none 0",
    ]


def test_captions_that_would_be_left_out_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "1.png", "red")
    (tmp_path / "metadata.csv").write_text("file_name,text")
    load_dataset(tmp_path, "train")
    assert "metadata.csv is not read: captions stand in captions.jsonl" in caplog.text
    save(tmp_path / "train" / "1.png", "red")
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "x"}')
    with pytest.raises(DataError, match=r"put one metadata\.jsonl into .*, whose files begin with train/"):
        load_dataset(tmp_path, "train")


def test_classes_that_differ_in_case_alone_are_said_before_training(tmp_path: Path) -> None:
    save(tmp_path / "train" / "Cat" / "1.png", "red")
    save(tmp_path / "train" / "cat" / "2.png", "red")
    with pytest.raises(DataError, match="'Cat' and 'cat' differ in case or spaces alone"):
        load_dataset(tmp_path, "train")


def test_folder_without_classes_has_one(tmp_path: Path) -> None:
    save(tmp_path / "train" / "1.png", 7, mode="L")
    dataset = load_dataset(tmp_path, "train")
    assert dataset.images.shape == (1, 1, 8, 8)
    assert dataset.images.unique().tolist() == [7]
    assert dataset.class_names == ("image",)


def test_images_are_scaled_cut_and_laid_on_white(tmp_path: Path) -> None:
    save(tmp_path / "test" / "1.png", "red")
    save(tmp_path / "train" / "wide.png", (0, 0, 0, 0), size=(40, 20), mode="RGBA")
    deep = Image.fromarray(np.full((9, 9), 0x8000, dtype=np.uint16))
    deep.save(tmp_path / "train" / "deep.png")
    dataset = load_dataset(tmp_path, "train", image_size_px=10)
    assert dataset.images.shape == (2, 3, 10, 10)
    assert dataset.images[0].unique().tolist() == [0x80]
    assert dataset.images[1].unique().tolist() == [255]


def test_sizes_that_differ_need_image_size_px(tmp_path: Path) -> None:
    save(tmp_path / "test" / "1.png", "red")
    save(tmp_path / "train" / "1.png", "red", size=(8, 8))
    save(tmp_path / "train" / "2.png", "red", size=(8, 9))
    with pytest.raises(ValueError, match="set image_size_px"):
        load_dataset(tmp_path, "train")


def test_files_that_are_not_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "broken.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.png: the bytes are not a PNG, JPEG or WebP file"):
        load_dataset(tmp_path, "train")


def test_loose_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "1.png", "red")
    save(tmp_path / "train" / "loose.png", "red")
    with pytest.raises(ValueError, match=r"loose\.png"):
        load_dataset(tmp_path, "train")


def test_empty_or_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no train image"):
        load_dataset(tmp_path, "train")
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset(tmp_path / "nowhere", "train")


def test_labels_must_match_the_class_names() -> None:
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.0"):
        ImageDataset(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([1]), ("only",))
