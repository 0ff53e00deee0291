"""Ways in which people may ask for an emoji."""

import hashlib

from training.emoji.packages import Emoji

_NUM_KEYWORD_CAPTIONS = 3


def caption_texts(emoji: Emoji, style: str) -> list[str]:
    """Return captions of an emoji in a style: its name first, then by keywords, and with its style."""
    article = "an" if emoji.name[:1].lower() in "aeiou" else "a"
    texts = [
        emoji.name,
        f"{article} {emoji.name}",
        f"{emoji.name} emoji",
        f"{article} {emoji.name} emoji in {style.replace('-', ' ')} style",
    ]
    if emoji.keywords:
        texts.append(f"{emoji.name}, {', '.join(emoji.keywords[:6])}")
        for number in range(_NUM_KEYWORD_CAPTIONS):
            drawn = sorted(emoji.keywords, key=lambda word: _order(f"{emoji.code_point} {number} {word}"))
            texts.append(", ".join(drawn[: 2 + number]))
    return list(dict.fromkeys(texts))


def _order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
