"""PyArrow, which only folders of codes need: the extra "bulk"."""

from typing import Any

from bulk.errors import BulkError


def pyarrow() -> Any:
    """Return the package, with its part for parquet loaded.

    Raises: BulkError when it isn't installed.
    """
    try:
        import pyarrow as module
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise BulkError(
            "folders of codes need PyArrow, which isn't installed: pip install 'smalti[bulk]'"
        ) from error
    return module
