"""Pictures in a column of a parquet file, read group by group as they are asked for."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from bulk.arrow import pyarrow
from bulk.items import File
from models.media.base import InvalidMedia

_ROWS_AT_ONCE = 16


class ParquetRows:
    """The rows of a column of pictures: bytes, or as Hugging Face's data sets have them, a struct with bytes.

    column: None takes the only one that can be.

    Raises: InvalidMedia when the file can't be read, or no column can be meant, or several.
    """

    def __init__(self, file: File, column: str | None) -> None:
        arrow = pyarrow()
        self._opened = file.open()
        try:
            self._file = arrow.parquet.ParquetFile(self._opened)
            self._column = _column_of_pictures(self._file.schema_arrow, column)
        except (arrow.ArrowException, OSError) as error:
            self._opened.close()
            raise InvalidMedia("the parquet file is broken, or can't be read") from error
        except BaseException:
            self._opened.close()
            raise
        metadata = self._file.metadata
        self.num_rows: int = metadata.num_rows
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = list(accumulate(sizes, initial=0))  # of groups, and behind the last
        self._group = -1
        self._batches: Iterator[Any] = iter(())
        self._first = 0
        self._values: list[Any] = []  # of the batch at hand, from row _first on

    def __enter__(self) -> "ParquetRows":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._opened.close()

    def read(self, row: int) -> bytes:
        """Return a picture's bytes; quick where rows are asked for in order.

        Raises: InvalidMedia.
        """
        arrow = pyarrow()
        try:
            value = self._value(row)
        except (arrow.ArrowException, OSError, StopIteration) as error:
            self._group = -1
            raise InvalidMedia("the parquet file is broken here") from error
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            raise InvalidMedia("is null")
        return bytes(value)

    def _value(self, row: int) -> Any:
        group = bisect_right(self._starts, row) - 1  # of several that begin here, the one that isn't empty
        if group != self._group or row < self._first:
            self._batches = self._file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[self._column])
            self._group, self._first, self._values = group, self._starts[group], []
        while row >= self._first + len(self._values):
            self._first += len(self._values)
            self._values = next(self._batches).column(0).to_pylist()
        return self._values[row - self._first]


def _column_of_pictures(schema: Any, asked: str | None) -> str:
    """Return the name of the column.

    Raises: InvalidMedia.
    """
    found = [field.name for field in schema if _holds_bytes(field.type)]
    if asked is not None:
        found = [name for name in found if name == asked]
    if len(found) == 1:
        return str(found[0])
    those = f"has these: {', '.join(schema.names)}"
    if asked is not None:
        raise InvalidMedia(f"has no column of bytes {asked}, which --column names; it {those}")
    if found:
        raise InvalidMedia(f"pictures may be in {' or '.join(found)}; say which with --column")
    raise InvalidMedia(f"no column holds bytes, or structs with bytes; it {those}")


def _holds_bytes(kind: Any) -> bool:
    types = pyarrow().types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))
