"""The OpenAPI document: examples made from the real types, and a problem body for every failure."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.errors import PROBLEM_MEDIA_TYPE, FieldError, Problem, problem_of
from workers.images import MEDIA_TYPES
from workers.messages import (
    CodesInfo,
    DecodeRequest,
    DecodeResult,
    EncodeRequest,
    EncodeResult,
    GenerateRequest,
    GenerateResult,
    ImageReference,
    JobStatus,
    JobView,
    PipelineInfo,
    Progress,
)

Responses = dict[int | str, dict[str, Any]]

SCHEMAS = "#/components/schemas/{model}"
DESCRIPTION = """\
Generate images of a class or a prompt, turn an image into a small grid of codes, and codes into an image.

Every request for work becomes a **job**. The answer is `202` with the job and its `Location`; with
`Prefer: wait=30` it is the finished job, if it ends in time; with `Accept: image/*` it is the image itself.
The same request with the same seed gives the same bytes.

Failures are `application/problem+json`; match on `code`.
"""

_JOB_ID = "5f0c6a1e9b7d4c3e8a2f1b0d9e8c7a65"
_TOKENIZER = "0123456789abcdef"
_CODES = [[[17, 902], [4, 511]]]
_CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_STARTED = _CREATED + timedelta(milliseconds=20)
_ENDED = _CREATED + timedelta(milliseconds=400)

_IMAGE = ImageReference(
    url=f"/jobs/{_JOB_ID}/images/0",
    media_type="image/png",
    width_px=28,
    height_px=28,
    num_bytes=604,
    sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
)
QUEUED_JOB = JobView(
    id=_JOB_ID, operation="generate", status=JobStatus.QUEUED, created_at=_CREATED, queue_position=3
)
RUNNING_JOB = QUEUED_JOB.model_copy(
    update={
        "status": JobStatus.RUNNING,
        "started_at": _STARTED,
        "num_tries": 1,
        "queue_position": None,
        "progress": Progress(step=5, total=16),
        "seconds_left": 0.3,
    }
)
GENERATED_JOB = QUEUED_JOB.model_copy(
    update={
        "status": JobStatus.SUCCEEDED,
        "started_at": _STARTED,
        "ended_at": _ENDED,
        "num_tries": 1,
        "queue_position": None,
        "result": GenerateResult(pipeline="fashion-mnist", seed=7, images=[_IMAGE]),
    }
)
ENCODED_JOB = GENERATED_JOB.model_copy(
    update={
        "operation": "encode",
        "result": EncodeResult(
            pipeline="fashion-mnist", codes=_CODES, grid=(2, 2), codebook_size=1024, tokenizer=_TOKENIZER
        ),
    }
)
DECODED_JOB = GENERATED_JOB.model_copy(
    update={"operation": "decode", "result": DecodeResult(pipeline="fashion-mnist", images=[_IMAGE])}
)
PIPELINES = [
    PipelineInfo(
        name="emoji-64",
        class_names=(),
        style_names=("noto", "twemoji", "fluent-flat"),
        group_names=("animals-nature", "food-drink", "smileys-emotion"),
        takes_prompt=True,
        image_size_px=64,
        image_channels=3,
        grid=(16, 16),
        codebook_size=4096,
        tokenizer="fedcba9876543210",
        num_steps=16,
        guidance_scale=3.0,
        sampler="dpmpp_2m",
        example=GenerateRequest(pipeline="emoji-64", prompt="a smiling cat", style="noto", seed=7),
    ),
    PipelineInfo(
        name="fashion-mnist",
        class_names=("t-shirt", "trouser", "pullover", "dress", "coat"),
        image_size_px=28,
        image_channels=1,
        grid=(14, 14),
        codebook_size=1024,
        tokenizer=_TOKENIZER,
        num_steps=14,
        guidance_scale=1.6,
        sampler="dpmpp_2m",
        example=GenerateRequest(pipeline="fashion-mnist", class_label="coat", seed=7),
    ),
]
CANCELLED_JOB = QUEUED_JOB.model_copy(
    update={"status": JobStatus.CANCELLED, "ended_at": _ENDED, "queue_position": None}
)

GENERATE_EXAMPLES = {
    "a class by name": GenerateRequest(class_label="sneaker", seed=7),
    "a prompt, in a style": GenerateRequest(prompt="a smiling cat", style="noto", seed=7),
    "four of a class by number": GenerateRequest(class_label=3, num_images=4, return_codes=True),
    "all choices": GenerateRequest(
        pipeline="fashion-mnist",
        class_label="coat",
        num_images=2,
        seed=11,
        num_steps=24,
        guidance_scale=2.0,
        sampler="heun",
        format="webp",
        deadline_s=30,
    ),
}
ENCODE_EXAMPLES = {"an image in base64": EncodeRequest(image="iVBORw0KGgoAAAANSUhEUg==")}
DECODE_EXAMPLES = {"codes of /encode": DecodeRequest(codes=_CODES, tokenizer=_TOKENIZER)}

_PROBLEMS = {
    problem.code: problem
    for problem in (
        problem_of("bad_request", "Invalid multipart data."),
        problem_of("not_acceptable", "Accept: this answer can be application/json; got text/csv"),
        problem_of("body_too_large", "the body is at most 65536 bytes, got 70000"),
        problem_of("unsupported_media_type", "Content-Type: send application/json, got text/plain"),
        problem_of(
            "invalid_request",
            "num_images: should be less than or equal to 64, got 65",
            errors=(FieldError(field="num_images", message="should be less than or equal to 64, got 65"),),
        ),
        problem_of("unknown_pipeline", "pipeline: there is no 'mnist'; known are fashion-mnist"),
        problem_of("invalid_image", "image: the bytes are no PNG, JPEG or WebP file"),
        problem_of("invalid_codes", "codes[0][1][0]: a code is from 0 to 1023, got 1024"),
        problem_of("queue_full", "256 jobs wait, which is the limit; try again in 3 seconds"),
        problem_of("queue_unavailable", "the queue server does not answer"),
        problem_of("not_ready", "no worker is ready; the first is ready once its models are loaded and warm"),
        problem_of("job_not_found", f"there is no job {_JOB_ID}: it never was, or its result has expired"),
        problem_of("job_cancelled", "the job was cancelled", job_id=_JOB_ID),
        problem_of("deadline_exceeded", "not done within its deadline_s", job_id=_JOB_ID),
        problem_of("out_of_memory", "too large for this server, even alone", job_id=_JOB_ID),
        problem_of("not_finite", "the model made NaN for this image", job_id=_JOB_ID),
        problem_of("storage_full", "the disk for results is full; try again later", job_id=_JOB_ID),
        problem_of("worker_lost", "3 workers died on this job", job_id=_JOB_ID),
        problem_of("internal_error", "The server's log says more.", job_id=_JOB_ID),
    )
}
# What any request for work may be answered with; a job's own failure only where the answer waits for it.
WORK_FAILURES = (
    "not_acceptable",
    "body_too_large",
    "unsupported_media_type",
    "invalid_request",
    "unknown_pipeline",
    "queue_full",
    "queue_unavailable",
    "job_cancelled",
    "deadline_exceeded",
    "out_of_memory",
    "not_finite",
    "storage_full",
    "worker_lost",
    "internal_error",
)
_HEADERS = {
    "Location": "The job's address.",
    "Content-Location": "The address of the job, or of its image.",
    "Preference-Applied": "How long the answer waited at most.",
    "Retry-After": "Seconds to wait before another try.",
    "ETag": "The SHA-256 of the image.",
    "Cache-Control": "An image never changes.",
    "Smalti-Job-Id": "The job's id.",
    "Smalti-Seed": "The seed, also where it was drawn.",
    "Allow": "What this address takes.",
}
PREFER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "example": "wait=30",
    "description": (
        "`wait=N` waits up to N seconds for the job to end; with `cancel-on-disconnect` the job is cancelled"
        " if the client goes away before."
    ),
}


def problems(*codes: str) -> Responses:
    """Describe failures: for each status the shape, and an example of each code."""
    found: Responses = {}
    for code in codes:
        examples = {code: _PROBLEMS[code]}
        status = _PROBLEMS[code].status
        content = found.setdefault(
            status,
            {
                "description": _PROBLEMS[code].title,
                "content": {PROBLEM_MEDIA_TYPE: schema_content(Problem, {})},
                "headers": _describe(*(["Retry-After"] if status in (429, 503) else [])),
            },
        )["content"][PROBLEM_MEDIA_TYPE]
        content["examples"] |= schema_content(Problem, examples)["examples"]
    return found


def job_responses(finished: JobView, *, has_image: bool) -> Responses:
    """Describe the answers to a request for work that did not fail."""
    content: dict[str, Any] = {"application/json": schema_content(JobView, {"finished": finished})}
    headers = ["Content-Location", "Preference-Applied"]
    if has_image:
        content |= images_content()
        headers += ["ETag", "Smalti-Job-Id", "Smalti-Seed"]
    return {
        200: {
            "description": "The finished job, or its image: with `Prefer: wait`, or an `Accept` of an image.",
            "content": content,
            "headers": _describe(*headers),
        },
        202: {
            "description": "The job waits or runs.",
            "content": {"application/json": schema_content(JobView, {"queued": QUEUED_JOB})},
            "headers": _describe("Location", "Preference-Applied"),
        },
    }


def one_job_response(status: int, description: str, **examples: JobView) -> Responses:
    """Describe an answer that is a job."""
    return {
        status: {
            "description": description,
            "content": {"application/json": schema_content(JobView, dict(examples))},
        }
    }


def image_responses() -> Responses:
    """Describe the answer that is an image."""
    return {
        200: {
            "description": "The image's bytes.",
            "content": images_content(),
            "headers": _describe("ETag", "Cache-Control"),
        },
        304: {"description": "The client has this image already."},
    }


def images_content() -> dict[str, Any]:
    """Describe raw images."""
    return {
        media_type: {"schema": {"type": "string", "contentMediaType": media_type}}
        for media_type in MEDIA_TYPES.values()
    }


def use_openapi(app: FastAPI) -> None:
    """Let the application serve a document that also knows the bodies that it reads itself."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            kinds = (GenerateRequest, EncodeRequest, DecodeRequest, JobView, CodesInfo, Problem)
            _, bodies = models_json_schema([(kind, "validation") for kind in kinds], ref_template=SCHEMAS)
            document.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
            _remove_default_failures(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]


def _remove_default_failures(document: dict[str, Any]) -> None:
    """Remove FastAPI's own shape of a 422, which nothing here answers with."""
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for path in document["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]


def schema_content(kind: type[BaseModel], examples: Mapping[str, BaseModel]) -> dict[str, Any]:
    """Describe a body of this type; requests show only what their client sets."""
    is_request = not issubclass(kind, JobView | Problem)
    return {
        "schema": {"$ref": SCHEMAS.format(model=kind.__name__)},
        "examples": {
            name: {
                "value": example.model_dump(
                    mode="json", exclude_none=kind is Problem, exclude_unset=is_request
                )
            }
            for name, example in examples.items()
        },
    }


def _describe(*names: str) -> dict[str, Any]:
    return {name: {"description": _HEADERS[name], "schema": {"type": "string"}} for name in names}
