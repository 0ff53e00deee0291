"""A moderation hook: refuses words in prompts, and pictures that show nothing.

PYTHONPATH=examples SMALTI_MODERATION=moderation:Moderation smalti up

Each method returns None, or why it refuses, which the client is told. Both are called in threads, several at
a time; what takes longer than SMALTI_MODERATION_TIMEOUT_S, or raises, is refused.
"""

import re
from pathlib import Path

from workers.moderation import AskedFor, MadeOutput


class Moderation:
    """Made once in every process of the service: load a classifier here."""

    def __init__(self, words: Path = Path(__file__).with_name("refused_words.txt")) -> None:
        self._refused = frozenset(words.read_text().split())

    def before(self, asked: AskedFor) -> str | None:
        """Look at a request before it is queued, in the API."""
        for word in re.findall(r"\w+", (asked.prompt or "").lower()):
            if word in self._refused:
                return f"prompt: {word!r} is refused here"
        return None

    def after(self, asked: AskedFor, output: MadeOutput) -> str | None:
        """Look at an output before it is stored, in the worker. array: (height, width, C) uint8."""
        if output.medium == "image" and output.array.std() < 1:
            return "the picture shows nothing"
        return None
