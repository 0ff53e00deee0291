"""Pictures in the terminal: by kitty's or iTerm2's protocol or as sixels, else two pixels a character."""

import base64
import io
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Literal

MAX_SHOWN = 4

Protocol = Literal["kitty", "iterm", "sixel", "blocks"]

_KITTY_CHUNK = 4096
_MAX_COLUMNS = 48  # of blocks
_KITTY_PROGRAMS = frozenset({"ghostty"})
_ITERM_PROGRAMS = frozenset({"iTerm.app", "WezTerm", "mintty"})
_SIXEL_TERMS = ("foot", "mlterm", "contour")
_FIRST_KONSOLE_WITH_SIXELS = 220400


def can_show() -> bool:
    """Whether standard output is a terminal that shows pictures."""
    return sys.stdout.isatty() and protocol_of(os.environ) is not None


def protocol_of(environment: Mapping[str, str]) -> Protocol | None:
    """Return how a terminal with these variables shows pictures: through tmux and screen by blocks alone."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if term == "dumb" or "NO_COLOR" in environment:
        return None
    if "TMUX" not in environment and not term.startswith(("screen", "tmux")):
        if "KITTY_WINDOW_ID" in environment or "kitty" in term or program in _KITTY_PROGRAMS:
            return "kitty"
        if program in _ITERM_PROGRAMS:
            return "iterm"
        konsole = environment.get("KONSOLE_VERSION", "")
        has_sixels = konsole.isdecimal() and int(konsole[:9]) >= _FIRST_KONSOLE_WITH_SIXELS
        if has_sixels or term.startswith(_SIXEL_TERMS):
            return "sixel"
    if environment.get("COLORTERM") in ("truecolor", "24bit") or "direct" in term:
        return "blocks"
    return None


def show_picture(data: bytes) -> None:
    """Write a picture to the terminal, below what is there."""
    protocol = protocol_of(os.environ) or "blocks"
    columns = shutil.get_terminal_size().columns
    sys.stdout.write(drawn(data, protocol, columns) + "\n")
    sys.stdout.flush()


def drawn(data: bytes, protocol: Protocol, columns: int) -> str:
    """Return what shows a picture's file in a terminal so many characters wide."""
    match protocol:
        case "kitty":
            return _kitty(_png(data))
        case "iterm":
            encoded = base64.b64encode(data).decode()
            return f"\x1b]1337;File=inline=1;size={len(data)};preserveAspectRatio=1:{encoded}\a"
        case "sixel":
            from app.cli.sixel import sixels

            return sixels(data)
        case "blocks":
            return _blocks(data, min(columns, _MAX_COLUMNS))


def _kitty(png: bytes) -> str:
    encoded = base64.b64encode(png).decode()
    chunks = [encoded[start : start + _KITTY_CHUNK] for start in range(0, len(encoded), _KITTY_CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        control = ("f=100,a=T," if number == 0 else "") + f"m={int(number < len(chunks) - 1)}"
        parts.append(f"\x1b_G{control};{chunk}\x1b\\")
    return "".join(parts)


def _png(data: bytes) -> bytes:
    from PIL import Image

    if data.startswith(b"\x89PNG"):
        return data
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _blocks(data: bytes, columns: int) -> str:
    """Draw with upper half blocks, in the colour of the upper pixel on that of the lower."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGBA")
    width = min(columns, image.width)
    height = max(2, round(image.height * width / image.width / 2) * 2)
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = image.resize((width, height), Image.Resampling.BOX)
    pixels = image.tobytes()

    def colour(column: int, row: int) -> str:
        start = 3 * (row * width + column)
        return ";".join(map(str, pixels[start : start + 3]))

    lines = []
    for row in range(0, height, 2):
        blocks = (
            f"\x1b[38;2;{colour(column, row)}m\x1b[48;2;{colour(column, row + 1)}m▀"
            for column in range(width)
        )
        lines.append("".join(blocks) + "\x1b[0m")
    return "\n".join(lines)
