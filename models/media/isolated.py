"""A process of its own that decodes foreign files: light, bounded in time and memory, and ended at will.

Decoders are C code that works on whatever a stranger sent. What goes on too long, takes too much memory, or
crashes costs that file, and nothing else. The child imports what the functions need that it is asked to call:
for pictures that is NumPy and Pillow, not torch. It ends with its parent, however that ends.
"""

import contextlib
import json
import os
import pickle
import queue
import resource
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from models.media.base import Array, InvalidMedia

Call = tuple[Callable[..., Array], tuple[Any, ...]]

_LENGTH = struct.Struct(">Q")
# The child looks for modules where its parent does, and nowhere else; Ctrl-C is its parent's to handle.
_START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = {path!r};"
    " from models.media.isolated import Limits, serve; serve({limits!r})"
)
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # each thread of it reserves memory
    "MALLOC_MMAP_THRESHOLD_": str(2**20),  # memory of pixels goes back to the system at once
}


@dataclass(frozen=True)
class Limits:
    """What a child may take for each file. niceness: 0 is the parent's.

    cpu_s: of CPU time, since a busy machine is not a file's fault. The largest pictures take 1.5 s.
    """

    cpu_s: float = 10.0
    memory_bytes: int = 768 * 2**20
    niceness: int = 0


class IsolatedProcess:
    """Calls functions on files in a child, which starts when it is needed; for one thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()  # held while the child is started or ended
        self._child: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def results(self, calls: Sequence[Call]) -> Iterator[Array | InvalidMedia]:
        """Yield what each call returned, or why its file can't be used, in their order.

        Raises: RuntimeError when a function fails in another way, the child can't run, or ``end`` was called.
        """
        num_done = 0
        while num_done < len(calls):
            try:
                child = self._started()
                assert child.stdin is not None
                assert child.stdout is not None
                _write(child.stdin, pickle.dumps(calls[num_done:]))
                while num_done < len(calls):
                    result = _read_result(child.stdout)
                    num_done += 1
                    yield result
            except (EOFError, BrokenPipeError, ConnectionResetError):
                yield self._why_it_died()
                num_done += 1
            except BaseException:  # answers on their way would be taken for those of the next calls
                self.stop()
                raise

    def kill(self) -> None:
        """End the child at once, from any thread; the next call starts another."""
        with self._lock:
            if self._child is not None:
                self._child.kill()

    def stop(self) -> None:
        """End a child that has nothing to do, and free its memory; the next call starts another."""
        with self._lock:
            if self._child is not None:
                self._child.kill()
                self._reap()

    def end(self) -> None:
        """End the child for good."""
        self._is_closed = True
        self.stop()

    def _started(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the process that decodes files was ended")
            if self._child is not None and self._child.poll() is not None:
                self._reap()
            if self._child is None:
                code = _START.format(
                    path=[str(Path(each).resolve()) for each in sys.path], limits=self._limits
                )
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-c", code],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=os.environ | _ENVIRONMENT,
                    process_group=0,
                )
            return self._child

    def _reap(self) -> int:
        """Wait for a child that has ended or was killed; return how it ended."""
        assert self._child is not None
        code = self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._child = None
        return code

    def _why_it_died(self) -> InvalidMedia:
        with self._lock:
            if self._is_closed or self._child is None:
                raise RuntimeError("the process that decodes files was ended")
            code = self._reap()
        if code == -signal.SIGPROF:
            return InvalidMedia(f"takes longer than {self._limits.cpu_s:g} s to decode")
        if code >= 0:
            raise RuntimeError(f"the process that decodes files could not go on: exit status {code}")
        return InvalidMedia(f"the decoder crashed on it ({signal.strsignal(-code)})")


def serve(limits: Limits) -> None:
    """Answer a parent's calls until it closes the pipe, or ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    os.nice(limits.niceness)
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, also in the middle of C code
    received: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, received), daemon=True).start()
    while True:
        for function, arguments in pickle.loads(received.get()):
            signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
            head, content = _answer(function, arguments, limits)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _write(answers, json.dumps(head).encode())
            _write(answers, content)


def _receive(requests: BinaryIO, received: "queue.SimpleQueue[bytes]") -> None:
    """Hand on what the parent sends; once it is gone, end this process in the midst of whatever it does."""
    try:
        while True:
            received.put(_read(requests))
    except EOFError:
        os._exit(0)


def _answer(
    function: Callable[..., Array], arguments: tuple[Any, ...], limits: Limits
) -> tuple[dict[str, Any], bytes]:
    try:
        array = function(*arguments)
        return {"dtype": array.dtype.str, "shape": array.shape}, np.ascontiguousarray(array).tobytes()
    except InvalidMedia as error:
        return {"invalid": str(error)}, b""
    except MemoryError:
        return {"invalid": f"needs more than {limits.memory_bytes // 2**20} MiB of memory to decode"}, b""
    except Exception:  # the parent logs it, as if it had happened there
        return {"failed": traceback.format_exc()}, b""


def _read_result(answers: Any) -> Array | InvalidMedia:
    """Read an answer: as data, never as a pickle, since a file might have taken the child over.

    Raises: EOFError when the child has ended; RuntimeError with its traceback.
    """
    head, content = json.loads(_read(answers)), _read(answers)
    if "failed" in head:
        raise RuntimeError(f"in the process that decodes files: {head['failed']}")
    if "invalid" in head:
        return InvalidMedia(head["invalid"])
    return np.frombuffer(content, np.dtype(head["dtype"])).reshape(head["shape"])


def _write(pipe: Any, content: bytes) -> None:
    pipe.write(_LENGTH.pack(len(content)))
    pipe.write(content)
    pipe.flush()


def _read(pipe: Any) -> bytes:
    """Return one message.

    Raises: EOFError.
    """
    length = pipe.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        raise EOFError
    (num_bytes,) = _LENGTH.unpack(length)
    content: bytes = pipe.read(num_bytes)
    if len(content) < num_bytes:
        raise EOFError
    return content
