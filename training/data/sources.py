"""Where a data set comes from: a name, or a folder."""

from pathlib import Path

from training.data.captioned import is_captioned, load_captioned
from training.data.dataset import ImageDataset, Split
from training.data.fashion_mnist import DEFAULT_FOLDER, load_fashion_mnist
from training.data.image_folder import load_image_folder

FASHION_MNIST = "fashion-mnist"


def load_dataset(
    source: str | Path,
    split: Split,
    *,
    image_size_px: int | None = None,
    channels: int | None = None,
) -> ImageDataset:
    """Load one split of Fashion-MNIST or of a folder of images.

    source: "fashion-mnist" (where Debian's package puts it), "fashion-mnist:/some/folder",
    a folder of images as ``image_folder.load_image_folder`` describes, or one of captioned images, where
    the styles are the classes and the test split is what training never shows in any style.
    image_size_px, channels: None keeps what the data has.

    Raises: FileNotFoundError where the data is missing; ValueError for data that can't be used.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if image_size_px is not None and not 1 <= image_size_px <= 4096:
        raise ValueError(f"image_size_px must lie in 1..4096, got {image_size_px}")

    name, _, folder = str(source).partition(":")
    if name == FASHION_MNIST:
        return load_fashion_mnist(
            Path(folder) if folder else DEFAULT_FOLDER,
            split,
            image_size_px=image_size_px,
            channels=channels,
        )
    if is_captioned(Path(source)):
        captioned = load_captioned(Path(source)).where("train" if split == "train" else "unseen")
        found = tuple(captioned.images.shape[1:])
        if image_size_px not in (None, found[-1]) or channels not in (None, found[0]):
            raise ValueError(f"{source} holds images of {found}, not of {channels} and {image_size_px} px")
        return ImageDataset(captioned.images, captioned.styles, captioned.style_names)
    return load_image_folder(Path(source), split, image_size_px=image_size_px, channels=channels)
