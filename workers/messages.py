"""Requests, results and jobs, each defined once.

A request is the HTTP body, the queue's payload and the engine's argument; nothing translates between them.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.config import MAX_STEPS, SamplerName

ImageFormat = Literal["png", "webp", "jpeg"]
Priority = Literal["interactive", "batch"]
Background = Literal["white", "transparent"]
Codes = list[list[int]]

MAX_IMAGES_PER_JOB = 64
MAX_GUIDANCE_SCALE = 20.0
MAX_CACHE_INTERVAL = 4
MAX_EFFORT = 8
MAX_IMAGE_BASE64_CHARS = 14 * 2**20  # 10 MiB of image bytes, and a little
MAX_GRID_SIDE = 256
MAX_PROMPT_CHARS = 1000

Label = Annotated[str, Field(max_length=64)] | Annotated[int, Field(ge=0)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]


class Message(BaseModel):
    """Immutable, and without fields that nobody asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Request(Message):
    pipeline: Annotated[str, Field(max_length=64)] | None = Field(
        default=None,
        description="The pipeline's name; when left out, the server's first that knows what is asked for.",
    )
    priority: Priority = Field(
        default="interactive", description="Interactive jobs go before batch jobs; batch jobs age."
    )
    deadline_s: Annotated[float, Field(gt=0, le=86400)] | None = Field(
        default=None, description="Give up this many seconds after the request was accepted."
    )


class GenerateRequest(_Request):
    """Generate images of a class, or of what a prompt says."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"class_label": "sneaker", "seed": 7},
                {"prompt": "a smiling cat", "style": "noto", "num_images": 4},
            ]
        }
    )

    class_label: Label | None = Field(
        default=None, description="A class by name or number; any class when left out."
    )
    prompt: Prompt | None = Field(
        default=None, description="What to show, in English; anything when left out. Long ones are cut."
    )
    negative_prompt: Prompt | None = Field(
        default=None,
        description="What guidance leads away from; from no prompt at all when left out."
        " Without effect at a guidance_scale of 1.",
    )
    style: Label | None = Field(default=None, description="A style by name or number; any when left out.")
    group: Label | None = Field(default=None, description="A group by name or number; any when left out.")
    background: Background = Field(
        default="white",
        description="transparent clears the white around what is shown; for colour pipelines, PNG and WebP.",
    )
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES_PER_JOB)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**53)] | None = Field(
        default=None,
        description="The same request with the same seed gives the same bytes. Drawn and told when left out.",
    )
    num_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = Field(
        default=None, description="Denoising steps; the pipeline's default when left out."
    )
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False)] | None = Field(
        default=None,
        description="How strongly what is asked for is enforced; 1 is not at all beyond the model's own.",
    )
    sampler: SamplerName | None = None
    cache_interval: Annotated[int, Field(ge=1, le=MAX_CACHE_INTERVAL)] | None = Field(
        default=None,
        description="Compute the model's middle blocks only at every n-th call, and reuse what they add:"
        " faster over many steps, and another picture. Not at all when left out.",
    )
    format: ImageFormat = "png"
    preview: bool = Field(
        default=False,
        description="Send small pictures of what is on its way, at most two a second, in the job's events.",
    )
    return_codes: bool = Field(default=False, description="Also return the codes of every image.")


class EncodeRequest(_Request):
    """Turn one image into codes."""

    image: Annotated[str, Field(min_length=4, max_length=MAX_IMAGE_BASE64_CHARS)] = Field(
        description="A PNG, JPEG or WebP file in base64. Resized to the pipeline's size if it has another."
    )
    effort: Annotated[int, Field(ge=0, le=MAX_EFFORT)] = Field(
        default=0,
        description="0 takes the code nearest to each latent. More also tries other codes and keeps those"
        " that decode best, in so many sweeps over the image: two bring most of what can be had.",
    )


class DecodeRequest(_Request):
    """Turn one or more grids of codes into images."""

    codes: Annotated[list[Codes], Field(min_length=1, max_length=MAX_IMAGES_PER_JOB)] = Field(
        description="(image, row, column) nested lists of codes, as /encode returns them."
    )
    tokenizer: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] = Field(
        description="The fingerprint of the tokenizer that made the codes, as /encode returns it."
    )
    format: ImageFormat = "png"


Request = GenerateRequest | EncodeRequest | DecodeRequest
Operation = Literal["generate", "encode", "decode"]
OPERATIONS: dict[Operation, type[GenerateRequest] | type[EncodeRequest] | type[DecodeRequest]] = {
    "generate": GenerateRequest,
    "encode": EncodeRequest,
    "decode": DecodeRequest,
}


def operation_of(request: Request) -> Operation:
    """Return the operation that a request asks for."""
    return next(name for name, kind in OPERATIONS.items() if isinstance(request, kind))


class ImageReference(Message):
    """Where an image's bytes are, and what they are."""

    url: str
    media_type: str
    width_px: int
    height_px: int
    num_bytes: int
    sha256: str


class CodesInfo(Message):
    """Codes and all that is needed to read them."""

    codes: list[Codes]
    grid: tuple[int, ...]
    codebook_size: int
    tokenizer: str = Field(description="The tokenizer's fingerprint.")


class GenerateResult(Message):
    operation: Literal["generate"] = "generate"
    pipeline: str
    seed: int
    images: list[ImageReference]
    codes: CodesInfo | None = None
    warnings: list[str] = Field(default=[], description="What was not done as asked, though it went well.")


class EncodeResult(CodesInfo):
    operation: Literal["encode"] = "encode"
    pipeline: str


class DecodeResult(Message):
    operation: Literal["decode"] = "decode"
    pipeline: str
    images: list[ImageReference]


Result = Annotated[GenerateResult | EncodeResult | DecodeResult, Field(discriminator="operation")]


class JobStatus(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class JobError(Message):
    """Why a job failed: ``code`` is stable, ``message`` is for people."""

    code: str
    message: str


class Progress(Message):
    """How far a running job is: steps done and to do, of denoising all of its images or searching codes."""

    step: int
    total: int


class PreviewImage(Message):
    """What an image would be if it ended now: the latest guess while it is denoised."""

    index: int = Field(description="Which of the job's images.")
    step: int = Field(description="Calls of the model that this image has had.")
    media_type: str
    image: str = Field(description="A small picture in base64.")


class JobView(Message):
    """A job as its client sees it."""

    id: str
    operation: Operation
    status: JobStatus
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    num_tries: int = 0
    queue_position: int | None = Field(default=None, description="Jobs before this one; 0 is next.")
    progress: Progress | None = None
    seconds_left: float | None = Field(default=None, description="An estimate.")
    result: Result | None = None
    error: JobError | None = None


class PipelineInfo(Message):
    """What a pipeline takes and makes."""

    name: str
    class_names: tuple[str, ...]
    style_names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()
    takes_prompt: bool = False
    image_size_px: int
    image_channels: int
    grid: tuple[int, ...]
    codebook_size: int
    tokenizer: str = Field(description="The tokenizer's fingerprint.")
    num_steps: int
    guidance_scale: float
    sampler: SamplerName
    example: GenerateRequest
