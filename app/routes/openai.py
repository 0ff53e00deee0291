"""OpenAI's Images API and list of models, for its unmodified clients."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.errors import InvalidFields, NotReady, job_problem_response
from app.field_errors import FieldError
from app.idempotency import idempotency_of
from app.keys import shown_address
from app.negotiation import JSON_MEDIA_TYPE
from app.openai_examples import IMAGES_ANSWER, IMAGES_EVENTS, IMAGES_EXAMPLES, MODELS, openai_failures
from app.openai_images import (
    MAX_SECONDS,
    EditsRequest,
    ImageData,
    ImagesAnswer,
    ImagesRequest,
    ModelInfo,
    ModelList,
    VariationsRequest,
    generate_request,
    images_answer,
    in_base64,
    models_of,
    pipeline_named,
    pipeline_of,
    wants_urls,
)
from app.openai_stream import STOPPING, CompletedImage, PartialImage, stream_images
from app.openapi import IDEMPOTENCY_KEY, Responses, event_stream, headers_of
from app.routes.bodies import FORM_MEDIA_TYPE, JsonRoute, takes, takes_json
from app.routes.forms import form_schema, read_fields, request_from
from app.services import Services, ServicesNeeded
from app.sources import SourceFile, store_sources
from app.submit import CANCELLED, submit
from models.spec import SPEC_FILE, PipelineSpec
from workers.errors import ServiceError
from workers.messages import EDIT_ROLES, JobStatus, JobView

_MARGIN_S = 10.0  # between the end of a job's time, and the end of the wait for it


_NO_MODEL = (404, "model_not_found", "model: there is no 'gpt-5'; known are emoji-64", "model")
_NO_IMAGE = (400, "invalid_request", "image: is required", "image")
_NO_FORM = (415, "unsupported_media_type", "Content-Type: send multipart/form-data, got none", None)
_PICTURE = {"image": "A PNG, JPEG or WebP file; also as `image[]`."}
_EDIT_FORM = form_schema(
    EditsRequest,
    _PICTURE | {"mask": "A picture of the same size, transparent where the image is drawn anew."},
    without=("labels",),
)
_VARIATION_FORM = form_schema(VariationsRequest, _PICTURE, without=("labels",))
_ANSWERS: Responses = {
    200: {
        "model": ImagesAnswer,
        "description": "The pictures; with `stream`, events: partial pictures, then each picture.",
        "content": {
            JSON_MEDIA_TYPE: {"example": IMAGES_ANSWER.model_dump(exclude_none=True)},
            **event_stream(IMAGES_EVENTS, PartialImage, CompletedImage),
        },
        "headers": headers_of("Idempotency-Replayed", "Smalti-Job-Id", "Smalti-Seed"),
    }
}
router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)


@router.post(
    "/images/generations",
    operation_id="openai_create_images",
    summary="Generate images, as OpenAI's clients ask for them",
    dependencies=[Depends(takes_json)],
    response_class=Response,
    responses=_ANSWERS
    | openai_failures(
        (400, "invalid_request", "n: should be less than or equal to 10, got 11", "n"),
        _NO_MODEL,
        (415, "unsupported_media_type", "Content-Type: send application/json, got text/plain", None),
        (429, "queue_full", "256 jobs wait, which is the most that may", None),
    ),
    openapi_extra={"parameters": [IDEMPOTENCY_KEY]},
)
async def create_images(
    http: HttpRequest,
    request: Annotated[ImagesRequest, Body(openapi_examples=IMAGES_EXAMPLES)],
    services: ServicesNeeded,
) -> Response:
    """Queue the request and answer with the pictures. The job is cancelled if the client goes away before.

    With an `Idempotency-Key` it goes on, so that the client finds it when it asks again.
    """
    return await _answer(http, request, services)


@router.post(
    "/images/edits",
    operation_id="openai_edit_images",
    summary="Edit an image, as OpenAI's clients ask for it",
    dependencies=[Depends(takes(FORM_MEDIA_TYPE))],
    response_class=Response,
    responses=_ANSWERS | openai_failures(_NO_IMAGE, _NO_MODEL, _NO_FORM),
    openapi_extra={
        "parameters": [IDEMPOTENCY_KEY],
        "requestBody": {"required": True, "content": {FORM_MEDIA_TYPE: {"schema": _EDIT_FORM}}},
    },
)
async def edit_images(http: HttpRequest, services: ServicesNeeded) -> Response:
    """Draw a picture anew: where its mask is transparent, or without one as much as `strength` says."""
    fields, files = await _read_form(http, ("image", "mask"))
    return await _answer(http, request_from(EditsRequest, fields), services, files)


@router.post(
    "/images/variations",
    operation_id="openai_vary_images",
    summary="Vary an image, as OpenAI's clients ask for it",
    dependencies=[Depends(takes(FORM_MEDIA_TYPE))],
    response_class=Response,
    responses=_ANSWERS | openai_failures(_NO_IMAGE, _NO_MODEL, _NO_FORM),
    openapi_extra={
        "parameters": [IDEMPOTENCY_KEY],
        "requestBody": {"required": True, "content": {FORM_MEDIA_TYPE: {"schema": _VARIATION_FORM}}},
    },
)
async def vary_images(http: HttpRequest, services: ServicesNeeded) -> Response:
    """Draw a picture anew, as much as `strength` says."""
    fields, files = await _read_form(http, ("image",))
    return await _answer(http, request_from(VariationsRequest, fields), services, files)


async def _read_form(http: HttpRequest, roles: Sequence[str]) -> tuple[dict[str, str], list[SourceFile]]:
    """Return the fields of a form, and its picture and mask.

    Raises: InvalidFields.
    """
    fields, parts = await read_fields(http, (*roles, "image[]"), len(roles))
    files = {"image" if name == "image[]" else name: data for name, data in parts}
    if len(files) < len(parts):
        raise InvalidFields([FieldError(field=parts[0][0], message="is there twice; send one")])
    if "labels" in fields:
        raise InvalidFields([FieldError(field="labels", message="a form has none; say it in the prompt")])
    if "image" not in files:
        raise InvalidFields([FieldError(field="image", message="is required")])
    image = SourceFile("image", files["image"])
    mask = [SourceFile("mask", files["mask"], role="transparency")] if "mask" in files else []
    return fields, [image, *mask]


async def _answer(
    http: HttpRequest, request: VariationsRequest, services: Services, files: Sequence[SourceFile] = ()
) -> Response:
    """Queue a request and answer with its pictures."""
    spec = pipeline_of(request.model, services.catalog)
    contents = [file.content for file in files if isinstance(file.content, bytes)]
    wanted = generate_request(request, spec, dict(zip(EDIT_ROLES, contents, strict=False)))
    if files:
        services.catalog.check(wanted)
    sources = await store_sources(files, spec, services) if files else []
    resolved = services.catalog.resolve(wanted, sources)
    idempotency = await idempotency_of(http, wanted, files)
    if request.stream:
        submission = await submit(http, resolved, services, idempotency)
        return stream_images(submission, request, spec, services, keeps_job=idempotency is not None)
    submission = await submit(
        http,
        resolved,
        services,
        idempotency,
        wait_s=MAX_SECONDS + _MARGIN_S,
        cancels_on_disconnect=idempotency is None,
    )
    job = submission.job
    if job.status == JobStatus.SUCCEEDED:
        base = str(http.base_url).rstrip("/") if wants_urls(request) else None
        headers = submission.headers | {"Smalti-Job-Id": job.id}
        return await _pictures(request, spec, job, base, headers, services)
    if job.status.is_terminal:
        return job_problem_response(job.id, job.error or CANCELLED, submission.headers)
    if idempotency is None:
        with suppress(ServiceError):
            await services.queue.cancel(job.id)
    raise NotReady(STOPPING)


async def _pictures(
    request: VariationsRequest,
    spec: PipelineSpec,
    job: JobView,
    base: str | None,
    headers: dict[str, str],
    services: Services,
) -> Response:
    """Answer with the pictures of a job. base: before their addresses; None for the pictures themselves."""
    assert job.result is not None

    def read() -> str:
        assert job.result is not None
        data, ttl_s = [], services.settings.result_ttl_s
        for output in job.result.outputs:
            if output.error is not None:
                data.append(ImageData(error=output.error))
            elif base is not None:
                data.append(ImageData(url=base + shown_address(output.url or "", ttl_s)))
            else:
                file = services.results.read(job.id, output.sample)
                data.append(ImageData(b64_json=in_base64(file.data)))
        return images_answer(request, spec, job, data).model_dump_json(exclude_none=True)

    headers = headers | {"Smalti-Seed": str(job.result.seed)}
    return Response(await asyncio.to_thread(read), 200, headers, media_type=JSON_MEDIA_TYPE)


@router.get(
    "/models",
    operation_id="openai_list_models",
    summary="List the pipelines that draw",
    responses=openai_failures() | {200: {"content": {JSON_MEDIA_TYPE: {"example": MODELS.model_dump()}}}},
)
async def list_models(services: ServicesNeeded) -> ModelList:
    """List the pipelines that draw; the first is what a request gets that names none."""
    return ModelList(data=[_model(spec.name, services) for spec in models_of(services.catalog)])


@router.get(
    "/models/{model}",
    operation_id="openai_get_model",
    summary="Look up a pipeline that draws",
    responses=openai_failures(_NO_MODEL)
    | {200: {"content": {JSON_MEDIA_TYPE: {"example": MODELS.data[0].model_dump()}}}},
)
async def get_model(
    model: Annotated[str, Path(description="A pipeline's name.", examples=["fashion-mnist"])],
    services: ServicesNeeded,
) -> ModelInfo:
    """Show a pipeline. OpenAI's own models are not among them, though requests may name them."""
    return _model(pipeline_named(model, services.catalog).name, services)


def _model(name: str, services: Services) -> ModelInfo:
    file = services.catalog[name].folder / SPEC_FILE
    return ModelInfo(id=name, created=int(file.stat().st_mtime))
