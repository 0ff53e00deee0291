"""What decoders may do to the process that they run in, and a picture that makes a real one slow."""

import os
import signal
import struct
import time

import numpy as np

from models.media.base import Array, InvalidMedia


def double(number: int) -> Array:
    return np.array([2 * number])


def refuse(reason: str) -> Array:
    raise InvalidMedia(reason)


def fail() -> Array:
    raise KeyError("a mistake of ours")


def crash() -> Array:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def go_on_for_ever() -> Array:
    while True:
        pass


def sleep(seconds: float) -> Array:
    time.sleep(seconds)
    return np.array([seconds])


def take_memory(num_bytes: int) -> Array:
    return np.ones(num_bytes, np.uint8)[:1]


def tell_pid() -> Array:
    return np.array([os.getpid()])


def imported(name: str) -> Array:
    import sys

    return np.array([name in sys.modules])


def jpeg_of_scans(side_px: int, num_scans: int) -> bytes:
    """Return a progressive grey JPEG whose scans refine nothing: a few bytes each, and time for every pixel."""

    def segment(marker: int, data: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    def packed(bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        each = (int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
        return b"".join(bytes([byte]) + b"\0" * (byte == 0xFF) for byte in each)

    one_code = bytes([1] + [0] * 15)
    num_blocks = ((side_px + 7) // 8) ** 2
    nothing = packed(("0" + "1" * 14) * -(-num_blocks // 32767))
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            segment(0xDB, b"\0" + b"\1" * 64),
            segment(0xC2, struct.pack(">BHHB", 8, side_px, side_px, 1) + b"\1\x11\0"),
            segment(0xC4, b"\0" + one_code + b"\0"),
            segment(0xC4, b"\x10" + one_code + b"\xe0"),
            segment(0xDA, b"\1\1\0\0\0\0"),
            packed("0" * num_blocks),
            (segment(0xDA, b"\1\1\0" + bytes([1, 63, 0])) + nothing) * num_scans,
            b"\xff\xd9",
        ]
    )
