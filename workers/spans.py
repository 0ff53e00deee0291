"""Spans for OpenTelemetry: of a request, and of what workers do for its job. Imported only where asked for.

They are recorded when their time is over, under the ids that the log and the queue have: the span of a
``Trace`` is the request's, and the parent of what workers do for it.
"""

import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from workers.traces import Trace

if TYPE_CHECKING:
    from workers.queue.consumer import Claim

_NS = 10**9
_own_ids: ContextVar[Trace | None] = ContextVar("own_ids", default=None)


class Spans:
    """Records spans under ids that are there already. service: OTEL_SERVICE_NAME goes before it."""

    def __init__(self, processor: SpanProcessor, service: str) -> None:
        name = os.environ.get("OTEL_SERVICE_NAME") or service
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: name}), id_generator=_KnownIds(), shutdown_on_exit=True
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("smalti")

    def is_sampled(self, trace: Trace) -> bool:
        """Say whether the spans of a request are recorded: as its client says, else as the sampler does."""
        if trace.parent_id is not None:
            return trace.is_sampled
        sampled = self._provider.sampler.should_sample(None, int(trace.trace_id, 16), "", SpanKind.SERVER)
        return sampled.decision is Decision.RECORD_AND_SAMPLE

    def record_request(
        self, trace: Trace, name: str, began_at: float, attributes: Mapping[str, str | int], *, failed: bool
    ) -> None:
        """Record the span of a request that ends now. began_at: in seconds since 1970."""
        if not trace.is_sampled:
            return
        token = _own_ids.set(trace)
        try:
            parent = _parent(trace, trace.parent_id) if trace.parent_id else Context()
            span = self._tracer.start_span(
                name, parent, SpanKind.SERVER, dict(attributes), start_time=int(began_at * _NS)
            )
        finally:
            _own_ids.reset(token)
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def record_job(self, claim: "Claim", computed_at: float, how: str) -> None:
        """Record, now that a job has ended, its wait in the queue, its computation and its storing."""
        trace = claim.trace
        if trace is None or not trace.is_sampled:
            return
        parent = _parent(trace, trace.span_id)
        attributes: dict[str, str | int] = {
            "smalti.job_id": claim.job_id,
            "smalti.pipeline": claim.request.pipeline,
            "smalti.operation": claim.request.operation,
            "smalti.num_samples": claim.request.num_samples,
            "smalti.try": claim.num_tries,
            "smalti.ended": how,
        }
        begins_at = claim.claimed_at - claim.waited_s
        for name, until in (("queue", claim.claimed_at), ("compute", computed_at), ("store", time.time())):
            span = self._tracer.start_span(
                name, parent, SpanKind.CONSUMER, attributes, start_time=int(begins_at * _NS)
            )
            span.end(int(until * _NS))
            begins_at = until

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class _KnownIds(RandomIdGenerator):
    """Gives a span the ids that a request has had from its beginning."""

    def generate_trace_id(self) -> int:
        trace = _own_ids.get()
        return int(trace.trace_id, 16) if trace else super().generate_trace_id()

    def generate_span_id(self) -> int:
        trace = _own_ids.get()
        return int(trace.span_id, 16) if trace else super().generate_span_id()


def otlp_spans(service: str) -> Spans:
    """Return spans that are sent by OTLP over HTTP, to where OpenTelemetry's own variables say."""
    return Spans(BatchSpanProcessor(OTLPSpanExporter()), service)


def _parent(trace: Trace, span_id: str) -> Context:
    context = SpanContext(
        int(trace.trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(1)
    )
    return set_span_in_context(NonRecordingSpan(context), Context())
