"""Which request something is done for: ids that go from the client through the queue to the worker."""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEPT = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})-(0[01]) ([!-~]{1,64})")
_SAMPLED = 1  # the one flag that is passed on


@dataclass(frozen=True)
class Trace:
    """The ids of a request. span_id: of what goes on in this process, the parent of what follows from it.

    is_sampled: whether spans of it are recorded, as far as is known. parent_id: of its client's span.
    """

    request_id: str
    trace_id: str
    span_id: str
    is_sampled: bool = True
    parent_id: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """Return what a job keeps of it."""
        return f"{self.trace_id}-{self.span_id}-0{int(self.is_sampled)} {self.request_id}"


# Of the request that is answered, or whose job is worked on, now.
current_trace: ContextVar[Trace | None] = ContextVar("current_trace", default=None)


def read_trace(text: str | None) -> Trace | None:
    """Return what a job keeps; None where that is nothing, or nothing that can be read."""
    found = _KEPT.fullmatch(text or "")
    return Trace(found[4], found[1], found[2], found[3] == "01") if found else None


def new_trace(request_id: str | None, parent: str | None) -> Trace:
    """Return the ids of a request that comes in, made where it has none.

    parent: its `traceparent` (W3C Trace Context, level 1); one that is not valid counts as none.
    """
    request_id = request_id or _random_id(128)
    found = _TRACEPARENT.fullmatch(parent or "")
    if found is not None and _is_valid(*found.groups()):
        is_sampled = bool(int(found[4], 16) & _SAMPLED)
        return Trace(request_id, found[2], _random_id(64), is_sampled, parent_id=found[3])
    return Trace(request_id, _random_id(128), _random_id(64))


def _random_id(num_bits: int) -> str:
    """Return a number in hexadecimal, which need not be hard to guess, and is made without a system call."""
    return f"{random.getrandbits(num_bits) or 1:0{num_bits // 4}x}"


def _is_valid(version: str, trace_id: str, span_id: str, flags: str, more: str | None) -> bool:
    has_ids = bool(trace_id.strip("0") and span_id.strip("0"))
    return has_ids and version != "ff" and (version != "00" or more is None)


@contextmanager
def working_for(trace: Trace | None) -> Iterator[None]:
    """Do something for a request; what is logged meanwhile has its ids."""
    token = current_trace.set(trace)
    try:
        yield
    finally:
        current_trace.reset(token)
