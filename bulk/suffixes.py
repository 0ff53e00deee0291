"""Which files hold pictures, by the ends of their names."""

from pathlib import Path

# Also of pictures that can't be read: a row that says so is better than a picture that is missed.
PICTURE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
)
PARQUET_SUFFIX = ".parquet"
TAR_SUFFIXES = (
    ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".tzst",
)  # fmt: skip
TAKEN_SUFFIXES = (*sorted(PICTURE_SUFFIXES), PARQUET_SUFFIX, *TAR_SUFFIXES)


def is_tar(name: str) -> bool:
    return name.lower().endswith(TAR_SUFFIXES)


def is_taken(name: str) -> bool:
    """Whether a file in a folder is read."""
    return Path(name).suffix.lower() in PICTURE_SUFFIXES | {PARQUET_SUFFIX} or is_tar(name)
