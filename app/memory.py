"""Give memory back to the system once it is free."""

import asyncio
import ctypes
import gc

# Of <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE_BYTES = 256 * 2**10
_NUM_ARENAS = 2
_PAUSE_S = 1.0


def return_freed_memory() -> None:
    """Let the C library return what is large as soon as it is freed; without glibc, leave it as it is.

    Glibc would keep it: it raises the size from which a block has pages of its own, up to 32 MiB, when such
    blocks are freed, and gives each thread a heap of its own that shrinks at its end alone. To be called
    before there are threads.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_ARENA_MAX, _NUM_ARENAS)
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)


class Trimmer:
    """Returns what is free between what is in use, a second after it is told that there may be much.

    Bodies that were refused are held by the cycles of their exceptions, until these are collected.
    """

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        self._timer: asyncio.TimerHandle | None = None

    def trim_soon(self) -> None:
        """Return free memory in a second, once for all that ask until then."""
        if self._trim is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE_S, self._run)

    def _run(self) -> None:
        self._timer = None
        assert self._trim is not None
        gc.collect()
        self._trim(0)  # milliseconds
