"""Emoji and other symbols in a prompt, spelled as English words. Without torch."""

import re
import unicodedata
from collections.abc import Callable

_SEQUENCE = re.compile(
    r"(?P<key>[0-9#*])\ufe0f?\u20e3"
    r"|(?P<country>[\U0001f1e6-\U0001f1ff]{2})"
    r"|\U0001f3f4(?P<region>[\U000e0030-\U000e007a]+)\U000e007f"
    r"|(?P<symbol>[^\x00-\x7f])"
)
_FIRST_INDICATOR, _FIRST_TAG = 0x1F1E6, 0xE0000  # of the letter a; of the characters of ASCII
_TONES = dict(
    zip("\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff",
        ("light", "medium light", "medium", "medium dark", "dark"), strict=True)
)  # fmt: skip
# In the names of older symbols, words for how they are printed: a "heavy black heart" is red.
_TYPOGRAPHY = re.compile(r"\b(black|white|heavy|medium) ")
_LAST_OLD = "\u2bff"


def spell_symbols(text: str, is_known: Callable[[str], bool]) -> str:
    """Return ``text`` with every symbol that isn't known by its name: 😀 as "grinning face".

    Names are Unicode's, which never change. A sequence is the names of its parts ("woman rocket"); a flag,
    "flag" and the letters of its country. What has no name stays as it is.
    """

    def spelled(match: re.Match[str]) -> str:
        if key := match["key"]:
            return f" keycap {key} "
        if country := match["country"]:
            return f" flag {''.join(chr(ord('a') + ord(each) - _FIRST_INDICATOR) for each in country)} "
        if region := match["region"]:
            return f" flag {''.join(chr(ord(each) - _FIRST_TAG) for each in region)} "
        symbol = match["symbol"]
        if unicodedata.category(symbol) not in ("So", "Sm", "Sk") or is_known(symbol):
            return symbol
        return f" {_name(symbol)} "

    return _SEQUENCE.sub(spelled, text)


def _name(symbol: str) -> str:
    if symbol in _TONES:
        return f"{_TONES[symbol]} skin tone"
    name = unicodedata.name(symbol, symbol).lower()
    is_coloured = symbol > _LAST_OLD or "circle" in name or "square" in name
    return name if is_coloured else _TYPOGRAPHY.sub("", name)
