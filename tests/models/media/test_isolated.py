"""Decoding in a process that may be slow, greedy or dead."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.media.base import InvalidMedia
from models.media.image import load_image
from models.media.isolated import IsolatedProcess, Limits
from tests import harmful_decoders as decoders
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]


@pytest.fixture
def process() -> Iterator[IsolatedProcess]:
    process = IsolatedProcess(Limits(cpu_s=0.3, memory_bytes=256 * 2**20))
    yield process
    process.end()


def outcomes(process: IsolatedProcess, *calls) -> list[object]:
    """Return the first number of each result, or what is wrong with the file."""
    results = process.results([(function, arguments) for function, *arguments in calls])
    return [str(each) if isinstance(each, InvalidMedia) else each.flat[0] for each in results]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_harms_the_process_costs_its_own_file_alone(process):
    found = outcomes(
        process,
        (decoders.double, 1),
        (decoders.refuse, "not a picture"),
        (decoders.crash,),
        (decoders.double, 2),
        (decoders.go_on_for_ever,),
        (decoders.double, 3),
        (decoders.take_memory, 2**30),
        (decoders.double, 4),
    )
    assert found == [
        2,
        "not a picture",
        "the decoder crashed on it (Segmentation fault)",
        4,
        "takes longer than 0.3 s to decode",
        6,
        "needs more than 256 MiB of memory to decode",
        8,
    ]


def test_a_mistake_of_ours_is_an_error_with_its_traceback(process):
    with pytest.raises(RuntimeError, match="KeyError: 'a mistake of ours'"):
        outcomes(process, (decoders.fail,))
    assert outcomes(process, (decoders.double, 4)) == [8]


def test_no_answer_of_a_batch_that_was_left_is_taken_for_one_of_the_next(process):
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        outcomes(process, (decoders.fail,), (decoders.double, 1), (decoders.double, 2))
    assert outcomes(process, (decoders.double, 4)) == [8]

    calls = [(decoders.double, (number,)) for number in range(3)]
    left = process.results(calls)
    next(left)
    left.close()
    assert outcomes(process, (decoders.double, 4), (decoders.double, 5)) == [8, 10]


def test_time_that_others_take_is_not_held_against_a_file(process):
    assert outcomes(process, (decoders.sleep, 0.4)) == [0.4]


def test_a_child_knows_no_torch(process):
    assert outcomes(process, (decoders.imported, "numpy"), (decoders.imported, "torch")) == [True, False]


def test_a_killed_child_is_noticed_at_once_and_replaced(process):
    [pid] = outcomes(process, (decoders.tell_pid,))
    threading.Timer(0.1, process.kill).start()
    start = time.monotonic()
    [told] = outcomes(process, (decoders.sleep, 20))
    assert time.monotonic() - start < 5
    assert told.startswith("the decoder crashed")
    [other] = outcomes(process, (decoders.tell_pid,))
    assert other != pid
    assert not is_alive(pid), "and leaves no zombie"


def test_the_same_pixels_come_from_a_child(process):
    slow = decoders.jpeg_of_scans(64, 3)
    arguments = (slow, 16, 16, 3)
    [pixels] = process.results([(load_image, arguments)])
    assert np.array_equal(pixels, load_image(*arguments))
    [cut] = process.results([(load_image, (slow[:60], 16, 16, 3))])
    assert isinstance(cut, InvalidMedia)


def test_a_child_ends_with_its_parent_however_that_ends(tmp_path):
    program = f"""
import sys, threading
sys.path.insert(0, {str(ROOT)!r})
from models.media.isolated import IsolatedProcess, Limits
from tests import harmful_decoders
process = IsolatedProcess(Limits(cpu_s=60))
[pid] = process.results([(harmful_decoders.tell_pid, ())])
print(int(pid[0]), flush=True)
list(process.results([(harmful_decoders.go_on_for_ever, ())]))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(signal.SIGKILL)
        wait_until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    """Say whether a process of somebody else's runs; a zombie doesn't."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
