"""The memory of the API, as a process of its own, in the worst that it admits and afterwards."""

import secrets

import pytest

from benchmarks.door import (
    LARGEST_FILE_BYTES,
    MIB,
    large_picture,
    measure,
    measure_left_open,
    memory_bytes,
    serving,
)

MAX_GROWTH = 1.5
# 128 MiB of bodies are admitted; a JSON body is held as chunks, as one, as text, and decoded, and decoders run.
MAX_PEAK_BYTES = 704 * MIB


@pytest.mark.ci
def test_memory_in_bursts_is_bounded_and_goes_back():
    with serving(SMALTI_BODY_TIMEOUT_S="2") as (client, pid):
        at_start = memory_bytes(pid)

        burst = measure_left_open(client, pid, 5 * MIB, num_clients=100)
        assert set(burst.statuses) <= {408, 503, 0}
        assert burst.statuses[408] >= 20  # as many as there is room for
        assert burst.peak_bytes < 350 * MIB
        assert burst.after_bytes < MAX_GROWTH * at_start

        for is_form in (True, False):
            content = secrets.token_bytes(LARGEST_FILE_BYTES)
            burst = measure(client, pid, content, is_form=is_form, num_clients=64)
            assert burst.statuses[422] >= 5
            assert set(burst.statuses) <= {422, 503, 0}
            assert burst.peak_bytes < MAX_PEAK_BYTES
            assert burst.after_bytes < MAX_GROWTH * at_start

        burst = measure(client, pid, large_picture(), is_form=True, num_clients=8)
        assert burst.statuses == {202: 8}
        assert burst.peak_bytes < MAX_PEAK_BYTES
        assert burst.after_bytes < MAX_GROWTH * at_start
