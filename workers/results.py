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
from workers.settings import ServiceSettings, SettingsError
from workers.storage import DATA_DIR, check_writable, make_folders, make_private, storing_in, write_new

JOB_ID = re.compile(r"[0-9a-f]{32}")
_CODES_NAME = "codes.json"
_LATENTS_NAME = re.compile(r"latents\.([0-9a-f]{16})\.npy")


@dataclass(frozen=True)
class StoredFile:
    """An output's bytes and what they are."""

    data: bytes
    media_type: str
    sha256: str


@dataclass(frozen=True)
class StoredLatents:
    """The latents of a job's samples as a NumPy file, and the fingerprint of their autoencoder."""

    data: bytes
    tokenizer: str


class ResultStore:
    """Outputs by job and index, and the codes or latents of each job. The first one stored stays.

    The files are `<folder>/<2 digits>/<job id>/<index>.<format>`, and `codes.json` or
    `latents.<fingerprint>.npy` beside them.
    """

    def __init__(self, folder: Path, variable: str = DATA_DIR) -> None:
        """variable: the setting that names the folder."""
        self._folder = folder
        self._variable = variable

    def check(self) -> None:
        """Try to write.

        Raises: StorageUnavailable when that fails, StorageFull among them; the message names the folder.
        """
        check_writable(self._folder, self._variable)

    def put(self, job_id: str, index: int, data: bytes, format: str) -> StoredFile:
        """Store one output, or keep the one that is there already, and return what is stored.

        Raises: StorageUnavailable, StorageFull; JobNotFound when the job id can't be one.
        """
        return _stored_file(self._write_once(job_id, f"{index:d}.{format}", data), format)

    def read(self, job_id: str, index: int) -> StoredFile:
        """Return an output.

        Raises: JobNotFound when there is none of this job and index.
        """
        for name in self._names(job_id):
            number, _, format = name.partition(".")
            if number != str(index):
                continue
            try:
                return _stored_file(self._read(job_id, name), format)
            except FileNotFoundError:
                break  # swept in this moment
        raise JobNotFound(f"job {job_id} has no output {index}")

    def put_codes(self, job_id: str, codes: list[SampleCodes | None]) -> None:
        """Store the codes of a job's samples; None for one that failed.

        Raises: StorageUnavailable, StorageFull; JobNotFound when the job id can't be one.
        """
        data = json.dumps(codes, separators=(",", ":")).encode()
        self._write_once(job_id, _CODES_NAME, data)

    def read_codes(self, job_id: str) -> list[SampleCodes | None]:
        """Return the codes of a job's samples.

        Raises: JobNotFound when there are none of this job.
        """
        try:
            codes: list[SampleCodes | None] = json.loads(self._read(job_id, _CODES_NAME))
        except FileNotFoundError:
            raise JobNotFound(f"job {job_id} has no codes") from None
        return codes

    def put_latents(self, job_id: str, data: bytes, tokenizer: str) -> None:
        """Store the latents of a job's samples, a NumPy file.

        Raises: StorageUnavailable, StorageFull; JobNotFound when the job id can't be one.
        """
        self._write_once(job_id, f"latents.{tokenizer}.npy", data)

    def read_latents(self, job_id: str) -> StoredLatents:
        """Return the latents of a job's samples.

        Raises: JobNotFound when there are none of this job.
        """
        for name in self._names(job_id):
            found = _LATENTS_NAME.fullmatch(name)
            if found is None:
                continue
            try:
                return StoredLatents(self._read(job_id, name), found[1])
            except FileNotFoundError:
                break  # swept in this moment
        raise JobNotFound(f"job {job_id} has no latents")

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
            if is_old and is_job_id(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
                num_removed += 1
        return num_removed

    def _checked(self, job_id: str) -> str:
        """Return where a job's files are.

        Raises: JobNotFound when the id can't be one.
        """
        if not is_job_id(job_id):
            raise JobNotFound("a job id is 32 hexadecimal digits")
        return f"{job_id[:2]}/{job_id}"

    def _job_folder(self, job_id: str) -> Path:
        return self._folder / self._checked(job_id)

    def _names(self, job_id: str) -> list[str]:
        """Return the names of a job's files."""
        folder = self._job_folder(job_id)
        try:
            return [path.name for path in folder.iterdir()]
        except FileNotFoundError:
            return []

    def _read(self, job_id: str, name: str) -> bytes:
        """Return a file.

        Raises: FileNotFoundError.
        """
        return (self._job_folder(job_id) / name).read_bytes()

    def _write_once(self, job_id: str, name: str, data: bytes) -> bytes:
        """Write a file unless it is there, and return its bytes.

        A reader sees the whole file or none. Nothing is synced to the disk: a job that is lost with the
        machine is computed again.
        """
        path = self._job_folder(job_id) / name
        make_private(self._folder, self._variable)
        with storing_in(self._folder, self._variable):
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


def open_results(settings: ServiceSettings) -> ResultStore:
    """Return the store that the settings name.

    Raises: SettingsError where it needs what isn't installed.
    """
    if not settings.has_bucket:
        is_named = bool(settings.result_store)
        return ResultStore(settings.results_dir, "SMALTI_RESULT_STORE" if is_named else DATA_DIR)
    try:
        from workers.bucket import BucketResults  # with s3fs, which a folder needs nothing of
    except ImportError as error:
        raise SettingsError(
            f"SMALTI_RESULT_STORE: {settings.result_store} needs the extra s3: pip install 'smalti[s3]'"
        ) from error
    return BucketResults(settings.result_store)


def is_job_id(text: str) -> bool:
    """Say whether this can be a job's id."""
    return JOB_ID.fullmatch(text) is not None


def _stored_file(data: bytes, format: str) -> StoredFile:
    return StoredFile(data, _media_type(format), hashlib.sha256(data).hexdigest())


def _media_type(format: str) -> str:
    for medium in map(medium_of, MEDIA):
        if format in medium.formats:
            return medium.formats[format]
    return "application/octet-stream"
