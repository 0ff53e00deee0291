import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.dataset import DataError, ImageDataset
from training.data.fashion_mnist import CLASS_NAMES
from training.data.image_folder import is_test_file
from training.data.sources import load_dataset


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


def test_missing_fashion_mnist_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        load_dataset(f"fashion-mnist:{tmp_path}", "train")


def test_damaged_idx_file_is_refused(idx_folder: Path) -> None:
    path = idx_folder / "train-labels-idx1-ubyte.gz"
    with gzip.open(path, "wb") as file:
        file.write(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1, 2]))
    with pytest.raises(ValueError, match="9 elements announced, got 2"):
        load_dataset(f"fashion-mnist:{idx_folder}", "train")
    path.write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="damaged gzip"):
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


def test_folder_without_classes_has_one(tmp_path: Path) -> None:
    save(tmp_path / "train" / "1.png", 7, mode="L")
    dataset = load_dataset(tmp_path, "train")
    assert dataset.images.shape == (1, 1, 8, 8)
    assert dataset.images.unique().tolist() == [7]
    assert dataset.class_names == ("image",)


def test_images_are_scaled_cut_and_laid_on_white(tmp_path: Path) -> None:
    save(tmp_path / "train" / "wide.png", (0, 0, 0, 0), size=(40, 20), mode="RGBA")
    deep = Image.fromarray(np.full((9, 9), 0x8000, dtype=np.uint16))
    deep.save(tmp_path / "train" / "deep.png")
    dataset = load_dataset(tmp_path, "train", image_size_px=10)
    assert dataset.images.shape == (2, 3, 10, 10)
    assert dataset.images[0].unique().tolist() == [0x80]
    assert dataset.images[1].unique().tolist() == [255]


def test_sizes_that_differ_need_image_size_px(tmp_path: Path) -> None:
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
