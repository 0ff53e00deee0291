"""A lock on a run's folder, so that two processes never train in one."""

import fcntl
import os
from pathlib import Path

from training.config_file import TrainingError


def hold(folder: Path) -> int:
    """Return a file descriptor that holds the folder's lock until it is closed, or the process ends.

    Raises: TrainingError when another process holds it; OSError when nothing can be written there.
    """
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 20).decode("ascii", "replace").strip()
        os.close(lock)
        raise TrainingError(
            f"{folder} is being trained in by another process ({holder or 'of unknown number'}):"
            " wait for its end, or take another folder"
        ) from None
    except OSError:  # a file system without locks
        return lock
    os.truncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock
