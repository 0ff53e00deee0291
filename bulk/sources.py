"""Where pictures come from: folders, patterns, files, tars and parquet, as one sorted stream of items.

The stream is a pure function of what the sources hold: ids are paths relative to the folder that all sources
share, and sorted, so that machines with the same sources see the same rows.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bulk.errors import BulkError
from bulk.items import File, Item, check_size, picture_of, unusable
from bulk.local_files import LocalFiles
from bulk.parquet_rows import ParquetRows
from bulk.remote_files import RemoteFiles, is_address, without_scheme
from bulk.suffixes import PARQUET_SUFFIX, TAKEN_SUFFIXES, is_taken, is_tar
from bulk.tars import in_tar
from models.media.base import InvalidMedia

_MAX_PROBLEMS_KEPT = 20


@dataclass(frozen=True)
class Listing:
    """How many items there are, a digest of their ids and sizes, and how many other files.

    problems: of whole files that can't be used, the first of ``num_problems``: each is one of the items.
    """

    num_items: int
    digest: str
    num_others: int
    num_problems: int = 0
    problems: tuple[str, ...] = ()


class Sources:
    """The sources that a person named.

    column: of parquet files, where several hold pictures. excluded: a folder that is passed over.

    Raises: BulkError when one is not there, or can't be used.
    """

    def __init__(
        self, given: Sequence[str], *, column: str | None = None, excluded: Path | None = None
    ) -> None:
        self.column = column
        self._files: LocalFiles | RemoteFiles
        if not any(map(is_address, given)):
            self._files = LocalFiles(list(map(without_scheme, given)), is_taken, excluded)
        elif all(map(is_address, given)):
            self._files = RemoteFiles(given, is_taken)
        else:
            raise BulkError("some sources are here and some elsewhere: encode them one after the other")
        self.listing: Listing | None = None  # what ``list`` returned last
        self._marks: dict[int, bytes] = {}  # digests of the first so many items, when they were listed

    def list(self, mark_every: int = 8192) -> Listing:
        """Walk over everything once, without reading pictures.

        mark_every: after so many items each time, ``walk_unchanged`` looks whether they are the same.

        Raises: BulkError when there is no picture.
        """
        digest, num_items, num_problems = hashlib.sha256(), 0, 0
        problems: list[str] = []
        for item in self.walk():
            num_items += 1
            digest.update(item.identity)
            if num_items % mark_every == 0:
                self._marks[num_items] = digest.digest()
            if item.problem is not None:
                num_problems += 1
                if len(problems) < _MAX_PROBLEMS_KEPT:
                    problems.append(f"{item.id}: {item.problem}")
        self._marks[num_items] = digest.digest()
        if num_items == num_problems:
            if problems:
                raise BulkError(f"the sources hold no picture that can be used; {problems[0]}")
            raise BulkError(
                f"the sources hold no file that is taken ({', '.join(TAKEN_SUFFIXES)}),"
                f" and {self._files.num_others} others"
            )
        self.listing = Listing(
            num_items, digest.hexdigest(), self._files.num_others, num_problems, tuple(problems)
        )
        return self.listing

    def walk_unchanged(self) -> Iterator[Item]:
        """Yield all items as ``walk`` does, and the last before each mark only if all were there in ``list``.

        Raises: BulkError when they are others.
        """
        digest = hashlib.sha256()
        for number, item in enumerate(self.walk(), 1):
            digest.update(item.identity)
            mark = self._marks.get(number)
            if mark is not None and mark != digest.digest():
                raise BulkError(
                    "the sources changed while they were encoded: start again, when they are at rest"
                )
            yield item

    def walk(self) -> Iterator[Item]:
        """Yield all items in order; what is not read costs little."""
        for file in self._files.walk():
            if file.problem is not None:
                yield unusable(file.id, file.problem)
            elif is_tar(file.id):
                yield from in_tar(file)
            elif file.id.lower().endswith(PARQUET_SUFFIX):
                yield from _in_parquet(file, self.column)
            else:
                yield picture_of(file)


def _in_parquet(file: File, column: str | None) -> Iterator[Item]:
    """Yield the rows of a parquet file; of one that can't be used, an item that says so."""
    try:
        rows = ParquetRows(file, column)
    except InvalidMedia as error:
        yield unusable(f"{file.id}#", str(error))
        return
    with rows:
        for row in range(rows.num_rows):
            yield Item(f"{file.id}#{row}", file.num_bytes or 0, _row_reader(rows, row))


def _row_reader(rows: ParquetRows, row: int) -> Callable[[], bytes]:
    def read() -> bytes:
        data = rows.read(row)
        check_size(len(data))
        return data

    return read
