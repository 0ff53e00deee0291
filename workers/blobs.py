"""Where the files that came in are kept until the last job that refers to them has ended."""

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from models.media.base import Array, medium_of
from workers.arrays import read_latents
from workers.catalog import Catalog
from workers.errors import InternalError
from workers.messages import EDIT_ROLES, BlobReference, Resolved
from workers.storage import (
    check_writable,
    make_folders,
    make_private,
    open_lock,
    storing_in,
    write_new,
)

_MAX_ASKED = 500  # blobs in one question whether they are referred to


class BlobStore:
    """Files by the SHA-256 of their bytes: `<folder>/<2 digits>/<64 digits>`.

    What was put a short while ago is kept, so that a job can be submitted that refers to it. Front end and
    workers share the folder, and any process may call any method.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self) -> None:
        """Try to write.

        Raises: StorageUnavailable when that fails, StorageFull among them; the message names the folder.
        """
        check_writable(self._folder)

    def put(self, data: bytes, media_type: str) -> BlobReference:
        """Store a file, or say that one is still wanted that is there already.

        Raises: StorageUnavailable, StorageFull.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        make_private(self._folder)
        with storing_in(self._folder):
            make_folders(path.parent)
            with self._locked(fcntl.LOCK_SH):
                try:
                    os.utime(path)
                except FileNotFoundError:
                    _write_whole(path, data)
        return BlobReference(sha256=sha256, media_type=media_type)

    def read(self, reference: BlobReference) -> bytes:
        """Return a file's bytes.

        Raises: InternalError when it isn't there.
        """
        try:
            return self._path(reference.sha256).read_bytes()
        except OSError as error:
            message = "a source of this job can't be read any more; send the request again"
            raise InternalError(message) from error

    def sweep(self, is_referenced: Callable[[Sequence[str]], Sequence[bool]], older_than_s: float) -> int:
        """Remove files that were put this long ago and that no job refers to; return how many.

        is_referenced: says of each SHA-256 whether a job that has not ended refers to it.
        """
        old = [path for path in self._folder.glob("??/*") if _is_older(path, older_than_s)]
        num_removed = 0
        for start in range(0, len(old), _MAX_ASKED):
            asked = old[start : start + _MAX_ASKED]
            for path, is_kept in zip(asked, is_referenced([path.name for path in asked]), strict=True):
                if is_kept:
                    continue
                with self._locked(fcntl.LOCK_EX):  # against a put of the same file in this moment
                    if _is_older(path, older_than_s):
                        path.unlink(missing_ok=True)
                        num_removed += 1
        return num_removed

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        lock = open_lock(self._folder / ".lock")
        try:
            fcntl.flock(lock, kind)
            yield
        finally:
            os.close(lock)


def source_reader(catalog: Catalog, blobs: BlobStore) -> Callable[[Resolved], tuple[Array, ...]]:
    """Return a function that reads and decodes the sources of a request.

    They were fitted to the pipeline when they came in, so this changes nothing of their contents.
    """

    def read_sources(request: Resolved) -> tuple[Array, ...]:
        if not request.sources:
            return ()
        pipeline = catalog.spec(request.pipeline)
        if request.operation == "decode":
            files = [blobs.read(source) for source in request.sources]
            return tuple(read_latents(file, pipeline.latents, 1)[0] for file in files)
        specs = [pipeline.medium] * len(request.sources)
        if request.is_edit:
            specs = [pipeline.inputs[role] for role in EDIT_ROLES[: len(request.sources)]]
        medium = medium_of(pipeline.medium.medium)
        return tuple(
            medium.load(blobs.read(source), spec) for source, spec in zip(request.sources, specs, strict=True)
        )

    return read_sources


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}")
    try:
        write_new(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_older(path: Path, age_s: float) -> bool:
    try:
        return path.stat().st_mtime < time.time() - age_s
    except FileNotFoundError:
        return False
