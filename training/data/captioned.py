"""A folder of images with captions: ``captions.jsonl`` in it, a JSON object a line.

    {"file": "images/7.png", "caption": "a red cat"}
    {"file": "images/8.png", "caption": ["a dog", "a small brown dog"], "labels": {"style": "ink"},
     "split": "train"}

(each on one line). ``file`` is relative to the folder, and may be a link to a file elsewhere. Of several
captions, training draws one at random each time, and the first is what people are shown. ``labels`` puts the
image into sets of labels; every line has the same sets. ``split`` is "train", "held_out" (kept from training)
or "unseen" (kept from training with all that is like it); without it, about a tenth of the images is held out
by a hash of the file's name, as it is where all images would be on one side (``splits.py``). Other fields are
left alone: what a builder of a data set wants to keep beside an image.

``file_name`` and ``text`` are other names of ``file`` and ``caption``, and ``metadata.jsonl`` of the file: as
Hugging Face's "imagefolder" has them.

An optional ``dataset.json`` gives the order of the labels' names, which are sorted without it, and a kind
that ``smalti evaluate`` may know measures for.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import torch
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from training.data.bad_files import MAX_BAD_SHARE
from training.data.caption_line import IGNORE_OTHERS, CaptionLine, CaptionSplit, first_error
from training.data.choices import say_choices
from training.data.dataset import DataError, check_names
from training.data.json_lines import read_json_lines
from training.data.left_out import say_left_out
from training.data.pictures import read_pictures
from training.data.splits import describe_share, hold_out, is_test_file

logger = logging.getLogger(__name__)

CAPTIONS_FILE = "captions.jsonl"
CAPTIONS_FILES = (CAPTIONS_FILE, "metadata.jsonl")  # the first that there is
DATASET_FILE = "dataset.json"

LabelNames = Mapping[str, tuple[str, ...]]
NOT_TRAIN: tuple[CaptionSplit, ...] = ("held_out", "unseen")


@dataclass(frozen=True, config=IGNORE_OTHERS)
class DatasetInfo:
    """The contents of ``dataset.json``: names of labels by set, in order, and what kind of data set it is."""

    kind: str | None = None
    labels: LabelNames | None = None


@dataclasses.dataclass(frozen=True)
class Captions:
    """The lines of a folder, each with its split, and the names of its sets of labels.

    notes: what people should know of how the lines were read, a sentence each.
    """

    folder: Path
    lines: tuple[CaptionLine, ...]
    label_names: LabelNames
    notes: tuple[str, ...] = ()

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

    @property
    def files(self) -> list[Path]:
        """The image of each line."""
        return [self.folder / line.file for line in self.lines]

    def say(self, *, image_size_px: int | None, channels: int | None) -> None:
        """Tell people how many images there are, and what was chosen for them."""
        sides = f"{len(self.rows('train'))} to train on, {len(self.rows(*NOT_TRAIN))} kept from training"
        logger.info("%s: %d captioned pictures, %s", self.folder, len(self), sides)
        for note in self.notes:
            logger.info("%s: %s", self.folder, note)
        say_left_out(self.folder, set(self.files), "pictures that no line names")
        say_choices(self.folder, self.files, image_size_px=image_size_px, channels=channels)

    def read_images(
        self,
        *,
        image_size_px: int | None = None,
        channels: int | None = None,
        max_bad_share: float = MAX_BAD_SHARE,
    ) -> "CaptionedDataset":
        """Read the images; lines whose image can't be used are left out: see ``read_pictures``.

        Raises: DataError naming files that can't be used.
        """
        pictures = read_pictures(
            self.files,
            image_size_px=image_size_px,
            channels=channels,
            title=f"read {self.folder.name}",
            max_bad_share=max_bad_share,
        )
        return CaptionedDataset(self.take(pictures.rows), pictures.images)


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
    return _captions_file(folder) is not None


def _captions_file(folder: Path) -> Path | None:
    """Return the file of captions, if there is one; ``metadata.jsonl`` may as well hold something else."""
    for path in (folder / name for name in CAPTIONS_FILES):
        if path.is_file() and (path.name == CAPTIONS_FILE or _begins_with_a_caption(path)):
            return path
    return None


def _begins_with_a_caption(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1 << 20).split(b"\n")[0]
    return b'"file' in start and (b'"text"' in start or b'"caption"' in start)


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
    captions.say(image_size_px=image_size_px, channels=channels)
    return captions.read_images(image_size_px=image_size_px, channels=channels)


def read_captions(folder: Path, label_names: LabelNames | None = None) -> Captions:
    """Read the captions of a folder. Labels are numbered as in ``label_names``, where they are given.

    Raises: DataError naming a line that can't be used.
    """
    path = _captions_file(folder) or folder / CAPTIONS_FILE
    reader = TypeAdapter(CaptionLine)
    numbered: list[tuple[int, CaptionLine]] = []
    for number, raw in read_json_lines(path):
        try:
            numbered.append((number, reader.validate_python(raw)))
        except ValidationError as error:
            raise DataError(f"{path}, line {number}: {first_error(error)}") from error
    if not numbered:
        raise DataError(f"{path} holds no caption")
    _check_files(folder, path, numbered)
    names = label_names if label_names is not None else read_info(folder).labels
    if names is None:
        names = _found_names(line for _, line in numbered)
        for name, labels in names.items():
            check_names(f"{path}: labels.{name}", labels)
    for number, line in numbered:
        _check_labels(line, names, f"{path}, line {number}")
    lines, notes = _split([line for _, line in numbered])
    return Captions(folder, lines, names, notes + _describe_copies(numbered))


def _check_files(folder: Path, path: Path, numbered: list[tuple[int, CaptionLine]]) -> None:
    """Find what is missing before anything is read. A device or a pipe is not a file."""
    missing = [
        (number, folder / line.file) for number, line in numbered if not (folder / line.file).is_file()
    ]
    if missing:
        number, file = missing[0]
        reason = "not a file" if file.exists() else "No such file"
        more = f", as are the files of {len(missing) - 1} other lines" if len(missing) > 1 else ""
        raise DataError(f"{path}, line {number}: file: {file} can't be read: {reason}{more}")


def _split(lines: list[CaptionLine]) -> tuple[tuple[CaptionLine, ...], tuple[str, ...]]:
    """Return the lines, each with a split, and what to say of it.

    Lines that give none are split by a hash; so are all, where training or measuring would have none.
    """
    files = [PurePosixPath(line.file) for line in lines]
    splits = [
        line.split or _split_of(is_test_file(file.name)) for line, file in zip(lines, files, strict=True)
    ]
    chosen = [split for split, line in zip(splits, lines, strict=True) if line.split is None]
    reason = 'their lines have no "split"'
    if len({split == "train" for split in splits}) < 2:
        if not chosen:
            missing = "held_out" if splits[0] == "train" else "train"
            reason = f'no line has the split "{missing}"'
        splits = chosen = [_split_of(is_held_out) for is_held_out in hold_out(files)]
    lines = [dataclasses.replace(line, split=split) for line, split in zip(lines, splits, strict=True)]
    is_told = len(set(chosen)) > 1
    notes = (describe_share([split != "train" for split in chosen], reason),) if is_told else ()
    return tuple(lines), notes


def _split_of(is_held_out: bool) -> CaptionSplit:
    return "held_out" if is_held_out else "train"


def _describe_copies(numbered: list[tuple[int, CaptionLine]]) -> tuple[str, ...]:
    """Return what to say of files that stand on several lines, if there are any."""
    first: dict[PurePosixPath, int] = {}
    copies = [
        (number, line.file, before)
        for number, line in numbered
        if (before := first.setdefault(PurePosixPath(line.file), number)) != number
    ]
    if not copies:
        return ()
    number, file, before = copies[0]
    return (
        f"{len(copies)} lines name a file that an earlier line names, and count as pictures of their own"
        f" ({file} on lines {before} and {number}): several captions may stand in one line",
    )


def read_info(folder: Path) -> DatasetInfo:
    """Read ``dataset.json``, if there is one.

    Raises: DataError.
    """
    path = folder / DATASET_FILE
    if not path.is_file():
        return DatasetInfo()
    try:
        return TypeAdapter(DatasetInfo).validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except ValidationError as error:
        raise DataError(f"{path}: {first_error(error)}") from error


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
