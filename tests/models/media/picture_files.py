"""Picture files and colour profiles, built for tests byte by byte where Pillow can't write them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

# Red, green, blue as they stand in the profiles of these names: X, Y, Z, adapted to the white D50.
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE_RGB = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
ORIENTATION = 0x0112  # of EXIF


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_file(rows: list[bytes], width: int, depth: int, colour_type: int, *chunks: bytes) -> bytes:
    """Return a PNG of packed rows, with more chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0))
    compressor = zlib.compressobj(1)
    packed = b"".join(compressor.compress(b"\0" + row) for row in rows) + compressor.flush()
    pixels = chunk(b"IDAT", packed)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def with_chunk(png: bytes, inserted: bytes) -> bytes:
    """Return a PNG with one more chunk behind its header."""
    return png[:33] + inserted + png[33:]


def rgb_profile(colours: tuple[tuple[float, ...], ...], gamma: float = 2.2) -> bytes:
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"
    tags = {key: _xyz(xyz) for key, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colours, strict=True)}
    return _profile(b"RGB ", b"mntr", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def grey_profile(gamma: float) -> bytes:
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"
    return _profile(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": curve})


def cmyk_profile() -> bytes:
    """Return one in which every ink takes away a quarter of the lightness."""
    ramp = bytes(range(256))
    num_inks = [bin(corner).count("1") for corner in range(16)]
    lab = b"".join(bytes([255 - 255 * number // 4, 128, 128]) for number in num_inks)
    matrix = struct.pack(">9i", *(65536 * (at in (0, 4, 8)) for at in range(9)))
    table = b"mft1" + bytes([0, 0, 0, 0, 4, 3, 2, 0]) + matrix + ramp * 4 + lab + ramp * 3
    return _profile(b"CMYK", b"prtr", b"Lab ", dict.fromkeys((b"A2B0", b"A2B1", b"A2B2"), table))


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(width: int, height: int, mode: str, seed: int = 0) -> Image.Image:
    """Return random pixels of any mode that PNG has."""
    draw = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(draw.integers(0, 65536, (height, width), dtype=np.uint16))
    colours = Image.fromarray(draw.integers(0, 256, (height, width, 4), dtype=np.uint8))
    return colours.convert("RGB").quantize(16) if mode == "P" else colours.convert(mode)


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + struct.pack(">Iiii", 0, *(round(value * 65536) for value in values))


def _profile(space: bytes, device: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"wtpt": _xyz((0.9642, 1.0, 0.8249))} | tags
    position = 128 + 4 + 12 * len(tags)
    table, contents = struct.pack(">I", len(tags)), b""
    for key, content in tags.items():
        table += key + struct.pack(">II", position + len(contents), len(content))
        contents += content + b"\0" * (-len(content) % 4)
    header = struct.pack(
        ">I4sI4s4s4s", position + len(contents), b"lcms", 0x02400000, device, space, connection
    )
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">iii", *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)))
    return header.ljust(128, b"\0") + table + contents
