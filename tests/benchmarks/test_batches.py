"""The benchmark of batches, small: that it measures, and not how fast."""

import httpx
import pytest

from benchmarks.batches import measure
from tests.app.test_up import needs_proc, service
from tests.waiting import wait_until


@pytest.mark.ci
@needs_proc
def test_a_batch_is_measured_alone_and_beside_requests(tmp_path, tiny_weights):
    with service(tmp_path, tiny_weights) as (_, url, _), httpx.Client(base_url=url, timeout=60) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200, 60)
        figures = measure(client, "tiny", num_rows=100, every_s=0.1, num_idle=2)
    assert (figures["rows"], figures["idle_requests"]) == (100, 4)
    assert figures["beside_requests"] >= 1
    assert figures["batch_alone_rows_per_s"] > 0
    assert figures["rate_kept"] == pytest.approx(
        figures["batch_beside_rows_per_s"] / figures["batch_alone_rows_per_s"], abs=0.05
    )
