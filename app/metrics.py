"""Metrics for Prometheus: of this process's requests, of the queue, and of all workers."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.queue import QueueMetrics
from workers.metrics import INFINITY, METRICS, SEPARATOR, Metric

PREFIX = "smalti"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class HttpMetrics:
    """Counts the requests of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            f"{PREFIX}_http_requests",
            "Requests by route and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            f"{PREFIX}_http_request_seconds",
            "From a request to the end of its answer, waiting for a job included.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )


class CountRequests:
    """Middleware that counts requests."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.perf_counter()
        status = "none"  # the client went away before it had an answer

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if route != "none" else "any"
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.seconds.labels(method, route).observe(time.perf_counter() - began_s)


def render(http: HttpMetrics, queue: QueueMetrics | None) -> bytes:
    """Return all metrics as text; those of the queue and the workers only if the queue answers."""
    registry = CollectorRegistry()
    registry.register(_Families(_families(queue)))
    return generate_latest(http.registry) + generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Family]:
        return self._families


def _families(queue: QueueMetrics | None) -> Iterator[Family]:
    yield GaugeMetricFamily(f"{PREFIX}_queue_up", "Whether the queue server answers.", queue is not None)
    if queue is None:
        return
    length = GaugeMetricFamily(f"{PREFIX}_queue_length", "Jobs that wait.", labels=["queue"])
    for name, value in queue.lengths.items():
        length.add_metric([name], value)
    yield length
    phases = GaugeMetricFamily(f"{PREFIX}_workers", "Living workers.", labels=["phase"])
    running = GaugeMetricFamily(
        f"{PREFIX}_worker_running_samples", "Samples in a worker's batch.", labels=["worker"]
    )
    memory = GaugeMetricFamily(
        f"{PREFIX}_worker_memory_bytes", "A worker's resident memory.", labels=["worker"]
    )
    device_memory = GaugeMetricFamily(
        f"{PREFIX}_worker_device_memory_bytes", "Memory of GPUs that a worker holds.", labels=["worker"]
    )
    seeds = GaugeMetricFamily(
        f"{PREFIX}_seed_promise",
        "Whether a worker gives the same request the same bytes in any batch, and how that is known.",
        labels=["worker", "pipeline", "how"],
    )
    for phase in ("starting", "ready", "draining"):
        phases.add_metric([phase], sum(worker.phase == phase for worker in queue.workers))
    for worker in queue.workers:
        running.add_metric([worker.name], worker.num_running_samples)
        memory.add_metric([worker.name], worker.memory_bytes)
        device_memory.add_metric([worker.name], worker.device_memory_bytes)
        for pipeline, verdict in worker.seed_verdicts.items():
            seeds.add_metric([worker.name, pipeline, verdict.how], verdict.is_kept)
    yield from (phases, running, memory, device_memory, seeds)
    for metric in METRICS:
        yield _family(metric, queue.totals)


def _family(metric: Metric, totals: Mapping[str, float]) -> Family:
    """Return one of the workers' metrics, from the fields that are its own."""
    found: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for name, value in totals.items():
        metric_name, *parts = name.split(SEPARATOR)
        if metric_name == metric.name and len(parts) == len(metric.labels) + bool(metric.buckets):
            found[tuple(parts[: len(metric.labels)])][parts[-1] if metric.buckets else ""] = value
    name = f"{PREFIX}_{metric.name}"
    if not metric.buckets:
        counter = CounterMetricFamily(name, metric.help, labels=metric.labels)
        for labels, values in found.items():
            counter.add_metric(labels, values[""])
        return counter
    histogram = HistogramMetricFamily(name, metric.help, labels=metric.labels)
    for labels, values in found.items():
        histogram.add_metric(labels, _cumulative(metric, values), values.get("sum", 0.0))
    return histogram


def _cumulative(metric: Metric, values: Mapping[str, float]) -> list[tuple[str, float]]:
    total = 0.0
    buckets = []
    for bound in (*map(str, metric.buckets), INFINITY):
        total += values.get(bound, 0)
        buckets.append(("+Inf" if bound == INFINITY else str(float(bound)), total))
    return buckets
