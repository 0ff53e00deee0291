"""Arrays as NumPy's files (``.npy``): how latents, and codes where they are asked for so, cross the wire."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.media.base import Array
from workers.errors import InvalidLatents

NPY_MEDIA_TYPE = "application/x-npy"
_MAX_HEADER_BYTES = 1024  # of text that is parsed
_FLOAT = np.dtype("<f4")


def npy_bytes(array: Array) -> bytes:
    """Return an array as a file; the same array gives the same bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_latents(data: bytes, shape: Sequence[int], max_samples: int, where: str = "latents") -> Array:
    """Return the latents (B, *shape) float32 of a file that has them: one sample's, or several.

    Nothing of it is unpickled, and nothing but its header is read where that says something else.

    Raises: InvalidLatents saying what it is instead.
    """
    found, dtype, start = _header(data, where)
    wanted = " x ".join(map(str, shape))
    if dtype != _FLOAT:
        raise InvalidLatents(f"{where}: must be little-endian float32 ('<f4'), got {dtype.str!r:.20}")
    if tuple(found) == tuple(shape):
        found = (1, *found)
    if tuple(found[1:]) != tuple(shape) or not 1 <= found[0] <= max_samples:
        got = " x ".join(map(str, found))[:60]
        raise InvalidLatents(
            f"{where}: must be {wanted}, or N x {wanted} with N from 1 to {max_samples}; got"
            f" {got or 'a number'}"
        )
    num_bytes = math.prod(found) * _FLOAT.itemsize
    if len(data) - start != num_bytes:
        raise InvalidLatents(f"{where}: has {len(data) - start} bytes of data, its header says {num_bytes}")
    array = np.frombuffer(data, _FLOAT, offset=start).reshape(found)
    for index, sample in enumerate(array):
        if not np.isfinite(sample).all():
            raise InvalidLatents(
                f"{where}[{index}]: is not finite: it holds NaN or infinity, as that of a sample that failed;"
                " leave it out"
            )
    return array


def codes_array(codes: Sequence[Any], codebook_size: int) -> Array:
    """Return codes as an array of the smallest type that their codebook fits: uint16 or uint32."""
    return np.asarray(codes, "<u2" if codebook_size <= 2**16 else "<u4")


def _header(data: bytes, where: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, type and where the data begins.

    Raises: InvalidLatents.
    """
    buffer = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(buffer)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = reader(buffer, max_header_size=_MAX_HEADER_BYTES)
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise InvalidLatents(f"{where}: is not a NumPy file (.npy)") from None
    if any(side < 0 for side in shape):
        raise InvalidLatents(f"{where}: its header has a negative side")
    if is_fortran and len(shape) > 1:
        raise InvalidLatents(
            f"{where}: must be in C order, got Fortran order; save numpy.ascontiguousarray(…)"
        )
    return shape, dtype, buffer.tell()
