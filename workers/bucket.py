"""Results in a store that speaks S3: the same promises as a folder's, for workers that share no disk."""

import errno
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, NoCredentialsError
from s3fs import S3FileSystem

from workers.errors import StorageUnavailable
from workers.results import ResultStore, is_job_id

logger = logging.getLogger(__name__)

_CONFIG = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1}}
_NUM_CONNECTS = 3
_LIBRARIES = ("botocore", "aiobotocore", "s3fs")  # below a warning they log requests, with session tokens
_CHECK_HOLDS_S = 5.0  # as a load balancer asks every second or so, and a check is three requests
_SWEEPS_PER_LIFE = 10  # as a sweep lists all that there is
_NUM_TRIES = 3  # of a write that meets another of the same object
_ADVICE = "Check the address, the credentials, and AWS_ENDPOINT_URL where it isn't Amazon's"


class BucketResults(ResultStore):
    """Objects `<prefix>/<2 digits>/<job id>/<index>.<format>`, and `codes.json` beside them.

    An object is written by one conditional request (`If-None-Match: *`), so the first one stays, and a reader
    sees the whole or none. Credentials, region and endpoint come from where the AWS libraries look for them.
    """

    def __init__(self, address: str) -> None:
        for library in _LIBRARIES:
            logging.getLogger(library).setLevel(logging.WARNING)
        self._address = address
        self._root = address.removeprefix("s3://").rstrip("/")
        self._files = S3FileSystem(skip_instance_cache=True, use_listings_cache=False, config_kwargs=_CONFIG)
        self._files.retries = _NUM_CONNECTS
        self._sweeps_at = 0.0
        self._is_well_until = 0.0

    def check(self) -> None:
        """Try to write, and to write again, unless that went well a moment ago and nothing has failed since.

        Raises: StorageUnavailable when that fails, or the second takes the place of the first.
        """
        if time.monotonic() < self._is_well_until:
            return
        path = f"{self._root}/.check-{secrets.token_hex(8)}"
        with self._reaching():
            is_kept = self._create(path, b"1") and not self._create(path, b"2")
            self._files.rm_file(path)
        if not is_kept:
            raise StorageUnavailable(
                f"{self._address} (SMALTI_RESULT_STORE) ignores `If-None-Match: *`, so a result could be"
                " overwritten; use a store that has conditional writes"
            )
        self._is_well_until = time.monotonic() + _CHECK_HOLDS_S

    def remove(self, job_id: str) -> None:
        """Remove what is stored of one job, if there is anything.

        Raises: StorageUnavailable; JobNotFound when the job id can't be one.
        """
        with self._reaching():
            paths = self._files.find(self._folder_of(job_id))
            if paths:
                self._files.rm(paths)

    def sweep(self, older_than_s: float, is_kept: Callable[[str], bool] = lambda job_id: False) -> int:
        """Remove jobs whose last object was stored this long ago; return how many.

        Where it has been done a moment ago, nothing is done. is_kept: as in a folder.

        Raises: StorageUnavailable.
        """
        if time.monotonic() < self._sweeps_at:
            return 0
        self._sweeps_at = time.monotonic() + older_than_s / _SWEEPS_PER_LIFE
        oldest = time.time() - older_than_s
        with self._reaching():
            try:
                parts = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                self._files.info(self._root.partition("/")[0])  # an empty bucket is one, a missing one is not
                return 0
            return sum(self._sweep_part(part, oldest, is_kept) for part in parts)

    def _sweep_part(self, part: str, oldest: float, is_kept: Callable[[str], bool]) -> int:
        """Sweep the jobs below one address: a 256th of them, so that a listing stays small."""
        stored: dict[str, dict[str, float]] = defaultdict(dict)
        for path, info in self._files.find(part, detail=True).items():
            job_id = path.rpartition("/")[0].rpartition("/")[2]
            if is_job_id(job_id):
                stored[job_id][path] = info["LastModified"].timestamp()
        old = [job for job, paths in stored.items() if max(paths.values()) < oldest and not is_kept(job)]
        if old:
            self._files.rm([path for job in old for path in stored[job]])
        return len(old)

    def _names(self, job_id: str) -> list[str]:
        with self._reaching():
            try:
                paths = self._files.ls(self._folder_of(job_id), detail=False)
            except FileNotFoundError:
                return []
        return [path.rpartition("/")[2] for path in paths]

    def _read(self, job_id: str, name: str) -> bytes:
        path = f"{self._folder_of(job_id)}/{name}"
        try:
            with self._reaching():
                data: bytes = self._files.cat_file(path)
        except StorageUnavailable as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise error.__cause__ from None
            raise
        return data

    def _write_once(self, job_id: str, name: str, data: bytes) -> bytes:
        path = f"{self._folder_of(job_id)}/{name}"
        with self._reaching():
            if self._create(path, data):
                return data
            kept: bytes = self._files.cat_file(path)
            return kept

    def _create(self, path: str, data: bytes) -> bool:
        """Write an object, and say so; or that there is one.

        Raises: OSError, BotoCoreError.
        """
        for num_tries in range(1, _NUM_TRIES + 1):
            try:
                self._files.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno != errno.EBUSY or num_tries == _NUM_TRIES:  # 409: another write is under way
                    raise
            else:
                return True
        return False

    def _folder_of(self, job_id: str) -> str:
        return f"{self._root}/{self._checked(job_id)}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Say what went wrong in words for whoever runs the service; the rest is in the log.

        Raises: StorageUnavailable.
        """
        try:
            yield
        except (OSError, BotoCoreError) as error:
            match error:
                case NoCredentialsError():
                    what = "no credentials were found"
                case PermissionError():
                    what = "it refuses the credentials"
                case FileNotFoundError():
                    what = "there is no such bucket"
                case _:
                    what = f"it does not answer as it should ({type(error).__name__})"
            self._is_well_until = 0.0
            logger.warning("%s: %s", self._address, error)
            raise StorageUnavailable(f"{self._address} (SMALTI_RESULT_STORE): {what}. {_ADVICE}") from error
