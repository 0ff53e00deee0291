"""Waits that grow while something fails."""

import time

FIRST_WAIT_S = 0.02
MAX_WAIT_S = 1.0


class Backoff:
    """Waits longer each time, until it is reset."""

    def __init__(self) -> None:
        self._wait_s = FIRST_WAIT_S

    def reset(self) -> None:
        self._wait_s = FIRST_WAIT_S

    def wait(self) -> None:
        time.sleep(self._wait_s)
        self._wait_s = min(2 * self._wait_s, MAX_WAIT_S)
