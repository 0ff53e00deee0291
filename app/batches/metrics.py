"""Metrics of batches for Prometheus."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily

from app.batches.records import BatchRecord, BatchStatus
from app.metrics import PREFIX


def batch_families(unfinished: Sequence[BatchRecord]) -> Iterator[GaugeMetricFamily]:
    """Yield metrics of the batches that have not ended."""
    batches = GaugeMetricFamily(f"{PREFIX}_batches", "Batches that have not ended.", labels=["status"])
    for status in (BatchStatus.QUEUED, BatchStatus.RUNNING):
        batches.add_metric([status], sum(record.status == status for record in unfinished))
    rows = GaugeMetricFamily(
        f"{PREFIX}_batch_rows", "Rows of these batches that have not.", labels=["status"]
    )
    rows.add_metric(["queued"], sum(record.num_queued for record in unfinished))
    rows.add_metric(["running"], sum(record.num_running for record in unfinished))
    yield from (batches, rows)
