"""A folder of images with captions: ``captions.jsonl`` beside them, a JSON object a line.

    {"file": "images/7.png", "caption": "a red cat"}
    {"file": "images/8.png", "caption": ["a dog", "a small brown dog"], "labels": {"style": "ink"},
     "split": "train"}

(each on one line). ``file`` is relative to the folder. Of several captions, training draws one at random
each time, and the first is what people are shown. ``labels`` puts the image into sets of labels; every line
has the same sets. ``split`` is "train", "held_out" (kept from training) or "unseen" (kept from training with
all that is like it); without it, about a tenth of the images is held out by a hash of the file's name. Other
fields are left alone: what a builder of a data set wants to keep beside an image.

An optional ``dataset.json`` gives the order of the labels' names, which are sorted without it, and a kind
that ``smalti evaluate`` may know measures for.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from training.data.dataset import DataError
from training.data.image_folder import is_test_file
from training.data.pictures import read_pictures

CAPTIONS_FILE = "captions.jsonl"
DATASET_FILE = "dataset.json"

CaptionSplit = Literal["train", "held_out", "unseen"]
LabelNames = Mapping[str, tuple[str, ...]]
NOT_TRAIN: tuple[CaptionSplit, ...] = ("held_out", "unseen")

_NotBlank = Annotated[str, Field(pattern=r"\S")]
_IGNORE_OTHERS = ConfigDict(extra="ignore")


def _check_inside(file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("must lie inside the folder")
    return file


@dataclass(frozen=True, config=_IGNORE_OTHERS)
class CaptionLine:
    """A line of ``captions.jsonl``; ``caption`` holds one or several."""

    file: Annotated[_NotBlank, AfterValidator(_check_inside)]
    caption: Annotated[
        tuple[_NotBlank, ...],
        Field(min_length=1),
        BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
    ]
    labels: Mapping[str, _NotBlank] = dataclasses.field(default_factory=dict)
    split: CaptionSplit | None = None


@dataclass(frozen=True, config=_IGNORE_OTHERS)
class DatasetInfo:
    """The contents of ``dataset.json``: names of labels by set, in order, and what kind of data set it is."""

    kind: str | None = None
    labels: LabelNames | None = None


@dataclasses.dataclass(frozen=True)
class Captions:
    """The lines of a folder, each with its split, and the names of its sets of labels."""

    folder: Path
    lines: tuple[CaptionLine, ...]
    label_names: LabelNames

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def labels(self) -> Tensor:
        """(N, K) int64: for each of K sets, an index into its names."""
        numbers = [
            [names.index(line.labels[name]) for name, names in self.label_names.items()]
            for line in self.lines
        ]
        return torch.tensor(numbers, dtype=torch.int64).reshape(len(self), len(self.label_names))

    def rows(self, *splits: CaptionSplit) -> list[int]:
        """Return the rows of some splits."""
        return [row for row, line in enumerate(self.lines) if line.split in splits]

    def take(self, rows: list[int]) -> "Captions":
        """Return some of the lines; the names stay as they are."""
        return dataclasses.replace(self, lines=tuple(self.lines[row] for row in rows))

    def read_images(self, *, image_size_px: int | None = None, channels: int | None = None) -> Tensor:
        """Read the images (N, C, H, W) uint8; see ``read_pictures``.

        Raises: DataError naming a file that can't be used.
        """
        return read_pictures(
            [self.folder / line.file for line in self.lines],
            image_size_px=image_size_px,
            channels=channels,
            title=f"read {self.folder.name}",
        )


@dataclasses.dataclass(frozen=True)
class CaptionedDataset:
    """Captions, and their images (N, C, H, W) uint8 in memory."""

    captions: Captions
    images: Tensor

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def lines(self) -> tuple[CaptionLine, ...]:
        return self.captions.lines

    @property
    def labels(self) -> Tensor:
        """(N, K) int64: see ``Captions``."""
        return self.captions.labels

    def where(self, *splits: CaptionSplit) -> "CaptionedDataset":
        """Return the images of some splits; the names stay as they are."""
        rows = self.captions.rows(*splits)
        return CaptionedDataset(self.captions.take(rows), self.images[rows])


def is_captioned(folder: Path) -> bool:
    """Whether ``folder`` holds captions beside its images."""
    return (folder / CAPTIONS_FILE).is_file()


def load_captioned(
    folder: Path,
    *,
    image_size_px: int | None = None,
    channels: int | None = None,
    label_names: LabelNames | None = None,
) -> CaptionedDataset:
    """Load the captions and images of all splits; ``label_names`` are those of a pipeline.

    Raises: DataError naming a line or file that can't be used.
    """
    captions = read_captions(folder, label_names)
    return CaptionedDataset(captions, captions.read_images(image_size_px=image_size_px, channels=channels))


def read_captions(folder: Path, label_names: LabelNames | None = None) -> Captions:
    """Read the captions of a folder. Labels are numbered as in ``label_names``, where they are given.

    Raises: DataError naming a line that can't be used.
    """
    path = folder / CAPTIONS_FILE
    reader = TypeAdapter(CaptionLine)
    numbered: list[tuple[int, CaptionLine]] = []
    for number, raw in read_json_lines(path):
        try:
            line = reader.validate_python(raw)
        except ValidationError as error:
            raise DataError(f"{path}, line {number}: {_first_error(error)}") from error
        if line.split is None:
            is_held_out = is_test_file(PurePosixPath(line.file).name)
            line = dataclasses.replace(line, split="held_out" if is_held_out else "train")
        numbered.append((number, line))
    if not numbered:
        raise DataError(f"{path} holds no caption")
    names = label_names if label_names is not None else read_info(folder).labels
    if names is None:
        names = _found_names(line for _, line in numbered)
    for number, line in numbered:
        _check_labels(line, names, f"{path}, line {number}")
    return Captions(folder, tuple(line for _, line in numbered), names)


def read_info(folder: Path) -> DatasetInfo:
    """Read ``dataset.json``, if there is one.

    Raises: DataError.
    """
    path = folder / DATASET_FILE
    if not path.is_file():
        return DatasetInfo()
    try:
        return TypeAdapter(DatasetInfo).validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: {_first_error(error)}") from error


def read_json_lines(path: Path) -> list[tuple[int, Any]]:
    """Return the values of a JSON Lines file with their line numbers; blank lines are left out.

    Raises: DataError.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-8: {error}") from error
    values = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(), which cuts inside strings
        if line.strip():
            try:
                values.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} is not valid JSON: {error}") from error
    return values


def _found_names(lines: Iterable[CaptionLine]) -> LabelNames:
    """Return the names of the labels that occur, sorted within each set."""
    found: dict[str, set[str]] = {}
    for line in lines:
        for name, label in line.labels.items():
            found.setdefault(name, set()).add(label)
    return {name: tuple(sorted(labels)) for name, labels in found.items()}


def _check_labels(line: CaptionLine, names: LabelNames, place: str) -> None:
    if set(line.labels) != set(names):
        raise DataError(
            f"{place}: labels: expected one of each set ({', '.join(names) or 'none'}),"
            f" got {', '.join(line.labels) or 'none'}"
        )
    for name, label in line.labels.items():
        if label not in names[name]:
            raise DataError(f"{place}: labels.{name}: known are {', '.join(names[name])}, got {label!r}")


def _first_error(error: ValidationError) -> str:
    """Return what is wrong in one line."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'value'}: {first['msg']}, got {first['input']!r:.80}"
