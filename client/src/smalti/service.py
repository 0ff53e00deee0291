"""All that is said to the service, once for both clients."""

import hashlib
from collections.abc import Mapping
from contextlib import aclosing
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal
from urllib.parse import quote

from pydantic import TypeAdapter

from smalti.arguments import check_seconds
from smalti.calls import Call, FormFile, key_of, work_call
from smalti.connection import Connection, ConnectionConfig, read
from smalti.errors import AnswerUnreadable, JobCancelled, JobFailed, RequestFailed, WaitTimeout
from smalti.fields import Operation
from smalti.following import JOB, follow, look_up
from smalti.models import File, Health, JobInfo, Output, Pipeline, Result
from smalti.progress import Bar
from smalti.running import IO

_PIPELINES = TypeAdapter(list[Pipeline])
_PIPELINE = TypeAdapter(Pipeline)
_HEALTH = TypeAdapter(Health)
_FILE = TypeAdapter(File)

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 600.0
DEFAULT_RETRY_S = 60.0
DEFAULT_REQUEST_TIMEOUT_S = 60.0
QUICK_S = 2.0  # a job that ends in this time needs no second request


class Service:
    """A conversation with one service.

    Every method raises ConnectionFailed, RequestFailed and AnswerUnreadable, beside what it names.
    """

    def __init__(
        self, io: IO, base_url: str, api_key: str | None, retry_s: float, request_timeout_s: float
    ) -> None:
        agent = f"smalti-client/{_version()}"
        config = ConnectionConfig(base_url, api_key, retry_s, request_timeout_s, agent)
        self.connection = Connection(io, config)
        self._request_timeout_s = request_timeout_s

    async def work(
        self,
        operation: Operation,
        fields: Mapping[str, Any],
        timeout_s: float,
        *,
        progress: bool = False,
        cancel_on_timeout: bool = False,
    ) -> Result:
        """Make a job, wait for it, and return what came of it; a quick one takes one request.

        fields: may hold an ``idempotency_key``, too. Raises: as ``submit``, ``wait`` and ``result_of``.
        """
        check_seconds("timeout_s", timeout_s)
        fields = dict(fields)
        key = fields.pop("idempotency_key", None)
        wait_s = 0.0 if progress else max(0.0, min(QUICK_S, timeout_s, self._request_timeout_s / 2))
        job = await self.submit(operation, fields, key, wait_s)
        job = await self.wait(
            job, timeout_s, waited_s=wait_s, progress=progress, cancel_on_timeout=cancel_on_timeout
        )
        return await self.result_of(job, fetch=True)

    async def submit(
        self, operation: Operation, fields: Mapping[str, Any], idempotency_key: str | None, wait_s: float = 0
    ) -> JobInfo:
        """Make a job, and return it: as it has ended, if it does so in time.

        Raises: UnusableSource; NoBytes; MissingPackage; AnswerLost.
        """
        call = work_call(operation, fields, idempotency_key, wait_s)
        try:
            return read(await self.connection.request(call), JOB)
        except RequestFailed as failure:
            if failure.job_id is None:
                raise
            return await self.look_up(failure.job_id)  # it was made, and has failed

    async def retry(self, job_id: str) -> JobInfo:
        """Make a new job of a failed one, and return it. Raises: NotFound; RequestFailed."""
        call = Call("POST", f"jobs/{job_id}/retry", {"Idempotency-Key": key_of(None)})
        return read(await self.connection.request(call), JOB)

    async def upload(self, file: FormFile) -> File:
        """Send a file to be kept. Raises: InvalidRequest where it is too large."""
        return read(await self.connection.request(Call("POST", "files", files=[file])), _FILE)

    async def file(self, file_id: str) -> File:
        """Look up a file. Raises: NotFound."""
        return read(await self.connection.request(Call("GET", f"files/{file_id}")), _FILE)

    async def delete_file(self, file_id: str) -> None:
        """Remove a file. Raises: NotFound."""
        await self.connection.request(Call("DELETE", f"files/{file_id}"))

    async def look_up(self, job_id: str) -> JobInfo:
        """Return a job as it is. Raises: NotFound."""
        return await look_up(self.connection, job_id)

    async def cancel(self, job_id: str) -> JobInfo:
        """Cancel a job, and return it as it is then; one that has ended stays so. Raises: NotFound."""
        return read(await self.connection.request(Call("DELETE", f"jobs/{job_id}")), JOB)

    async def wait(
        self,
        job: JobInfo,
        timeout_s: float,
        *,
        waited_s: float = 0,
        progress: bool,
        cancel_on_timeout: bool,
    ) -> JobInfo:
        """Return a job once it has ended; waited_s: of the time, what is over. Raises: WaitTimeout."""
        with Bar(f"{job.operation} {job.id[:8]}", is_on=progress) as bar:
            if not job.has_ended:
                async with aclosing(follow(self.connection, job.id, timeout_s - waited_s)) as events:
                    async for event in events:
                        bar.show(event)
                        job = event.job or job.model_copy(update={"status": event.status})
        if job.has_ended:
            return job
        if cancel_on_timeout:
            job = await self.cancel(job.id)
        raise WaitTimeout(job, timeout_s, is_cancelled=cancel_on_timeout)

    async def result_of(self, job: JobInfo, *, fetch: bool) -> Result:
        """Return what came of a job that has ended. Raises: JobFailed; JobCancelled."""
        if job.status == "cancelled":
            raise JobCancelled(job)
        if job.status != "succeeded" or job.result is None:
            raise JobFailed(job)
        if fetch:
            await self.fetch(job.result)
        return job.result

    async def fetch(self, result: Result) -> None:
        """Get the bytes of all outputs that have any, and latents, if not fetched yet. Raises: NotFound."""
        for output in result.outputs:
            if output.url is not None and not output.is_fetched:
                output.take(await self._bytes_of(output, output.url))
        latents = result.latents
        if latents is not None and latents.url is not None and not latents.is_fetched:
            latents.take((await self.connection.request(Call("GET", latents.url))).content)

    async def pipelines(self) -> list[Pipeline]:
        """Return what there is to ask for, the default first."""
        return read(await self.connection.request(Call("GET", "pipelines")), _PIPELINES)

    async def order(self, pipeline: str, order: Literal["load", "unload"]) -> Pipeline:
        """Return a pipeline, which workers were told to keep in memory or to let go of."""
        path = f"pipelines/{quote(pipeline, safe='')}/{order}"
        return read(await self.connection.request(Call("POST", path)), _PIPELINE)

    async def health(self) -> Health:
        """Return whether a job would be worked on now."""
        try:
            answer = await self.connection.request(Call("GET", "health/ready"), retry_s=0)
        except RequestFailed as failure:
            if failure.status != 503:
                raise
            return Health(is_ready=False, detail=failure.detail)
        return read(answer, _HEALTH)

    async def _bytes_of(self, output: Output, url: str) -> bytes:
        data = (await self.connection.request(Call("GET", url))).content
        if output.sha256 is not None and hashlib.sha256(data).hexdigest() != output.sha256:
            raise AnswerUnreadable(f"{url}: the bytes that came are not the output's: their sha256 differs")
        return data


def _version() -> str:
    try:
        return version("smalti-client")
    except PackageNotFoundError:  # run from its source
        return "0"
