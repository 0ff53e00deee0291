"""Where the images of finished jobs are kept: one file each in a folder that front end and workers share."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from workers.errors import JobNotFound, StorageFull
from workers.images import MEDIA_TYPES, check_image
from workers.messages import ImageFormat, ImageReference

_JOB_ID = re.compile(r"[0-9a-f]{32}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Artifact:
    """An image's bytes and what they are."""

    data: bytes
    media_type: str
    sha256: str


class ArtifactStore:
    """Images by job and index. The first one stored stays.

    The files are `<folder>/<2 digits>/<job id>/<index>.<format>`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, job_id: str, index: int, data: bytes, format: ImageFormat) -> ImageReference:
        """Store one image, or keep the one that is there already, and return where it is.

        A reader sees the whole file or none. Nothing is synced to the disk: a job that is lost with the
        machine is computed again.

        Raises: StorageFull when the disk is; JobNotFound when the job id is none.
        """
        path = self._job_folder(job_id) / f"{index}.{format}"
        temporary = path.with_name(f".{index}.{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                os.link(temporary, path)  # unlike a rename, this never replaces
            except FileExistsError:
                data = path.read_bytes()
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in _FULL:
                raise StorageFull("the disk for results is full; try again later") from error
            raise
        info = check_image(data)
        return ImageReference(
            url=f"/jobs/{job_id}/images/{index}",
            media_type=MEDIA_TYPES[info.format],
            width_px=info.width_px,
            height_px=info.height_px,
            num_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )

    def read(self, job_id: str, index: int) -> Artifact:
        """Return an image.

        Raises: JobNotFound when there is none of this job and index.
        """
        folder = self._job_folder(job_id)
        for format, media_type in MEDIA_TYPES.items():
            try:
                data = (folder / f"{index:d}.{format}").read_bytes()
            except FileNotFoundError:
                continue
            return Artifact(data, media_type, hashlib.sha256(data).hexdigest())
        raise JobNotFound(f"job {job_id} has no image {index}")

    def remove(self, job_id: str) -> None:
        """Remove the images of one job, if there are any."""
        shutil.rmtree(self._job_folder(job_id), ignore_errors=True)

    def sweep(self, older_than_s: float) -> int:
        """Remove the images of jobs whose last was stored this long ago; return how many jobs.

        Several processes may sweep at once.
        """
        oldest = time.time() - older_than_s
        num_removed = 0
        for folder in self._folder.glob("??/*"):
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
