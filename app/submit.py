"""Answer a request for work: queue it, wait if the client prefers so, and send the job or its one output."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.codes import with_codes
from app.errors import NotAcceptable, job_problem_response
from app.idempotency import Idempotency, idempotency_of
from app.job_events import Watcher
from app.keys import current_owner
from app.latents import store_latents
from app.limits import keep_allowance
from app.negotiation import JSON_MEDIA_TYPE, Preferences, best_media_type, parse_prefer
from app.queue import new_job_id
from app.services import Services
from app.sources import SourceFile, store_sources
from app.webhooks.addresses import check_webhook
from models.media.base import medium_of
from models.spec import PipelineSpec
from workers.arrays import NPY_MEDIA_TYPE, codes_array, npy_bytes
from workers.errors import InternalError, JobNotRetryable
from workers.messages import (
    BlobReference,
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    JobError,
    JobStatus,
    JobView,
    Request,
    Resolved,
    Result,
    RetryRequest,
)

Done = TypeVar("Done")

_VARY = "Accept, Prefer"
_CLIENT_IS_GONE = 499  # which nobody reads
CANCELLED = JobError(code="job_cancelled", message="the job was cancelled")


@dataclass(frozen=True)
class _Negotiated:
    """The request with what was left open and chosen by now. media_type: of the answer."""

    request: Request
    media_type: str

    @property
    def is_json(self) -> bool:
        return self.media_type == JSON_MEDIA_TYPE


@dataclass(frozen=True)
class Submission:
    """A job as it was when the wait for it was over. is_replay: an earlier request with this key made it."""

    job: JobView
    is_replay: bool

    @property
    def headers(self) -> dict[str, str]:
        return {"Idempotency-Replayed": "true"} if self.is_replay else {}


async def answer(
    http: HttpRequest, request: Request, services: Services, files: Sequence[SourceFile] = ()
) -> Response:
    """Queue a request and answer: the job, its finished state, or its output, as the headers ask for.

    Raises: NotAcceptable, InvalidRequest, StorageFull, and what ``submit`` does.
    """
    spec = services.catalog.pipeline_for(request)
    check_webhook(request.webhook_url, services.settings)
    negotiated = _negotiate(http, request, spec)
    preferences = parse_prefer(http.headers.getlist("prefer"))
    wait_s = _wait_s(preferences, negotiated, services)
    sources = await _unless_gone(http, _stored(request, files, spec, services)) if files else []
    if sources is None:
        return Response(status_code=_CLIENT_IS_GONE)
    resolved = services.catalog.resolve(negotiated.request, sources)
    _check_num_outputs(negotiated, resolved)
    idempotency = await idempotency_of(http, request, files)
    cancels = preferences.cancels_on_disconnect
    submission = await submit(
        http,
        resolved,
        services,
        idempotency,
        wait_s=wait_s,
        cancels_on_disconnect=cancels,
        webhook_url=request.webhook_url,
    )
    job = submission.job
    headers = {"Vary": _VARY, **submission.headers}
    if preferences.wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    if job.status == JobStatus.SUCCEEDED and not negotiated.is_json:
        return await _output_response(http, job, headers, services)
    return await _submission_response(submission, headers, services)


async def _stored(
    request: Request, files: Sequence[SourceFile], spec: PipelineSpec, services: Services
) -> list[BlobReference]:
    """Return where what came in is stored: a file a sample, or one file of latents."""
    if isinstance(request, DecodeRequest):
        return await store_latents(files[0], spec, services)
    services.catalog.check(request)
    return await store_sources(files, spec, services)


async def answer_retry(http: HttpRequest, job_id: str, request: RetryRequest, services: Services) -> Response:
    """Queue the request of a failed job again, as a new job, and answer with it.

    Raises: JobNotFound, JobNotRetryable, StorageFull, and what ``submit`` does.
    """
    check_webhook(request.webhook_url, services.settings)
    idempotency = await idempotency_of(http, request, ())  # the address names the job, and so its request
    resolved = await services.queue.request_of(job_id)
    await asyncio.to_thread(_keep_sources, resolved, services)
    preferences = parse_prefer(http.headers.getlist("prefer"))
    wait_s = min(preferences.wait_s or 0, services.settings.max_wait_s)
    submission = await submit(
        http,
        resolved,
        services,
        idempotency,
        wait_s=wait_s,
        cancels_on_disconnect=preferences.cancels_on_disconnect,
        webhook_url=request.webhook_url,
    )
    headers = {"Vary": "Prefer", **submission.headers}
    if preferences.wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    return await _submission_response(submission, headers, services)


def _keep_sources(resolved: Resolved, services: Services) -> None:
    """Put the sources of a job again, so that they are there until the next job refers to them.

    Raises: JobNotRetryable.
    """
    try:
        for source in resolved.sources:
            services.blobs.put(services.blobs.read(source), source.media_type)
    except InternalError as error:
        raise JobNotRetryable(str(error)) from error


async def _submission_response(
    submission: Submission, headers: dict[str, str], services: Services
) -> Response:
    """Answer with a job, or with why it has no result."""
    job = submission.job
    match job.status:
        case JobStatus.FAILED | JobStatus.CANCELLED:
            return job_problem_response(job.id, job.error or CANCELLED, submission.headers)
        case JobStatus.SUCCEEDED:
            headers = headers | {"Content-Location": f"/jobs/{job.id}"}
            return await job_response(job, services, 200, headers)
        case _:
            return await job_response(job, services, 202, headers | {"Location": f"/jobs/{job.id}"})


async def submit(
    http: HttpRequest,
    resolved: Resolved,
    services: Services,
    idempotency: Idempotency | None,
    *,
    wait_s: float = 0,
    cancels_on_disconnect: bool = False,
    webhook_url: str | None = None,
) -> Submission:
    """Queue a job, or find the one that the key has made, and wait for it.

    Raises: QueueFull; RateLimitExceeded; QueueUnavailable; PipelineNotServed; IdempotencyKeyReused.
    """
    job_id, allowance = new_job_id(), services.limits.allowance()
    keep_allowance(http.scope, allowance)
    with services.queue.watch(job_id) if wait_s else nullcontext() as watcher:
        job = await services.queue.submit(
            resolved,
            job_id,
            idempotency,
            owner=current_owner(),
            allowance=allowance,
            webhook_url=webhook_url,
        )
        is_replay = job.id != job_id
        if wait_s:
            known = watcher if resolved.deadline_s is None and not is_replay else None
            cancels = cancels_on_disconnect and not is_replay
            job = await wait_for(http, job, wait_s, services, known, cancels_on_disconnect=cancels)
    return Submission(job, is_replay)


async def job_response(
    job: JobView, services: Services, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Answer with a job as it is."""
    job = await with_codes(job, services)
    return Response(job.model_dump_json(), status, headers, media_type=JSON_MEDIA_TYPE)


async def wait_for(
    http: HttpRequest,
    job: JobView,
    wait_s: float,
    services: Services,
    watcher: Watcher | None = None,
    *,
    cancels_on_disconnect: bool = False,
) -> JobView:
    """Wait for a job as long as its client and this process are there.

    watcher: of a job without a deadline, from before it was submitted. cancels_on_disconnect: for the request
    that made the job; one that looks on must not end it.
    """
    finished = asyncio.ensure_future(services.queue.wait(job.id, wait_s, watcher))
    gone = asyncio.ensure_future(_disconnected(http))
    ending = asyncio.ensure_future(services.is_ending.wait())
    try:
        await asyncio.wait((finished, gone, ending), return_when=asyncio.FIRST_COMPLETED)
        if finished.done():
            return finished.result()
        if gone.done() and cancels_on_disconnect:
            return await services.queue.cancel(job.id)
        return await services.queue.get(job.id)
    finally:
        for task in (finished, gone, ending):
            task.cancel()


def _negotiate(http: HttpRequest, request: Request, spec: PipelineSpec) -> _Negotiated:
    """Choose JSON or a file by `Accept`; a file's type chooses the format that the body left open.

    Raises: NotAcceptable.
    """
    accept = ",".join(http.headers.getlist("accept")) or None
    formats: dict[str, str] = {NPY_MEDIA_TYPE: "npy"}  # by media type
    if not isinstance(request, EncodeRequest):
        formats = {kind: name for name, kind in medium_of(spec.medium.medium).formats.items()}
        if request.format in formats.values():
            formats = {kind: name for kind, name in formats.items() if name == request.format}
    offered = [JSON_MEDIA_TYPE, *formats]
    chosen = best_media_type(accept, offered)
    if chosen is None:
        raise NotAcceptable(f"Accept: this answer can be {', '.join(offered)}; got {(accept or '')[:200]}")
    if chosen != JSON_MEDIA_TYPE and not isinstance(request, EncodeRequest) and request.format is None:
        request = request.model_copy(update={"format": formats[chosen]})
    if isinstance(request, GenerateRequest):  # choosing takes a trial; an encode says that nobody chose
        request = request.model_copy(update={"pipeline": spec.name})
    return _Negotiated(request, chosen)


def _check_num_outputs(negotiated: _Negotiated, resolved: Resolved) -> None:
    """Check that an answer which is a file has one file to send.

    Raises: NotAcceptable.
    """
    if negotiated.is_json or resolved.num_samples == 1 or isinstance(negotiated.request, EncodeRequest):
        return
    match negotiated.request:
        case DecodeRequest():
            field = "codes" if negotiated.request.codes is not None else "latents"
        case GenerateRequest(num_outputs=None):
            field = "num_images"
        case _:
            field = "num_outputs"
    raise NotAcceptable(
        f"Accept: an answer of {negotiated.media_type} is one file, but {field} asks for"
        f" {resolved.num_samples}; ask for one, or accept {JSON_MEDIA_TYPE} and get each by its url"
    )


def _wait_s(preferences: Preferences, negotiated: _Negotiated, services: Services) -> float:
    settings = services.settings
    if preferences.wait_s is not None:
        return min(preferences.wait_s, settings.max_wait_s)
    return 0.0 if negotiated.is_json else settings.default_wait_s


async def _unless_gone(http: HttpRequest, work: Coroutine[Any, Any, Done]) -> Done | None:
    """Return what the work returns; None when the client goes away before, which cancels it."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.wait((working, gone))  # no decoder is left behind


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _output_response(
    http: HttpRequest, job: JobView, headers: dict[str, str], services: Services
) -> Response:
    """Answer with the one output of a job; with why it is missing where it failed.

    Raises: NotAcceptable for a job whose first request accepted another format.
    """
    assert job.result is not None
    if job.result.operation == "encode":
        return await _array_response(job.id, job.result, headers, services)
    if job.result.outputs and (error := job.result.outputs[0].error):
        return job_problem_response(job.id, error, headers)
    output = await asyncio.to_thread(services.results.read, job.id, 0)
    accept = ",".join(http.headers.getlist("accept"))
    if best_media_type(accept, [output.media_type]) is None:
        raise NotAcceptable(
            f"Accept: the Idempotency-Key has made job {job.id}, whose output is {output.media_type};"
            f" got {accept[:200]}"
        )
    headers = headers | {
        "ETag": f'"{output.sha256}"',
        "Content-Location": f"/jobs/{job.id}/outputs/0",
        "Smalti-Job-Id": job.id,
    }
    if job.result.seed is not None:
        headers["Smalti-Seed"] = str(job.result.seed)
    return Response(output.data, 200, headers, media_type=output.media_type)


async def _array_response(
    job_id: str, result: Result, headers: dict[str, str], services: Services
) -> Response:
    """Answer with the codes or latents of a job as one NumPy file; with why where a sample has none."""
    for output in result.outputs:
        if output.error is not None:
            return job_problem_response(job_id, output.error, headers)
    headers = headers | {"Smalti-Job-Id": job_id}
    if result.seed is not None:
        headers["Smalti-Seed"] = str(result.seed)
    if (info := result.codes) is not None:
        codes = await asyncio.to_thread(services.results.read_codes, job_id)
        data = await asyncio.to_thread(npy_bytes, codes_array(codes, info.codebook_size))
        headers |= {"Smalti-Tokenizer": info.tokenizer, "Content-Location": f"/jobs/{job_id}"}
    else:
        stored = await asyncio.to_thread(services.results.read_latents, job_id)
        data = stored.data
        headers |= {"Smalti-Tokenizer": stored.tokenizer, "Content-Location": f"/jobs/{job_id}/latents"}
    return Response(data, 200, headers, media_type=NPY_MEDIA_TYPE)
