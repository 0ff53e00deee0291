"""Where the outputs and codes of finished jobs are kept: files that front end and workers share."""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.media.base import MEDIA, medium_of
from workers.errors import JobNotFound
from workers.messages import SampleCodes
from workers.storage import check_writable, make_folders, make_private, storing_in, write_new

_JOB_ID = re.compile(r"[0-9a-f]{32}")
_CODES_NAME = "codes.json"


@dataclass(frozen=True)
class StoredFile:
    """An output's bytes and what they are."""

    data: bytes
    media_type: str
    sha256: str


class ResultStore:
    """Outputs by job and index, and the codes of each job. The first one stored stays.

    The files are `<folder>/<2 digits>/<job id>/<index>.<format>`, and `codes.json` beside them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self) -> None:
        """Try to write.

        Raises: StorageUnavailable when that fails, StorageFull among them; the message names the folder.
        """
        check_writable(self._folder)

    def put(self, job_id: str, index: int, data: bytes, format: str) -> StoredFile:
        """Store one output, or keep the one that is there already, and return what is stored.

        Raises: StorageUnavailable, StorageFull; JobNotFound when the job id can't be one.
        """
        path = self._job_folder(job_id) / f"{index:d}.{format}"
        return _stored_file(self._write_once(path, data), format)

    def read(self, job_id: str, index: int) -> StoredFile:
        """Return an output.

        Raises: JobNotFound when there is none of this job and index.
        """
        for path in self._job_folder(job_id).glob(f"{index:d}.*"):
            try:
                return _stored_file(path.read_bytes(), path.suffix.removeprefix("."))
            except FileNotFoundError:
                break  # swept in this moment
        raise JobNotFound(f"job {job_id} has no output {index}")

    def put_codes(self, job_id: str, codes: list[SampleCodes | None]) -> None:
        """Store the codes of a job's samples; None for one that failed.

        Raises: StorageUnavailable, StorageFull; JobNotFound when the job id can't be one.
        """
        data = json.dumps(codes, separators=(",", ":")).encode()
        self._write_once(self._job_folder(job_id) / _CODES_NAME, data)

    def read_codes(self, job_id: str) -> list[SampleCodes | None]:
        """Return the codes of a job's samples.

        Raises: JobNotFound when there are none of this job.
        """
        path = self._job_folder(job_id) / _CODES_NAME
        try:
            codes: list[SampleCodes | None] = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise JobNotFound(f"job {job_id} has no codes") from None
        return codes

    def remove(self, job_id: str) -> None:
        """Remove what is stored of one job, if there is anything."""
        shutil.rmtree(self._job_folder(job_id), ignore_errors=True)

    def sweep(self, older_than_s: float, is_kept: Callable[[str], bool] = lambda job_id: False) -> int:
        """Remove jobs whose last file was stored this long ago; return how many.

        Several processes may sweep at once. is_kept: says of a job whether it stays, however old it is.
        """
        oldest = time.time() - older_than_s
        num_removed = 0
        for folder in self._folder.glob("??/*"):
            if is_kept(folder.name):
                continue
            try:
                is_old = folder.stat().st_mtime < oldest
            except FileNotFoundError:
                continue
            if is_old and _JOB_ID.fullmatch(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
                num_removed += 1
        return num_removed

    def _job_folder(self, job_id: str) -> Path:
        if not _JOB_ID.fullmatch(job_id):
            raise JobNotFound("a job id is 32 hexadecimal digits")
        return self._folder / job_id[:2] / job_id

    def _write_once(self, path: Path, data: bytes) -> bytes:
        """Write a file unless it is there, and return its bytes.

        A reader sees the whole file or none. Nothing is synced to the disk: a job that is lost with the
        machine is computed again.
        """
        make_private(self._folder)
        with storing_in(self._folder):
            make_folders(path.parent)
            temporary = path.with_name(f".{secrets.token_hex(8)}")
            try:
                write_new(temporary, data)
                os.link(temporary, path)  # unlike a rename, this never replaces
            except FileExistsError:
                return path.read_bytes()
            finally:
                temporary.unlink(missing_ok=True)
        return data


def _stored_file(data: bytes, format: str) -> StoredFile:
    return StoredFile(data, _media_type(format), hashlib.sha256(data).hexdigest())


def _media_type(format: str) -> str:
    for medium in map(medium_of, MEDIA):
        if format in medium.formats:
            return medium.formats[format]
    return "application/octet-stream"
