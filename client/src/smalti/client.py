"""The client that blocks."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

import httpx

from smalti.batch import Batch
from smalti.batches import Rows, batch_call, look_up_batch, make_batch
from smalti.calls import upload_of
from smalti.encoding import encode_all
from smalti.errors import SmaltiError
from smalti.fields import DecodeFields, Encoded, EncodeFields, GenerateFields, Operation, Source
from smalti.job import Job
from smalti.many import check_many, fields_of, total_of
from smalti.models import BatchInfo, File, Health, JobInfo, Pipeline, Result
from smalti.pages import listed
from smalti.progress import Bar
from smalti.running import SyncIO, iterate, run
from smalti.service import (
    DEFAULT_REQUEST_TIMEOUT_S,
    DEFAULT_RETRY_S,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    Service,
)


class Client:
    """Talks to a Smalti service; may be used by several threads.

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
        http: httpx.Client | None = None,
    ) -> None:
        self._owned: httpx.Client | None = None
        if http is None:
            http = self._owned = httpx.Client(limits=httpx.Limits(max_keepalive_connections=32))
        self._timeout_s = timeout_s
        self._service = Service(SyncIO(http), base_url, api_key, retry_s, request_timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._owned is not None:
            self._owned.close()

    def generate(
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
        return self._work("generate", {"prompt": prompt, **fields}, timeout_s, progress, cancel_on_timeout)

    def encode(
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
        return run(work)

    def decode(
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
        return self._work("decode", {"codes": codes, **fields}, timeout_s, progress, cancel_on_timeout)

    def _work(
        self,
        operation: Operation,
        fields: Mapping[str, Any],
        timeout_s: float | None,
        progress: bool,
        cancel_on_timeout: bool,
    ) -> Result:
        work = self._service.work(
            operation,
            fields,
            self._timeout_s if timeout_s is None else timeout_s,
            progress=progress,
            cancel_on_timeout=cancel_on_timeout,
        )
        return run(work)

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
    ) -> Iterator[Result]: ...
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
    ) -> Iterator[Result | SmaltiError]: ...
    def map(
        self,
        operation: Operation,
        requests: Iterable[Any],
        *,
        concurrency: int = 8,
        progress: bool = False,
        return_errors: bool = False,
        **fields: Any,
    ) -> Iterator[Result | SmaltiError]:
        """Yield the results of many requests in their order, while others are under way.

        requests: prompts, sources or codes, or mappings of fields, which go before ``fields``; read only as
        far as needed, so they may be endless. return_errors: yield the error of a request that fails, instead
        of raising it, which gives up those that wait and waits for those under way.
        """
        check_many(requests, concurrency)
        return self._map(operation, requests, concurrency, progress, return_errors, fields)

    def _map(
        self,
        operation: Operation,
        requests: Iterable[Any],
        concurrency: int,
        progress: bool,
        return_errors: bool,
        fields: Mapping[str, Any],
    ) -> Iterator[Result | SmaltiError]:
        def work(request: Any) -> Result | SmaltiError:
            try:
                given = {**fields, **fields_of(operation, request)}
                return run(self._service.work(operation, given, self._timeout_s))
            except SmaltiError as error:
                if return_errors:
                    return error
                raise

        waiting: deque[Future[Result | SmaltiError]] = deque()
        remaining = iter(requests)
        pool = ThreadPoolExecutor(concurrency, "smalti")
        try:
            with Bar(operation, is_on=progress, total=total_of(requests)) as bar:
                while True:
                    for request in islice(remaining, 2 * concurrency - len(waiting)):
                        waiting.append(pool.submit(work, request))
                    if not waiting:
                        return
                    result = waiting.popleft().result()
                    bar.count()
                    yield result
        finally:
            pool.shutdown(cancel_futures=True)

    def submit(self, operation: Operation, *, idempotency_key: str | None = None, **fields: Any) -> Job:
        """Make a job and return at once. fields: of generate, encode (``source``) or decode (``codes``).

        idempotency_key: drawn when left out; the same key makes one job, where the service knows such keys.
        """
        info = run(self._service.submit(operation, fields, idempotency_key))
        return Job(self._service, info, self._timeout_s)

    def job(self, job_id: str) -> Job:
        """Look up a job. Raises: NotFound."""
        return Job(self._service, run(self._service.look_up(job_id)), self._timeout_s)

    def jobs(self, *, status: str | None = None, operation: Operation | None = None) -> Iterator[Job]:
        """Yield the API key's jobs, the newest first; the service is asked for more as they are needed."""
        filters = {"status": status, "operation": operation}
        for info in iterate(listed(self._service.connection, "jobs", JobInfo, filters)):
            yield Job(self._service, info, self._timeout_s)

    def retry(self, job: Job | str) -> Job:
        """Have a failed job done again, as a new one. Raises: RequestFailed for one that has not failed."""
        info = run(self._service.retry(job if isinstance(job, str) else job.id))
        return Job(self._service, info, self._timeout_s)

    def batch(
        self,
        rows: Rows,
        *,
        operation: Operation = "generate",
        idempotency_key: str | None = None,
        webhook_url: str | None = None,
        **fields: Any,
    ) -> Batch:
        """Send many requests at once, and return their batch: at most 100,000, and 64 MiB.

        rows: the path of a file of JSON Lines, or an upload of one; or requests as ``map`` takes them, or
        rows as such a file has them. fields: of each request that has none of its own. idempotency_key: as
        for ``submit``; the digest of a file makes one batch of it, however often this is run. webhook_url:
        where the end of the batch is told.

        Raises: InvalidRequest; UnusableSource.
        """
        call = batch_call(rows, operation, fields, idempotency_key, webhook_url)
        return Batch(self._service, run(make_batch(self._service.connection, call)))

    def get_batch(self, batch_id: str) -> Batch:
        """Look up a batch. Raises: NotFound."""
        return Batch(self._service, run(look_up_batch(self._service.connection, batch_id)))

    def batches(self, *, status: str | None = None) -> Iterator[Batch]:
        """Yield the API key's batches, the newest first."""
        filters = {"status": status}
        for info in iterate(listed(self._service.connection, "batches", BatchInfo, filters)):
            yield Batch(self._service, info)

    def upload(self, source: Source, *, name: str | None = None, media_type: str | None = None) -> File:
        """Send a file to be kept, at most 64 MiB; requests then take it as a source.

        name and media_type: as the path says when left out. Raises: UnusableSource; InvalidRequest.
        """
        return run(self._service.upload(upload_of(source, name, media_type)))

    def files(self) -> Iterator[File]:
        """Yield the API key's files, the newest first."""
        return iterate(listed(self._service.connection, "files", File))

    def file(self, file_id: str) -> File:
        """Look up a file. Raises: NotFound."""
        return run(self._service.file(file_id))

    def delete(self, file: File | str) -> None:
        """Remove a file. Raises: NotFound."""
        run(self._service.delete_file(file if isinstance(file, str) else file.id))

    def fetch(self, result: Result) -> Result:
        """Get the bytes of outputs that are not here, such as those of a result that was kept as JSON."""
        run(self._service.fetch(result))
        return result

    def pipelines(self) -> list[Pipeline]:
        """Return what there is to ask for, the default first."""
        return run(self._service.pipelines())

    def load(self, pipeline: str) -> Pipeline:
        """Have workers keep a pipeline in memory, whatever else is asked for; ``loads`` says where it is."""
        return run(self._service.order(pipeline, "load"))

    def unload(self, pipeline: str) -> Pipeline:
        """Have workers let go of a pipeline once its jobs have ended; the next job loads it again."""
        return run(self._service.order(pipeline, "unload"))

    def health(self) -> Health:
        """Return whether a job would be worked on now; it raises only where nothing answers."""
        return run(self._service.health())
