"""What Schemathesis doesn't know by itself: how JSON Lines are sent."""

from typing import Any

import schemathesis


@schemathesis.serializer("application/jsonl", "application/x-ndjson")
def json_lines(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Return text as it is; anything else in words, which is no line of a batch."""
    return value if isinstance(value, bytes) else str(value).encode()
