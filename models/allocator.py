"""The C library's allocator, told to keep what a step of the model gives back for the next one."""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
_KEPT = 2**31 - 1  # bytes at the top of a heap before any go back to the system
_MAPPED = 2**25  # bytes from which on a tensor gets pages of its own; glibc takes no more


def keep_freed_memory() -> None:
    """Let memory that tensors free stay with the process, where the C library is glibc.

    Otherwise every step's tensors go back to the system and are asked for again, page by page: 100,000
    page faults a second and a seventh of the speed, measured in two lanes; half of the time where a virtual
    machine's pages are dear. Workers and trainings do the same work all their lives, so what they keep is
    what they will need.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (
            (_TRIM_THRESHOLD, _KEPT),
            (_TOP_PAD, _MAPPED),
            (_MMAP_THRESHOLD, _MAPPED),
        ):
            mallopt(parameter, value)


def give_back_freed_memory() -> None:
    """Give memory back to the system that is free by now, as after a pipeline has gone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
