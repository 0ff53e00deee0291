"""Stopping a run: Ctrl-C and SIGTERM let the step end and a checkpoint be saved."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A run that was asked to stop and has saved a checkpoint; ``status`` is the process's exit status."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.status = 128 + signal_number


class StopRequest:
    """Whether a signal has asked for an end; a second signal ends the process at once."""

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take the signals from now on; only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def signal_number(self) -> int:
        """Return the signal that asked for an end, or 0; for all processes of a run the same."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self._number
        number = torch.tensor(self._number)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._number = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        os.write(2, b"\nsmalti: stopping after this step; once more to stop at once\n")
