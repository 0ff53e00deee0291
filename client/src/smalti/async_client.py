"""The client for asyncio: the same methods, to be awaited."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from itertools import islice
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

import httpx

from smalti.batch import AsyncBatch
from smalti.batches import Rows, batch_call, look_up_batch, make_batch
from smalti.calls import upload_of
from smalti.encoding import encode_all
from smalti.errors import SmaltiError
from smalti.fields import DecodeFields, Encoded, EncodeFields, GenerateFields, Operation, Source
from smalti.job import AsyncJob
from smalti.many import check_many, fields_of, total_of
from smalti.models import BatchInfo, File, Health, JobInfo, Pipeline, Result
from smalti.pages import listed
from smalti.progress import Bar
from smalti.running import AsyncIO
from smalti.service import (
    DEFAULT_REQUEST_TIMEOUT_S,
    DEFAULT_RETRY_S,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    Service,
)


class AsyncClient:
    """Talks to a Smalti service, on one event loop.

    timeout_s: how long to wait for a job; a job that takes longer goes on, see ``WaitTimeout``. retry_s: how
    long a service that is full, not ready or gone is tried again. request_timeout_s: how long one answer may
    take. http: to bring certificates, proxies or a transport of your own; it stays yours to close.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry_s: float = DEFAULT_RETRY_S,
        request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._owned: httpx.AsyncClient | None = None
        if http is None:
            http = self._owned = httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=32))
        self._timeout_s = timeout_s
        self._service = Service(AsyncIO(http), base_url, api_key, retry_s, request_timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._owned is not None:
            await self._owned.aclose()

    async def generate(
        self,
        prompt: str | None = None,
        *,
        timeout_s: float | None = None,
        progress: bool = False,
        cancel_on_timeout: bool = False,
        **fields: Unpack[GenerateFields],
    ) -> Result:
        """Generate outputs of a prompt or of labels, and fetch them.

        Raises: InvalidRequest, JobFailed, WaitTimeout, ConnectionFailed; all are SmaltiError.
        """
        return await self._work(
            "generate", {"prompt": prompt, **fields}, timeout_s, progress, cancel_on_timeout
        )

    async def encode(
        self,
        source: Source | Sequence[Source],
        *,
        timeout_s: float | None = None,
        progress: bool = False,
        cancel_on_timeout: bool = False,
        **fields: Unpack[EncodeFields],
    ) -> Result:
        """Turn a picture, or a list of them, into codes: paths, bytes, images, arrays of pixels, uploads.

        More than one request takes (64 pictures, 64 MiB) become several jobs, and one result in their order.

        Raises: as ``generate``; UnusableSource, also for a path that can't be read.
        """
        work = encode_all(
            self._service,
            {"source": source, **fields},
            self._timeout_s if timeout_s is None else timeout_s,
            progress=progress,
            cancel_on_timeout=cancel_on_timeout,
        )
        return await work

    async def decode(
        self,
        codes: Encoded,
        *,
        timeout_s: float | None = None,
        progress: bool = False,
        cancel_on_timeout: bool = False,
        **fields: Unpack[DecodeFields],
    ) -> Result:
        """Turn codes into pictures, and fetch them: what ``encode`` gave, or an array with its ``tokenizer``.

        Raises: as ``generate``; NoBytes for a result without codes.
        """
        given = {"codes": codes, **fields}
        return await self._work("decode", given, timeout_s, progress, cancel_on_timeout)

    async def _work(
        self,
        operation: Operation,
        fields: Mapping[str, Any],
        timeout_s: float | None,
        progress: bool,
        cancel_on_timeout: bool,
    ) -> Result:
        return await self._service.work(
            operation,
            fields,
            self._timeout_s if timeout_s is None else timeout_s,
            progress=progress,
            cancel_on_timeout=cancel_on_timeout,
        )

    @overload
    def map(
        self,
        operation: Operation,
        requests: Iterable[Any],
        *,
        concurrency: int = ...,
        progress: bool = ...,
        return_errors: Literal[False] = False,
        **fields: Any,
    ) -> AsyncGenerator[Result]: ...
    @overload
    def map(
        self,
        operation: Operation,
        requests: Iterable[Any],
        *,
        concurrency: int = ...,
        progress: bool = ...,
        return_errors: bool,
        **fields: Any,
    ) -> AsyncGenerator[Result | SmaltiError]: ...
    def map(
        self,
        operation: Operation,
        requests: Iterable[Any],
        *,
        concurrency: int = 8,
        progress: bool = False,
        return_errors: bool = False,
        **fields: Any,
    ) -> AsyncGenerator[Result | SmaltiError]:
        """Yield the results of many requests in their order, while others are under way.

        requests: prompts, sources or codes, or mappings of fields, which go before ``fields``; read only as
        far as needed, so they may be endless. return_errors: yield the error of a request that fails, instead
        of raising it, which gives up those that wait.
        """
        check_many(requests, concurrency)
        return self._map(operation, requests, concurrency, progress, return_errors, fields)

    async def _map(
        self,
        operation: Operation,
        requests: Iterable[Any],
        concurrency: int,
        progress: bool,
        return_errors: bool,
        fields: Mapping[str, Any],
    ) -> AsyncGenerator[Result | SmaltiError]:
        async def work(request: Any) -> Result | SmaltiError:
            try:
                async with slots:
                    given = {**fields, **fields_of(operation, request)}
                    return await self._service.work(operation, given, self._timeout_s)
            except SmaltiError as error:
                if return_errors:
                    return error
                raise

        waiting: deque[asyncio.Task[Result | SmaltiError]] = deque()
        remaining = iter(requests)
        slots = asyncio.Semaphore(concurrency)
        try:
            with Bar(operation, is_on=progress, total=total_of(requests)) as bar:
                while True:
                    for request in islice(remaining, 2 * concurrency - len(waiting)):
                        waiting.append(asyncio.create_task(work(request)))
                    if not waiting:
                        return
                    result = await waiting[0]
                    waiting.popleft()
                    bar.count()
                    yield result
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def submit(
        self, operation: Operation, *, idempotency_key: str | None = None, **fields: Any
    ) -> AsyncJob:
        """Make a job and return at once. fields: of generate, encode (``source``) or decode (``codes``).

        idempotency_key: drawn when left out; the same key makes one job, where the service knows such keys.
        """
        info = await self._service.submit(operation, fields, idempotency_key)
        return AsyncJob(self._service, info, self._timeout_s)

    async def job(self, job_id: str) -> AsyncJob:
        """Look up a job. Raises: NotFound."""
        return AsyncJob(self._service, await self._service.look_up(job_id), self._timeout_s)

    async def jobs(
        self, *, status: str | None = None, operation: Operation | None = None
    ) -> AsyncGenerator[AsyncJob]:
        """Yield the API key's jobs, the newest first; the service is asked for more as they are needed."""
        filters = {"status": status, "operation": operation}
        async with aclosing(listed(self._service.connection, "jobs", JobInfo, filters)) as found:
            async for info in found:
                yield AsyncJob(self._service, info, self._timeout_s)

    async def retry(self, job: AsyncJob | str) -> AsyncJob:
        """Have a failed job done again, as a new one. Raises: RequestFailed for one that has not failed."""
        info = await self._service.retry(job if isinstance(job, str) else job.id)
        return AsyncJob(self._service, info, self._timeout_s)

    async def batch(
        self,
        rows: Rows,
        *,
        operation: Operation = "generate",
        idempotency_key: str | None = None,
        webhook_url: str | None = None,
        **fields: Any,
    ) -> AsyncBatch:
        """Send many requests at once, and return their batch: at most 100,000, and 64 MiB.

        rows: the path of a file of JSON Lines, or an upload of one; or requests as ``map`` takes them, or
        rows as such a file has them. fields: of each request that has none of its own. idempotency_key: as
        for ``submit``; the digest of a file makes one batch of it, however often this is run. webhook_url:
        where the end of the batch is told.

        Raises: InvalidRequest; UnusableSource.
        """
        call = batch_call(rows, operation, fields, idempotency_key, webhook_url)
        return AsyncBatch(self._service, await make_batch(self._service.connection, call))

    async def get_batch(self, batch_id: str) -> AsyncBatch:
        """Look up a batch. Raises: NotFound."""
        return AsyncBatch(self._service, await look_up_batch(self._service.connection, batch_id))

    async def batches(self, *, status: str | None = None) -> AsyncGenerator[AsyncBatch]:
        """Yield the API key's batches, the newest first."""
        filters = {"status": status}
        async with aclosing(listed(self._service.connection, "batches", BatchInfo, filters)) as found:
            async for info in found:
                yield AsyncBatch(self._service, info)

    async def upload(self, source: Source, *, name: str | None = None, media_type: str | None = None) -> File:
        """Send a file to be kept, at most 64 MiB; requests then take it as a source.

        name and media_type: as the path says when left out. Raises: UnusableSource; InvalidRequest.
        """
        return await self._service.upload(upload_of(source, name, media_type))

    async def files(self) -> AsyncGenerator[File]:
        """Yield the API key's files, the newest first."""
        async with aclosing(listed(self._service.connection, "files", File)) as found:
            async for info in found:
                yield info

    async def file(self, file_id: str) -> File:
        """Look up a file. Raises: NotFound."""
        return await self._service.file(file_id)

    async def delete(self, file: File | str) -> None:
        """Remove a file. Raises: NotFound."""
        await self._service.delete_file(file if isinstance(file, str) else file.id)

    async def fetch(self, result: Result) -> Result:
        """Get the bytes of outputs that are not here, such as those of a result that was kept as JSON."""
        await self._service.fetch(result)
        return result

    async def pipelines(self) -> list[Pipeline]:
        """Return what there is to ask for, the default first."""
        return await self._service.pipelines()

    async def load(self, pipeline: str) -> Pipeline:
        """Have workers keep a pipeline in memory, whatever else is asked for; ``loads`` says where it is."""
        return await self._service.order(pipeline, "load")

    async def unload(self, pipeline: str) -> Pipeline:
        """Have workers let go of a pipeline once its jobs have ended; the next job loads it again."""
        return await self._service.order(pipeline, "unload")

    async def health(self) -> Health:
        """Return whether a job would be worked on now; it raises only where nothing answers."""
        return await self._service.health()
