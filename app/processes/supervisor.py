"""Keep a set of processes running together: started in order, started again when they die, ended whole."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from app.cli.terminal import say

GRACE_S = 30.0
_TICK_S = 0.1
_ECHO_S = 0.5  # make and the terminal may both send the same Ctrl-C
_MAX_BACKOFF_S = 30.0
_REASON_FD = "SUPERVISOR_REASON_FD"  # where a child may write why it ends
_MAX_REASON_BYTES = 4096  # no more than any pipe holds
_STEADY_S = 60.0  # a process that lived this long starts again with the shortest pause


class CannotStart(Exception):
    """A process ended, or took too long, before it was ready for the first time."""


@dataclass(frozen=True)
class Child:
    """A process to keep running.

    ``is_ready`` is called again and again until it first returns true. A child that ends before that can't
    start, and takes the others with it; one that ends later is started again.
    """

    name: str
    command: tuple[str, ...]
    is_ready: Callable[[], bool] = lambda: True
    environment: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    start_timeout_s: float = 300.0


@dataclass
class _Slot:
    """A child and the process that runs it at the moment."""

    child: Child
    process: subprocess.Popen[bytes] | None = None
    reason: int = -1  # the end of a pipe, while there is a process
    started_at: float = 0.0
    starts_at: float = 0.0
    was_ready: bool = False
    num_deaths: int = 0


@dataclass(frozen=True)
class _Stage:
    """Slots that start together; their processes end when no process holds ``life`` open any more."""

    slots: list[_Slot]
    stdin: int
    life: int


class Supervisor:
    """Runs stages of children until a signal comes or one of them can't start.

    A stage starts when the one before it is ready and ends before it. Each child heads a process group
    of its own, so that Ctrl-C reaches the supervisor alone, which then lets the children finish what
    they have in hand. Its standard input is a pipe that closes with the supervisor, however that dies,
    and with every later stage: a child that calls ``end_with_stdin`` is never left behind.
    """

    def __init__(
        self, stages: Sequence[Sequence[Child]], *, grace_s: float = GRACE_S, backoff_s: float = 1.0
    ) -> None:
        self._children = stages
        self._grace_s = grace_s
        self._backoff_s = backoff_s
        self._stages: list[_Stage] = []
        self._stop_requested_at: float | None = None
        self._must_hurry = False

    def run(self, on_ready: Callable[[], None], on_stop: Callable[[], None] = lambda: None) -> int:
        """Return the exit status: 0 after a signal, 1 when a child could not start.

        ``on_ready`` is called once, ``on_stop`` before the first child is told to end.
        """
        with self._signals():
            try:
                for children in self._children:
                    self._start(children)
                if self._stop_requested_at is None:
                    on_ready()
                while self._stop_requested_at is None:
                    time.sleep(_TICK_S)
                    self._check_children()
            except CannotStart as error:
                say(str(error), logging.ERROR)
                return 1
            finally:
                on_stop()
                self._end()
        return 0

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def handle(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if self._stop_requested_at is None:
                self._stop_requested_at = now
            elif now - self._stop_requested_at > _ECHO_S:
                self._must_hurry = True

        numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN  # nohup
        ]
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, children: Sequence[Child]) -> None:
        """Start a stage, and return when all of it is ready or a stop is requested."""
        stdin, life = os.pipe()
        stage = _Stage([_Slot(child) for child in children], stdin, life)
        self._stages.append(stage)
        while self._stop_requested_at is None:
            self._check_children()
            if all(slot.was_ready for slot in stage.slots):
                return
            time.sleep(_TICK_S)

    def _check_children(self) -> None:
        """Start what is due, note what has become ready, and plan the restart of what has died."""
        for index, stage in enumerate(self._stages):
            earlier_lives = tuple(earlier.life for earlier in self._stages[:index])
            for slot in stage.slots:
                now = time.monotonic()
                if slot.process is None:
                    if now >= slot.starts_at:
                        _spawn(slot, stage.stdin, earlier_lives)
                elif (status := slot.process.poll()) is not None:
                    self._note_death(slot, status)
                elif not slot.was_ready:
                    slot.was_ready = slot.child.is_ready()
                    if not slot.was_ready and now - slot.started_at > slot.child.start_timeout_s:
                        raise CannotStart(
                            f"{slot.child.name} is not ready after {slot.child.start_timeout_s:.0f} s"
                        )

    def _note_death(self, slot: _Slot, status: int) -> None:
        assert slot.process is not None
        _kill_group(slot.process)
        slot.process = None
        reason = _read_reason(slot)
        if not slot.was_ready:
            raise CannotStart(f"{slot.child.name} could not start: {reason or f'it {_ending(status)}'}")
        lived_s = time.monotonic() - slot.started_at
        slot.num_deaths = 1 if lived_s > _STEADY_S else slot.num_deaths + 1
        pause_s = min(self._backoff_s * 2 ** (slot.num_deaths - 1), _MAX_BACKOFF_S)
        slot.starts_at = time.monotonic() + pause_s
        because = f", because {reason}" if reason else ""
        say(
            f"{slot.child.name} {_ending(status)}{because}; starting it again in {pause_s:.3g} s",
            logging.WARNING,
        )

    def _end(self) -> None:
        """End the stages, the last one first: ask, wait for the grace period, then kill."""
        if any(slot.process for stage in self._stages for slot in stage.slots):
            say("stopping; once more stops at once")
        for stage in reversed(self._stages):
            running = [slot for slot in stage.slots if slot.process is not None]
            for slot in running:
                assert slot.process is not None
                slot.process.terminate()
            ends_at = time.monotonic() + self._grace_s
            while any(slot.process and slot.process.poll() is None for slot in running):
                if self._must_hurry or time.monotonic() > ends_at:
                    break
                time.sleep(_TICK_S / 4)
            for slot in running:
                assert slot.process is not None
                if slot.process.poll() is None:
                    say(f"{slot.child.name} is still at work: killing it")
                _kill_group(slot.process)
                slot.process.wait()
                os.close(slot.reason)
            os.close(stage.stdin)
            os.close(stage.life)


def _spawn(slot: _Slot, stdin: int, earlier_lives: tuple[int, ...]) -> None:
    child = slot.child
    slot.reason, reason = os.pipe()
    os.set_blocking(slot.reason, False)
    try:
        slot.process = subprocess.Popen(
            child.command,
            stdin=stdin,
            stdout=sys.stderr.fileno(),  # standard output is for results
            env={**os.environ, **child.environment, _REASON_FD: str(reason)},
            pass_fds=(*child.pass_fds, *earlier_lives, reason),
            start_new_session=True,
        )
    except OSError as error:
        os.close(slot.reason)
        raise CannotStart(f"{child.name} could not start: {error}") from error
    finally:
        os.close(reason)
    slot.started_at = time.monotonic()


def _read_reason(slot: _Slot) -> str:
    """Return what a process that has ended told of why, and close the pipe."""
    try:
        return os.read(slot.reason, _MAX_REASON_BYTES).decode(errors="replace")
    except BlockingIOError:  # nothing
        return ""
    finally:
        os.close(slot.reason)


def tell_reason(reason: str) -> bool:
    """Tell the supervisor why this process ends; say whether there is one."""
    try:
        os.write(int(os.environ[_REASON_FD]), reason.encode()[:_MAX_REASON_BYTES])
    except (KeyError, ValueError, OSError):
        return False
    return True


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a child's process group, its own children included."""
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(process.pid, signal.SIGKILL)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    hint = ", perhaps because memory ran out" if -status == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-status).name}{hint}"


def end_with_stdin(grace_s: float = GRACE_S) -> None:
    """End this process, and its group, when its standard input closes: a supervisor's end of the bargain.

    It gets SIGTERM as from the supervisor, and ``grace_s`` to finish.
    """

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-stdin", daemon=True).start()
