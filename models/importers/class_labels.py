"""The names of the classes that a public prior was trained on."""

from pathlib import Path

IMAGENET_SIZE = 1000
_IMAGENET = Path(__file__).with_name("imagenet.txt")


def class_names(num_labels: int) -> tuple[str, ...]:
    """Return ImageNet's short names where there are 1,000 classes, else their numbers.

    The names are those of torchvision's weights (BSD-3-Clause), but for class 264, a dog, which is called
    "Cardigan" there beside the "cardigan" of class 474.
    """
    if num_labels == IMAGENET_SIZE:
        return tuple(_IMAGENET.read_text("utf-8").splitlines())
    return tuple(map(str, range(num_labels)))
