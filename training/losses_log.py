"""``losses.jsonl``: what a run logged, and whether that still makes sense."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_FAR_ABOVE = 10.0


def read_losses(path: Path) -> list[dict[str, Any]]:
    """Return the entries; a line that a killed run left unfinished, or that isn't of numbers, is left out."""
    entries = []
    for line in path.read_text(errors="replace").split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            continue
        if all(isinstance(value, int | float) for value in entry.values()):
            entries.append(entry)
    return entries


class Losses:
    """Watches what is logged: it must be finite, and a loss that grows far above its start is said once."""

    def __init__(self) -> None:
        self.last_finite = "none"
        self._starts: dict[tuple[str, ...], float] = {}
        self._has_warned = False

    def check(self, entry: Mapping[str, Any]) -> str | None:
        """Return what is not finite in an entry, in words, or None."""
        step = entry["step"]
        for name, value in entry.items():
            if not math.isfinite(value):
                return f"by step {step}, {name} is {value}"
        loss = entry.get("loss")
        if loss is None:
            return None
        self.last_finite = f"{loss:.4g} at step {step}"
        # What is summed changes with what is trained, as when a discriminator sets in.
        start = self._starts.setdefault(tuple(entry), abs(loss))
        if loss > _FAR_ABOVE * start and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "step %d: diverging? The loss is %.4g, and began at %.4g: a lower learning_rate may help",
                step, loss, start,
            )  # fmt: skip
        return None
