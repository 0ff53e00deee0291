"""What the OpenAPI document shows: requests, jobs and errors, made from the real types."""

from datetime import UTC, datetime, timedelta
from typing import Any

from app.batches.records import BatchStatus
from app.batches.views import BatchView, RowCounts
from app.errors import Problem, problem_of
from app.field_errors import FieldError
from models.media.base import medium_of
from workers.messages import (
    CodesInfo,
    DecodeRequest,
    EncodeRequest,
    FileReference,
    GenerateRequest,
    JobMetrics,
    JobStatus,
    JobView,
    MediumInfo,
    Message,
    OptionInfo,
    Output,
    PipelineInfo,
    PipelineLoad,
    Progress,
    Result,
    RetryRequest,
    SeedVerdict,
)

_JOB_ID = "5f0c6a1e9b7d4c3e8a2f1b0d9e8c7a65"
FILE_ID = "019b7cbf36a85f0c6a1e9b7d4c3e8a2f"
_TOKENIZER = "0123456789abcdef"
_CODES = CodesInfo(codes=[[[17, 902], [4, 511]]], grid=(2, 2), codebook_size=1024, tokenizer=_TOKENIZER)
_CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_STARTED = _CREATED + timedelta(milliseconds=20)
_ENDED = _CREATED + timedelta(milliseconds=400)
_EXPIRES = _ENDED + timedelta(hours=1)
_IMAGE = Output(
    sample=0,
    medium="image",
    url=f"/jobs/{_JOB_ID}/outputs/0",
    media_type="image/png",
    num_bytes=604,
    sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    width_px=28,
    height_px=28,
)

# --- jobs ------------------------------------------------------------------------------------------------

QUEUED_JOB = JobView(
    id=_JOB_ID,
    operation="generate",
    status=JobStatus.QUEUED,
    created_at=_CREATED,
    queue_position=3,
    events_url=f"/jobs/{_JOB_ID}/events",
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
CANCELLED_JOB = QUEUED_JOB.model_copy(
    update={
        "status": JobStatus.CANCELLED,
        "ended_at": _ENDED,
        "queue_position": None,
        "metrics": JobMetrics(queue_s=0.4, compute_s=0, total_s=0.4, num_steps=0),
        "expires_at": _EXPIRES,
    }
)


def _succeeded(result: Result) -> JobView:
    num_steps = 14 if result.operation == "generate" else 0
    return JobView(
        id=_JOB_ID,
        operation=result.operation,
        status=JobStatus.SUCCEEDED,
        created_at=_CREATED,
        started_at=_STARTED,
        ended_at=_ENDED,
        num_tries=1,
        events_url=f"/jobs/{_JOB_ID}/events",
        result=result,
        metrics=JobMetrics(queue_s=0.02, compute_s=0.38, total_s=0.4, num_steps=num_steps, batch_size=2.5),
        expires_at=_EXPIRES,
    )


GENERATED_JOB = _succeeded(Result(operation="generate", pipeline="fashion-mnist", seed=7, outputs=[_IMAGE]))
ENCODED_JOB = _succeeded(
    Result(
        operation="encode",
        pipeline="fashion-mnist",
        outputs=[Output(sample=0, medium="image")],
        codes=_CODES,
    )
)
DECODED_JOB = _succeeded(Result(operation="decode", pipeline="fashion-mnist", outputs=[_IMAGE]))

# --- batches ---------------------------------------------------------------------------------------------

NEW_BATCH = BatchView(
    id="5f0c6a1e9b7d4c3e8a2f",
    status=BatchStatus.QUEUED,
    created_at=_CREATED,
    num_rows=0,
    counts=RowCounts(queued=0, running=0, succeeded=0, failed=0, cancelled=0),
)
RUNNING_BATCH = NEW_BATCH.model_copy(
    update={
        "status": BatchStatus.RUNNING,
        "started_at": _STARTED,
        "num_rows": 1000,
        "counts": RowCounts(queued=590, running=32, succeeded=376, failed=2, cancelled=0),
        "rows_per_s": 31.1,
        "seconds_left": 20.0,
    }
)
ENDED_BATCH = RUNNING_BATCH.model_copy(
    update={
        "status": BatchStatus.SUCCEEDED,
        "ended_at": _CREATED + timedelta(seconds=32),
        "expires_at": _CREATED + timedelta(days=7, seconds=32),
        "counts": RowCounts(queued=0, running=0, succeeded=998, failed=2, cancelled=0),
        "seconds_left": None,
    }
)

# --- requests --------------------------------------------------------------------------------------------


def _examples(**requests: Message) -> dict[str, Any]:
    """Return examples as OpenAPI has them, with what their client sets alone; "_" in a name is a space."""
    return {
        name.replace("_", " "): {"value": request.model_dump(mode="json", exclude_unset=True)}
        for name, request in requests.items()
    }


GENERATE_EXAMPLES = _examples(
    a_class_by_name=GenerateRequest(class_label="sneaker", seed=7),
    a_prompt_in_a_style=GenerateRequest(prompt="a smiling cat", style="noto", seed=7),
    four_of_a_class_by_number=GenerateRequest(class_label=3, num_outputs=4, return_codes=True),
    all_choices=GenerateRequest(
        pipeline="fashion-mnist",
        labels={"class": "coat"},
        num_outputs=2,
        seed=11,
        num_steps=24,
        guidance_scale=2.0,
        sampler="heun",
        format="webp",
        deadline_s=30,
    ),
)
ENCODE_EXAMPLES = _examples(
    a_file_in_base64=EncodeRequest(source="iVBORw0KGgoAAAANSUhEUg=="),
    a_file_sent_before=EncodeRequest(source=FileReference(file=FILE_ID)),
)
DECODE_EXAMPLES = _examples(
    codes_of_a_result=DecodeRequest(codes=_CODES),
    codes_and_their_tokenizer=DecodeRequest(codes=_CODES.codes or [], tokenizer=_TOKENIZER),
)

RETRY_EXAMPLES = _examples(
    as_it_was=RetryRequest(), told_when_it_ends=RetryRequest(webhook_url="https://example.com/hook")
)

# --- pipelines -------------------------------------------------------------------------------------------


def _image(side_px: int, channels: int) -> MediumInfo:
    return MediumInfo(
        medium="image",
        formats=tuple(medium_of("image").formats),
        sizes={"width_px": side_px, "height_px": side_px, "channels": channels},
    )


PIPELINES = [
    PipelineInfo(
        name="fashion-mnist",
        makes=(_image(28, 1),),
        takes={"source": _image(28, 1)},
        labels={"class": ("t-shirt", "trouser", "pullover", "dress", "coat")},
        options={"num_steps": OptionInfo(default=14, json_schema={"minimum": 1, "maximum": 200})},
        grid=(14, 14),
        codebook_size=1024,
        num_codebooks=1,
        tokenizer=_TOKENIZER,
        seed_verdicts=(SeedVerdict(worker="host.1234", is_kept=True, how="checked", rows=(1, 2, 4, 8)),),
        loads=(PipelineLoad(worker="host.1234", state="loaded", num_bytes=12_170_000),),
        example=GenerateRequest(pipeline="fashion-mnist", class_label="coat", seed=7),
    )
]

# --- errors: each detail is what the service sends, with the shipped fashion-mnist -------------------------

_BAD_FIELD = FieldError(field="num_outputs", message="should be less than or equal to 64, got 65")
PROBLEMS: dict[str, Problem] = {
    problem.code: problem
    for problem in (
        problem_of("bad_request", "Missing boundary in multipart."),
        problem_of(
            "unauthorized",
            "Authorization: this address takes an API key, as `Authorization: Bearer KEY`; none came",
        ),
        problem_of("forbidden", "Authorization: the key ada lacks the scope admin, which this needs"),
        problem_of(
            "forbidden_origin",
            "Origin: pages of 'https://other.example' may not do that; the operator can allow it"
            " with SMALTI_CORS_ORIGINS",
        ),
        problem_of(
            "misdirected_host",
            "Host: this server does not answer for 'other.example'; the operator can allow the name with"
            " SMALTI_ALLOWED_HOSTS",
        ),
        problem_of(
            "request_timeout", "the body came too slowly, under 32768 bytes a second; send it again, faster"
        ),
        problem_of(
            "too_busy",
            "bodies of all requests may hold 134217728 bytes at a time, and this one does not fit;"
            " try again soon",
        ),
        problem_of(
            "not_acceptable", "Accept: this answer can be application/json, application/x-npy; got text/csv"
        ),
        problem_of("body_too_large", "the body is at most 65536 bytes, got 70000"),
        problem_of(
            "unsupported_media_type",
            "Content-Type: send application/json or application/x-npy, got text/plain",
        ),
        problem_of("invalid_request", f"{_BAD_FIELD.field}: {_BAD_FIELD.message}", errors=(_BAD_FIELD,)),
        problem_of("unknown_pipeline", "pipeline: there is no 'mnist'; known are fashion-mnist"),
        problem_of("invalid_image", "source: the bytes are not a PNG, JPEG or WebP file"),
        problem_of("invalid_codes", "codes[0][0][0]: a code is from 0 to 1023, got 1024"),
        problem_of(
            "invalid_latents",
            "latents: fashion-mnist can't decode latents; GET /pipelines tells what each encodes to",
        ),
        problem_of("moderation_refused", "prompt: names a person"),
        problem_of(
            "idempotency_key_reused",
            f"Idempotency-Key: it has made job {_JOB_ID} of another request; send a new key with each new"
            " request",
        ),
        problem_of("queue_full", "256 jobs wait, which is the most that may"),
        problem_of(
            "queue_share_exceeded", "128 jobs of the API key ada wait, which is the most that may of one key"
        ),
        problem_of("rate_limit_exceeded", "the API key ada may submit 60 jobs in 60 s; the next in 0.7 s"),
        problem_of("queue_unavailable", "the queue does not answer; try again soon"),
        problem_of("not_ready", "no worker is ready; the first is ready once its models are loaded and warm"),
        problem_of("batch_not_found", f"there is no batch {NEW_BATCH.id!r}, or it has expired"),
        problem_of("job_not_found", f"there is no job {_JOB_ID}, or its result has expired"),
        problem_of(
            "file_not_found",
            f"there is no file '{FILE_ID}', or it has expired; send it with POST /files and use the id in"
            " the answer",
        ),
        problem_of(
            "file_quota_exceeded",
            "file: the files of an API key hold at most 1024 bytes (SMALTI_MAX_FILE_BYTES_PER_KEY); there"
            " are 1000, and this one has 64. Delete some, or let them expire",
        ),
        problem_of("range_not_satisfiable", "Range: this output has bytes 0 to 603, got bytes=604-"),
        problem_of(
            "job_not_retryable", f"job {_JOB_ID} is queued; only a job that has failed is tried again"
        ),
        problem_of("job_cancelled", "the job was cancelled", job_id=_JOB_ID),
        problem_of("deadline_exceeded", "The job was not done within its deadline_s.", job_id=_JOB_ID),
        problem_of(
            "out_of_memory", "this worker has not enough memory for the request, even alone", job_id=_JOB_ID
        ),
        problem_of("not_finite", "output 0 became infinite or not a number", job_id=_JOB_ID),
        problem_of(
            "storage_full",
            "the disk of /data/results (SMALTI_DATA_DIR) is full; try again later",
            job_id=_JOB_ID,
        ),
        problem_of(
            "storage_unavailable",
            "the folder /data/results (SMALTI_DATA_DIR) can't be written: Read-only file system."
            " Make it writable for this user, or name another",
            job_id=_JOB_ID,
        ),
        problem_of(
            "pipeline_not_served",
            "pipeline: no worker has 'fashion-mnist' now; start one that does, or try again later",
        ),
        problem_of("worker_lost", "The workers that ran it died, 3 times.", job_id=_JOB_ID),
        problem_of("internal_error", "The server's log says more."),
    )
}
