"""The one way to OpenTelemetry, which is an extra: nothing of it is imported unless it is asked for."""

from typing import TYPE_CHECKING

from workers.settings import SettingsError, Tracing

if TYPE_CHECKING:
    from workers.spans import Spans


def load_spans(tracing: Tracing, service: str) -> "Spans | None":
    """Return what records spans, if that is asked for. service: its name there.

    Raises: SettingsError.
    """
    if tracing == "off":
        return None
    try:
        from workers.spans import otlp_spans
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"SMALTI_TRACING=otlp needs the Python module {error.name}: pip install 'smalti[otel]'"
        ) from error
    return otlp_spans(service)
