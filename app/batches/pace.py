"""How fast rows become jobs: how many may wait in the queue, and when to try again what failed."""

import asyncio

_MIN_PLACES = 8
_MAX_BACKOFF_S = 5.0
_ASSURED_SHARE = 1 / 32


class Backoff:
    """When to try again what failed, later each time, but no more than ``max_wait_s`` later."""

    def __init__(self, max_wait_s: float = _MAX_BACKOFF_S) -> None:
        self._max_wait_s, self._wait_s, self._until = max_wait_s, 0.0, 0.0

    @property
    def is_over(self) -> bool:
        return asyncio.get_running_loop().time() >= self._until

    def failed(self) -> None:
        """Wait, longer than the last time."""
        if not self.is_over:
            return  # of several that fail at once, one counts
        self._wait_s = min(max(2 * self._wait_s, 0.1), self._max_wait_s)
        self._until = asyncio.get_running_loop().time() + self._wait_s

    def succeeded(self) -> None:
        """Begin with a short wait the next time."""
        self._wait_s = 0.0


class Places:
    """How many rows may wait in the queue.

    As many wait as run, so that whoever ends its jobs finds others, and more where all were taken since the
    last look. Not more than that: the fewer wait, the sooner another batch has its turn.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._number: float = _MIN_PLACES

    def num_free(self, num_waiting: int, num_running: int) -> int:
        """Return how many rows more may wait; to be asked at every look."""
        if not num_waiting:
            self._number = min(2 * self._number, self._most)
        elif 2 * num_waiting > self._number:
            self._number *= 0.98
        self._number = max(_MIN_PLACES, self._number)
        return max(0, min(self._most, max(int(self._number), num_running)) - num_waiting)


def assured_places(queue_length: int) -> int:
    """Return how many rows may wait in the queue though others fill it, or no batch would ever go on."""
    return max(1, int(_ASSURED_SHARE * queue_length))
