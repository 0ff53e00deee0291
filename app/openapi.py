"""What FastAPI can't read off the routes for the OpenAPI document: answers, headers and problems."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.access import SECURITY_SCHEMES, security_of
from app.errors import PROBLEM_MEDIA_TYPE, Problem
from app.event_stream import EVENT_STREAM
from app.examples import PROBLEMS, QUEUED_JOB
from app.negotiation import JSON_MEDIA_TYPE
from models.media.base import MEDIA, medium_of
from workers.arrays import NPY_MEDIA_TYPE
from workers.messages import JobView

Responses = dict[int | str, dict[str, Any]]
_REF = "#/components/schemas/{model}"

DESCRIPTION = """\
Generate images of a class or a prompt, turn an image into a small grid of codes, and codes into an image.

Every request for work becomes a **job**. The answer is `202` with the job and its `Location`; with
`Prefer: wait=30` it is the finished job, if it ends in time; with `Accept: image/*` it is the image itself.
The same request with the same seed gives the same bytes.

Failures are `application/problem+json`; match on `code`.
"""
# What any request for work may be answered with; a job's own failure only where the answer waits for it.
WORK_FAILURES = (
    "bad_request",
    "unauthorized",
    "forbidden_origin",
    "not_acceptable",
    "request_timeout",
    "body_too_large",
    "unsupported_media_type",
    "invalid_request",
    "unknown_pipeline",
    "moderation_refused",
    "idempotency_key_reused",
    "queue_full",
    "queue_share_exceeded",
    "rate_limit_exceeded",
    "queue_unavailable",
    "too_busy",
    "job_cancelled",
    "deadline_exceeded",
    "out_of_memory",
    "not_finite",
    "storage_full",
    "storage_unavailable",
    "pipeline_not_served",
    "worker_lost",
    "internal_error",
)
PREFER_WAIT: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "example": "wait=30",
    "description": "`wait=N` waits up to N seconds for the job to end.",
}
PREFER = {
    **PREFER_WAIT,
    "description": (
        f"{PREFER_WAIT['description']} With `cancel-on-disconnect` the job is cancelled if the client goes"
        " away before."
    ),
}
IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
    "example": "order-1234",
    "description": (
        "The same request with the same key makes one job, however often it is sent; another request with"
        " this key is refused. A key is kept as long as its job."
    ),
}
_RATE_HEADERS = ("RateLimit", "RateLimit-Policy")
_HEADERS_OF_STATUS = {429: ("Retry-After", *_RATE_HEADERS), 503: ("Retry-After",)}
_OF_A_JOB = ("get_job", "follow_job", "cancel_job", "retry_job")  # operations that take a job's id
_HEADERS = {
    "Location": "The address of what was made.",
    "Content-Location": "The address of the job, or of its output.",
    "Preference-Applied": "How long the answer waited at most.",
    "RateLimit": "`r`: the jobs that the API key may submit at once; `t`: seconds until they are all it may.",
    "RateLimit-Policy": "`q`: the jobs that the API key may submit in any `w` seconds.",
    "Retry-After": "Seconds to wait before another try.",
    "ETag": "The SHA-256 of the output.",
    "Cache-Control": "An output never changes.",
    "Accept-Ranges": "`Range` with one range of bytes gets that part alone.",
    "Content-Range": "Which bytes these are, of how many.",
    "Content-Disposition": "A name for the file.",
    "Idempotency-Replayed": "`true` where an earlier request with this `Idempotency-Key` made the job.",
    "Smalti-Job-Id": "The job's id.",
    "Smalti-Seed": "The seed, also where it was drawn.",
    "Smalti-Tokenizer": "The fingerprint of the tokenizer that made them.",
    "X-Request-Id": "The request's own id, or one that was made: what the log has.",
}


def problems(*codes: str) -> Responses:
    """Describe failures: for each status the shape, and an example of each code."""
    found: Responses = {}
    for code in codes:
        problem = PROBLEMS[code]
        response = found.setdefault(
            problem.status,
            {
                "description": problem.title,
                "content": {
                    PROBLEM_MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}, "examples": {}}
                },
                "headers": headers_of(*_HEADERS_OF_STATUS.get(problem.status, ())),
            },
        )
        value = problem.model_dump(mode="json", exclude_none=True)
        response["content"][PROBLEM_MEDIA_TYPE]["examples"][code] = {"value": value}
    return found


def any_problem() -> Responses:
    """Describe every failure that a route doesn't name; instead of FastAPI's own shape of a 422."""
    (response,) = problems("internal_error").values()
    return {"default": {**response, "description": "Any other failure."}}


def job_responses(finished: JobView, *, has_output: bool, has_array: bool = False) -> Responses:
    """Describe the answers to a request for work that did not fail, and what its job leads to."""
    headers = ["Content-Location", "Preference-Applied", "Idempotency-Replayed", *_RATE_HEADERS]
    description = "The finished job: with `Prefer: wait`."
    if has_output:
        headers += ["ETag", "Smalti-Job-Id", "Smalti-Seed"]
        description = "The finished job, or its one output: with `Prefer: wait`, or an `Accept` of a file."
    if has_array:
        headers += ["Smalti-Job-Id", "Smalti-Seed", "Smalti-Tokenizer"]
        description = "The finished job, or its codes or latents: with `Accept: application/x-npy`."
    done = one_job_response(200, description, *headers, finished=finished)
    if has_output:
        done[200]["content"] |= outputs_content()
    if has_array:
        done[200]["content"] |= array_content()
    found = done | one_job_response(
        202,
        "The job waits or runs.",
        "Location",
        "Preference-Applied",
        "Idempotency-Replayed",
        *_RATE_HEADERS,
        queued=QUEUED_JOB,
    )
    for response in found.values():
        response["links"] = {
            name: {"operationId": name, "parameters": {"job_id": "$response.body#/id"}} for name in _OF_A_JOB
        }
    return found


def one_job_response(status: int, description: str, *headers: str, **examples: JobView) -> Responses:
    """Describe an answer that is a job."""
    return {
        status: {
            "model": JobView,
            "description": description,
            "content": {JSON_MEDIA_TYPE: {"examples": _values(examples)}},
            "headers": headers_of(*headers),
        }
    }


def output_responses() -> Responses:
    """Describe the answers that are an output's bytes, or a part of them."""
    headers = ["ETag", "Cache-Control", "Accept-Ranges", "Content-Disposition"]
    return {
        200: {
            "description": "The output's bytes.",
            "content": outputs_content(),
            "headers": headers_of(*headers),
        },
        206: {
            "description": "The part of the bytes that `Range` asks for.",
            "content": outputs_content(),
            "headers": headers_of(*headers, "Content-Range"),
        },
        304: {"description": "The client has this output already."},
    }


def outputs_content() -> dict[str, Any]:
    """Describe raw files, of every medium."""
    media_types = [media_type for name in MEDIA for media_type in medium_of(name).formats.values()]
    return {
        media_type: {"schema": {"type": "string", "contentMediaType": media_type}}
        for media_type in media_types
    }


def array_content() -> dict[str, Any]:
    """Describe an array as a NumPy file."""
    return {NPY_MEDIA_TYPE: {"schema": {"type": "string", "contentMediaType": NPY_MEDIA_TYPE}}}


def latents_responses() -> Responses:
    """Describe the answers that are a job's latents."""
    found = output_responses()
    for status in (200, 206):
        found[status]["content"] = array_content()
        found[status]["headers"] |= headers_of("Smalti-Tokenizer")
    return found


def event_stream(example: str, *events: type[BaseModel]) -> dict[str, Any]:
    """Describe server-sent events whose data is JSON of these types; to be named to ``use_openapi``, too."""
    refs = [{"$ref": _REF.format(model=event.__name__)} for event in events]
    data = {
        "type": "string",
        "contentMediaType": JSON_MEDIA_TYPE,
        "contentSchema": refs[0] if len(refs) == 1 else {"anyOf": refs},
    }
    texts = {name: {"type": "string"} for name in ("event", "id")}
    item = {"type": "object", "required": ["data"], "properties": {"data": data, **texts}}
    return {EVENT_STREAM: {"itemSchema": item, "example": example}}


def use_openapi(app: FastAPI, *, has_keys: bool, models: Sequence[type[BaseModel]]) -> None:
    """Let the application's document know what FastAPI doesn't support: whole, each time it is asked for.

    That is the shape of problems and events (``models``), and what an address needs where there are keys.
    """
    build = app.openapi

    def complete() -> dict[str, Any]:
        document = build()
        kinds: list[type[BaseModel]] = [Problem, *models]
        _, shapes = models_json_schema([(kind, "serialization") for kind in kinds], ref_template=_REF)
        document["components"]["schemas"] |= shapes["$defs"]
        refusals = {str(status): each for status, each in problems("unauthorized", "forbidden").items()}
        document["components"]["securitySchemes"] = SECURITY_SCHEMES
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                security = security_of(method, path)
                operation["security"] = security if has_keys or not security else [{}, *security]
                if security:
                    operation["responses"] = refusals | operation["responses"]
                for response in operation["responses"].values():
                    response.setdefault("headers", {}).update(headers_of("X-Request-Id"))
        return document

    app.openapi = complete  # type: ignore[method-assign]


def _values(examples: Mapping[str, BaseModel]) -> dict[str, Any]:
    return {name: {"value": example.model_dump(mode="json")} for name, example in examples.items()}


def headers_of(*names: str) -> dict[str, Any]:
    """Describe headers of an answer."""
    return {name: {"description": _HEADERS[name], "schema": {"type": "string"}} for name in names}
