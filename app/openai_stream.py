"""Pictures as OpenAI streams them: some on their way, then each when it is there."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from time import time
from typing import Literal

from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import problem_of
from app.event_stream import EVENT_STREAM, HEADERS, KEEP_ALIVE, with_signs_of_life
from app.openai_errors import failure_of_problem
from app.openai_images import (
    EditsRequest,
    OutputFormat,
    VariationsRequest,
    description_of,
    format_of,
    in_base64,
    warnings_of,
)
from app.services import Services
from app.submit import CANCELLED, Submission
from models.media.image import IMAGE
from models.spec import PipelineSpec
from workers.errors import ServiceError
from workers.messages import JobError, JobView, Output, PreviewImage

STOPPING = "the server is stopping; send the request again"


class PartialImage(BaseModel):
    """A picture on its way: small, and as it would be if it ended now."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"] = (
        "image_generation.partial_image"
    )
    b64_json: str
    partial_image_index: int = Field(description="From 0, over the whole stream.")
    index: int = Field(description="Which of the pictures that were asked for.")
    created_at: int
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    size: str
    quality: Literal["auto"] = "auto"


class CompletedImage(BaseModel):
    """A picture."""

    type: Literal["image_generation.completed", "image_edit.completed"] = "image_generation.completed"
    b64_json: str
    index: int = Field(description="Which of the pictures that were asked for.")
    created_at: int
    background: Literal["opaque", "transparent"]
    output_format: OutputFormat
    size: str
    quality: Literal["auto"] = "auto"
    model: str
    seed: int | None
    warnings: list[str] = []


def stream_images(
    submission: Submission,
    request: VariationsRequest,
    spec: PipelineSpec,
    services: Services,
    *,
    keeps_job: bool,
) -> Response:
    """Answer with the events of a job. keeps_job: also where the client goes away before its end."""
    events = _events(submission.job.id, request, spec, services)
    headers = {**HEADERS, **submission.headers, "Smalti-Job-Id": submission.job.id}
    if keeps_job:
        return StreamingResponse(events, headers=headers, media_type=EVENT_STREAM)
    return _JobEndsWithStream(events, submission.job.id, services, headers)


class _JobEndsWithStream(StreamingResponse):
    """A stream whose job is cancelled when it ends, should the job still be there."""

    def __init__(
        self, events: AsyncIterator[str], job_id: str, services: Services, headers: dict[str, str]
    ) -> None:
        super().__init__(events, headers=headers, media_type=EVENT_STREAM)
        self._job_id = job_id
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with suppress(ServiceError):
                await self._services.queue.cancel(self._job_id)


async def _events(
    job_id: str, request: VariationsRequest, spec: PipelineSpec, services: Services
) -> AsyncIterator[str]:
    num_partial = 0
    async with aclosing(with_signs_of_life(services.queue.events(job_id), services)) as following:
        async for event in following:
            if event is None:
                yield KEEP_ALIVE
            elif event.preview is not None and num_partial < (request.partial_images or 0):
                yield _partial(event.preview, num_partial, request)
                num_partial += 1
            elif event.job is not None:
                async for text in _end(event.job, request, spec, services):
                    yield text
                return
    yield _failed(job_id, JobError(code="not_ready", message=STOPPING))


async def _end(
    job: JobView, request: VariationsRequest, spec: PipelineSpec, services: Services
) -> AsyncIterator[str]:
    """Yield the pictures of a job that has ended, and then why some failed."""
    if job.result is None:
        yield _failed(job.id, job.error or CANCELLED)
        return
    try:
        for output in job.result.outputs:
            if output.error is None:
                file = await asyncio.to_thread(services.results.read, job.id, output.sample)
                yield _completed(file.data, output, job, request, spec)
    except ServiceError as error:
        yield _failed(job.id, JobError(code=error.code, message=str(error)))
        return
    errors = [output.error for output in job.result.outputs if output.error is not None]
    if errors:
        yield _failed(job.id, errors[0])


def _partial(preview: PreviewImage, number: int, request: VariationsRequest) -> str:
    info = IMAGE.info(base64.b64decode(preview.image))
    return event_text(
        PartialImage(
            type="image_edit.partial_image" if _is_edit(request) else "image_generation.partial_image",
            b64_json=preview.image,
            partial_image_index=number,
            index=preview.index,
            created_at=int(time()),
            output_format=format_of(info.media_type),
            size=f"{info.width_px}x{info.height_px}",
        )
    )


def _completed(
    data: bytes, output: Output, job: JobView, request: VariationsRequest, spec: PipelineSpec
) -> str:
    assert job.result is not None
    return event_text(
        CompletedImage(
            type="image_edit.completed" if _is_edit(request) else "image_generation.completed",
            **description_of(request, spec),
            b64_json=in_base64(data),
            index=output.sample,
            created_at=int((job.ended_at or job.created_at).timestamp()),
            model=spec.name,
            seed=job.result.seed,
            warnings=warnings_of(request, spec, job),
        )
    )


def _is_edit(request: VariationsRequest) -> bool:
    return isinstance(request, EditsRequest)


def event_text(event: PartialImage | CompletedImage) -> str:
    """Return an event as it is sent."""
    return f"event: {event.type}\ndata: {event.model_dump_json()}\n\n"


def _failed(job_id: str, error: JobError) -> str:
    _, failure = failure_of_problem(problem_of(error.code, error.message, job_id=job_id))
    return f"event: error\ndata: {failure.model_dump_json()}\n\n"
