"""What a client asks for in its headers: `Prefer` (RFC 7240) and `Accept` (RFC 9110, section 12.5.1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

JSON_MEDIA_TYPE = "application/json"


@dataclass(frozen=True)
class Preferences:
    """`Prefer: wait=30, cancel-on-disconnect`. What can't be read is left out, as the RFC wants."""

    wait_s: float | None = None
    cancels_on_disconnect: bool = False


def parse_prefer(headers: Sequence[str]) -> Preferences:
    """Read all `Prefer` headers of a request; of a preference named twice, the first counts."""
    preferences: dict[str, str] = {}
    for item in ",".join(headers).split(","):
        name, _, value = item.partition(";")[0].partition("=")
        preferences.setdefault(name.strip().lower(), value.strip().strip('"'))
    try:
        wait_s: float | None = float(preferences.get("wait", "nan"))
    except ValueError:
        wait_s = None
    if wait_s is not None and (not math.isfinite(wait_s) or wait_s < 0):
        wait_s = None
    return Preferences(wait_s, "cancel-on-disconnect" in preferences)


def best_media_type(accept: str | None, offered: Sequence[str]) -> str | None:
    """Return the offered media type that is accepted most, the first among equals; None if none is."""
    ranges = [_parse_range(item) for item in (accept or "*/*").split(",") if item.strip()]
    qualities = [_quality(media_type, ranges) for media_type in offered]
    best = max(qualities)
    return offered[qualities.index(best)] if best > 0 else None


def _parse_range(item: str) -> tuple[str, float]:
    media_range, *parameters = (part.strip().lower() for part in item.split(";"))
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                asked = float(parameter[2:])
            except ValueError:
                asked = 0.0
            quality = min(max(0.0, asked), 1.0)  # 0 for NaN
    return media_range, quality


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return how much a type is accepted: the most specific range that matches it says so."""
    kind = media_type.partition("/")[0]
    for wanted in (media_type, f"{kind}/*", "*/*"):
        qualities = [quality for media_range, quality in ranges if media_range == wanted]
        if qualities:
            return max(qualities)
    return 0.0
