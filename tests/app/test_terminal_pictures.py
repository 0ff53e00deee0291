"""Pictures in the terminal, in the way that each can show them."""

import base64
import io
import re

import pytest
from PIL import Image, ImageChops, ImageStat

from app.cli.pictures import drawn, protocol_of


def picture(size: tuple[int, int] = (2, 2), format: str = "PNG", mode: str = "RGB") -> bytes:
    """Return a file whose upper half is red and its lower one blue; of RGBA the upper is transparent."""
    image = Image.new(mode, size, (0, 0, 255))
    upper = (0, 0, 0, 0) if mode == "RGBA" else (255, 0, 0)
    image.paste(upper, (0, 0, size[0], size[1] // 2))
    buffer = io.BytesIO()
    image.save(buffer, format, **({"lossless": True} if format == "WEBP" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app", "COLORTERM": "truecolor"}, "iterm"),
        ({"TERM": "foot", "COLORTERM": "truecolor"}, "sixel"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "240802", "COLORTERM": "truecolor"}, "sixel"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "211203", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "tmux-256color", "KONSOLE_VERSION": "240802", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm-direct"}, "blocks"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "COLORTERM": "truecolor", "TMUX": "x"}, "blocks"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, None),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, None),
        ({}, None),
    ],
)
def test_a_terminal_tells_how_it_shows_pictures(environment, protocol):
    assert protocol_of(environment) == protocol


def test_blocks_hold_two_pixels_each_and_transparent_ones_are_white():
    block = "\x1b[38;2;{}m\x1b[48;2;0;0;255m▀"
    assert drawn(picture(), "blocks", 80) == block.format("255;0;0") * 2 + "\x1b[0m"
    assert drawn(picture(mode="RGBA"), "blocks", 80) == block.format("255;255;255") * 2 + "\x1b[0m"
    large = drawn(picture((640, 320)), "blocks", 20).splitlines()
    assert len(large) == 5
    assert {line.count("▀") for line in large} == {20}


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_kitty_gets_a_png_in_pieces(format):
    noise = Image.effect_noise((200, 200), 100)
    buffer = io.BytesIO()
    noise.save(buffer, format, **({"lossless": True} if format == "WEBP" else {}))
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", drawn(buffer.getvalue(), "kitty", 80))
    assert [control for control, _ in pieces] == ["f=100,a=T,m=1", *["m=1"] * (len(pieces) - 2), "m=0"]
    assert all(len(piece) <= 4096 for _, piece in pieces)
    with Image.open(io.BytesIO(base64.b64decode("".join(piece for _, piece in pieces)))) as image:
        assert image.format == "PNG"
        assert image.convert("L").tobytes() == noise.tobytes()


def read_sixels(text: str) -> Image.Image:
    """Draw sixels as a terminal does."""
    head = re.fullmatch(r'\x1bP0;1q"1;1;(\d+);(\d+)((?:#\d+;2;\d+;\d+;\d+)*)([^\x1b]*)\x1b\\', text, re.S)
    size = int(head[1]), int(head[2])
    colours = {
        int(number): tuple(round(int(part) * 2.55) for part in rgb)
        for number, *rgb in re.findall(r"#(\d+);2;(\d+);(\d+);(\d+)", head[3])
    }
    image, colour = Image.new("RGB", size, (1, 2, 3)), 0
    for band, line in enumerate(head[4].split("-")):
        for overlay in line.split("$"):
            column = 0
            for number, length, each in re.findall(r"#(\d+)|(?:!(\d+))?([?-~])", overlay):
                if number:
                    colour = int(number)
                    continue
                for _ in range(int(length or 1)):
                    for bit in (bit for bit in range(6) if (ord(each) - 63) >> bit & 1):
                        image.putpixel((column, 6 * band + bit), colours[colour])
                    column += 1
            assert column == size[0]
    return image


@pytest.mark.parametrize("size", [(2, 2), (5, 8), (40, 13)])
def test_sixels_draw_every_pixel_in_its_colour(size):
    with Image.open(io.BytesIO(picture(size))) as image:
        assert read_sixels(drawn(picture(size), "sixel", 80)).tobytes() == image.tobytes()
    transparent = read_sixels(drawn(picture(mode="RGBA"), "sixel", 80))
    assert [transparent.getpixel((0, row)) for row in range(2)] == [(255, 255, 255), (0, 0, 255)]


def test_sixels_are_near_a_photograph_and_no_larger_than_a_window():
    noise = Image.merge("RGB", [Image.effect_noise((60, 50), sigma) for sigma in (20, 40, 80)])
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    shown = read_sixels(drawn(buffer.getvalue(), "sixel", 80))
    apart = ImageStat.Stat(ImageChops.difference(shown, noise)).mean
    assert max(apart) < 12  # of 256, with 256 colours for 3000 pixels of noise
    assert '"1;1;640;320#' in drawn(picture((1280, 640)), "sixel", 80)


def test_iterm_gets_the_file():
    shown = drawn(picture(), "iterm", 80)
    assert shown.startswith("\x1b]1337;File=inline=1;")
    assert base64.b64decode(shown.partition(":")[2].removesuffix("\a")) == picture()
