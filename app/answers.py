"""Answer a request for work: queue it, wait if the client prefers so, and send the job or its image."""

import asyncio
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.errors import NotAcceptable, job_problem_response
from app.negotiation import JSON_MEDIA_TYPE, Preferences, best_media_type, parse_prefer
from app.services import Services
from workers.images import MEDIA_TYPES
from workers.messages import (
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    GenerateResult,
    JobError,
    JobStatus,
    JobView,
    Request,
)

_FORMATS = {media_type: format for format, media_type in MEDIA_TYPES.items()}
_VARY = "Accept, Prefer"
_CANCELLED = JobError(code="job_cancelled", message="the job was cancelled")


@dataclass(frozen=True)
class _Wanted:
    """The request as it is to be queued, and how its answer is to look."""

    request: Request
    sends_image: bool


async def answer(http: HttpRequest, request: Request, services: Services) -> Response:
    """Queue a request and answer: the job, its finished state, or its image, as the headers ask for.

    Raises: NotAcceptable, InvalidRequest, QueueFull, QueueUnavailable.
    """
    wanted = _negotiate(http, request)
    preferences = parse_prefer(http.headers.getlist("prefer"))
    wait_s = _wait_s(preferences, wanted, services)
    job = await services.queue.submit(services.catalog.resolve(wanted.request))
    if wait_s:
        job = await wait_for(http, job, wait_s, preferences, services)
    headers = {"Vary": _VARY}
    if preferences.wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    match job.status:
        case JobStatus.FAILED | JobStatus.CANCELLED:
            return job_problem_response(job.id, job.error or _CANCELLED)
        case JobStatus.SUCCEEDED if wanted.sends_image:
            return await _image_response(job, headers, services)
        case JobStatus.SUCCEEDED:
            return job_response(job, 200, headers | {"Content-Location": f"/jobs/{job.id}"})
        case _:
            return job_response(job, 202, headers | {"Location": f"/jobs/{job.id}"})


def job_response(job: JobView, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with a job as it is."""
    return Response(job.model_dump_json(), status, headers, media_type=JSON_MEDIA_TYPE)


def _negotiate(http: HttpRequest, request: Request) -> _Wanted:
    """Choose JSON or an image by `Accept`; an image type chooses the format that the body left open.

    Raises: NotAcceptable.
    """
    accept = ",".join(http.headers.getlist("accept")) or None
    offered = [JSON_MEDIA_TYPE]
    if not isinstance(request, EncodeRequest):
        offered.append(MEDIA_TYPES[request.format])
        if "format" not in request.model_fields_set:
            offered += [media_type for media_type in _FORMATS if media_type not in offered]
    chosen = best_media_type(accept, offered)
    if chosen is None:
        raise NotAcceptable(f"Accept: this answer can be {', '.join(offered)}; got {(accept or '')[:200]}")
    if chosen == JSON_MEDIA_TYPE or isinstance(request, EncodeRequest):
        return _Wanted(request, sends_image=False)
    field, num_images = _num_images(request)
    if num_images != 1:
        raise NotAcceptable(
            f"Accept: an answer of {chosen} is one image, but {field} asks for {num_images}; ask for one,"
            f" or accept {JSON_MEDIA_TYPE} and get each image by its url"
        )
    return _Wanted(request.model_copy(update={"format": _FORMATS[chosen]}), sends_image=True)


def _num_images(request: GenerateRequest | DecodeRequest) -> tuple[str, int]:
    if isinstance(request, GenerateRequest):
        return "num_images", request.num_images
    return "codes", len(request.codes)


def _wait_s(preferences: Preferences, wanted: _Wanted, services: Services) -> float:
    settings = services.settings
    if preferences.wait_s is not None:
        return min(preferences.wait_s, settings.max_wait_s)
    return settings.default_wait_s if wanted.sends_image else 0.0


async def wait_for(
    http: HttpRequest, job: JobView, wait_s: float, preferences: Preferences, services: Services
) -> JobView:
    """Wait for a job as long as its client and this process are there.

    A client that goes away cancels its job if it asked for that.
    """
    finished = asyncio.ensure_future(services.queue.wait(job.id, wait_s))
    gone = asyncio.ensure_future(_disconnected(http))
    ending = asyncio.ensure_future(services.is_ending.wait())
    try:
        await asyncio.wait((finished, gone, ending), return_when=asyncio.FIRST_COMPLETED)
        if finished.done():
            return finished.result()
        if gone.done() and preferences.cancels_on_disconnect:
            return await services.queue.cancel(job.id)
        return await services.queue.get(job.id)
    finally:
        for task in (finished, gone, ending):
            task.cancel()


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _image_response(job: JobView, headers: dict[str, str], services: Services) -> Response:
    artifact = await asyncio.to_thread(services.artifacts.read, job.id, 0)
    headers = headers | {
        "ETag": f'"{artifact.sha256}"',
        "Content-Location": f"/jobs/{job.id}/images/0",
        "Smalti-Job-Id": job.id,
    }
    if isinstance(job.result, GenerateResult):
        headers["Smalti-Seed"] = str(job.result.seed)
    return Response(artifact.data, 200, headers, media_type=artifact.media_type)
