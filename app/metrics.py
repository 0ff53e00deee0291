"""Metrics for Prometheus: of this process's requests, of the queue, and of all workers."""

import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import is_known_code
from app.queue_checks import QueueMetrics
from workers.messages import Operation, Priority
from workers.metrics import INFINITY, METRICS, SEPARATOR, Metric

PREFIX = "smalti"
NO_ROUTE = "none"
CLIENT_GONE = "499"  # as nginx calls it: the client went away before it had an answer
OTHER = "other"
_KNOWN: Mapping[str, Collection[str]] = {
    "method": ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "any"),
    "operation": get_args(Operation),
    "priority": get_args(Priority),
    "code": ("succeeded", "cancelled"),  # and the codes of errors
}
_PLAIN = re.compile(r"[A-Za-z0-9_.:/{}-]{1,128}")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


def label(name: str, value: str) -> str:
    """Return the value of a metric's label: the one place where what others sent may become one.

    Each value is a time series for as long as the process lives. What is not known, or not plain, is "other".
    """
    known = _KNOWN.get(name)
    if known is not None:
        is_known = value in known or (name == "code" and is_known_code(value))
    else:
        is_known = _PLAIN.fullmatch(value) is not None
    return value if is_known else OTHER


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
        self.turned_away = Counter(
            f"{PREFIX}_http_turned_away",
            "Requests and connections that were refused at the door, by the error's code.",
            ("code",),
            registry=self.registry,
        )
        self.body_bytes = Gauge(
            f"{PREFIX}_http_body_bytes", "Bytes of bodies that requests hold.", registry=self.registry
        )
        self.connections = Gauge(
            f"{PREFIX}_http_connections", "Connections of clients.", registry=self.registry
        )

    def count_request(self, method: str, route: str, status: str, seconds: float) -> None:
        """Count a request that has ended."""
        method, route = label("method", method), label("route", route)
        self.requests.labels(method, route, status).inc()
        self.seconds.labels(method, route).observe(seconds)

    def count_turned_away(self, code: str) -> None:
        """Count a request, or a connection, that was refused at the door."""
        self.turned_away.labels(label("code", code)).inc()


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
        status = CLIENT_GONE

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", NO_ROUTE)
            method = scope["method"] if route != NO_ROUTE else "any"
            self._metrics.count_request(method, route, status, time.perf_counter() - began_s)


def render(http: HttpMetrics, queue: QueueMetrics | None, others: Iterable[Family] = ()) -> bytes:
    """Return all metrics as text; those of the queue and the workers only if the queue answers."""
    registry = CollectorRegistry()
    registry.register(_Families([*_families(queue), *others]))
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
    for queue_name, value in queue.lengths.items():
        length.add_metric([label("queue", queue_name)], value)
    yield length
    yield GaugeMetricFamily(
        f"{PREFIX}_queue_paused", "Whether an administrator holds the queue.", queue.is_paused
    )
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
    loaded = GaugeMetricFamily(
        f"{PREFIX}_loaded_bytes",
        "Bytes of a pipeline's weights in a worker's memory.",
        labels=["worker", "pipeline"],
    )
    for phase in ("starting", "ready", "draining"):
        phases.add_metric([phase], sum(worker.phase == phase for worker in queue.workers))
    for worker in queue.workers:
        name = label("worker", worker.name)
        running.add_metric([name], worker.num_running_samples)
        memory.add_metric([name], worker.memory_bytes)
        device_memory.add_metric([name], worker.device_memory_bytes)
        for pipeline, verdict in worker.seed_verdicts.items():
            seeds.add_metric([name, label("pipeline", pipeline), label("how", verdict.how)], verdict.is_kept)
        for pipeline, load in worker.loads.items():
            if load.state == "loaded":
                loaded.add_metric([name, label("pipeline", pipeline)], load.num_bytes)
    yield from (phases, running, memory, device_memory, seeds, loaded)
    for metric in METRICS:
        yield _family(metric, queue.totals)


def _family(metric: Metric, totals: Mapping[str, float]) -> Family:
    """Return one of the workers' metrics, from the fields that are its own."""
    found: dict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, value in totals.items():
        metric_name, *parts = name.split(SEPARATOR)
        if metric_name == metric.name and len(parts) == len(metric.labels) + bool(metric.buckets):
            labels = tuple(map(label, metric.labels, parts))
            found[labels][parts[-1] if metric.buckets else ""] += value
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
