"""What clients send, what queue and engine see, and what comes back: each defined once.

The catalog makes a client's request (``GenerateRequest``, ``EncodeRequest``, ``DecodeRequest``) explicit:
``Resolved`` has every choice made. All that comes back is one ``Result``.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    Strict,
    StrictBool,
    StrictInt,
    computed_field,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from models.options import OptionFields, Precision

Operation = Literal["generate", "encode", "decode"]
OPERATIONS: tuple[Operation, ...] = ("generate", "encode", "decode")
Priority = Literal["interactive", "batch"]
Background = Literal["white", "transparent"]
Posterior = Literal["mean", "sample"]
SampleCodes = list[Any]  # nested: (*grid), or (codebook, *grid) where there are several codebooks

MAX_SAMPLES_PER_JOB = 64
MAX_EFFORT = 8
MAX_SOURCE_MIB = 10  # of a file's bytes, which are four thirds as many characters of base64
MAX_PROMPT_CHARS = 1000
MAX_LABEL_SETS = 16

Label = Annotated[str, Field(max_length=64)] | Annotated[int, Strict(), Field(ge=0, lt=2**31)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**53)]
NumOutputs = Annotated[int, Strict(), Field(ge=1, le=MAX_SAMPLES_PER_JOB)]
SizePx = Annotated[int, Strict(), Field(ge=1, le=8192)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
WebhookUrl = Annotated[str, Field(max_length=2048)]
FormatName = Annotated[str, Field(max_length=16)]


def _check_source_size(text: str) -> str:
    num_bytes = len(text) * 3 // 4
    if num_bytes > MAX_SOURCE_MIB * 2**20 + 2:  # what pads the last four characters
        raise ValueError(f"a file is at most {MAX_SOURCE_MIB} MiB, got {num_bytes / 2**20:.1f} MiB")
    return text


Base64File = Annotated[str, Field(min_length=4), AfterValidator(_check_source_size)]


class Message(BaseModel):
    """Immutable, and without fields that nobody asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileReference(Message):
    """A file that was sent before, by POST /files."""

    file: Annotated[str, Field(max_length=64, description="Its id.")]


class JobReference(Message):
    """A job that was made before."""

    job: Annotated[str, Field(max_length=64, description="Its id.")]


Source = Base64File | FileReference
EDIT_ROLES = ("source", "mask")  # of what is generated from files, in the order of ``Resolved.sources``


# --- what clients send -----------------------------------------------------------------------------------


class ClientRequest(Message):
    """What every request for work may say."""

    pipeline: Annotated[str, Field(max_length=64)] | None = Field(
        default=None,
        description="The pipeline's name; when left out, the server's first that knows what is asked for.",
    )
    priority: Priority = Field(
        default="interactive",
        description="Interactive jobs go before batch jobs, which are parked where they are while one runs;"
        " batch jobs age.",
    )
    deadline_s: Annotated[float, Strict(), Field(gt=0, le=86400, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Give up this many seconds after the request was accepted (`deadline_exceeded`).",
    )
    webhook_url: WebhookUrl | None = Field(
        default=None, description="Where to POST the job to when it has ended, signed."
    )


class GenerateRequest(ClientRequest, OptionFields):
    """Generate outputs of a label, or of what a prompt says."""

    prompt: Prompt | None = Field(
        default=None,
        description="What to show, in English; anything when left out. An emoji stands for its name: 😀 is"
        ' "grinning face". The end of a long prompt is truncated; `warnings` say so, and what of it was not'
        " understood.",
    )
    negative_prompt: Prompt | None = Field(
        default=None,
        description="What guidance leads away from; from no prompt at all when left out."
        " Without effect at a guidance_scale of 1.",
    )
    labels: Annotated[dict[Annotated[str, Field(max_length=64)], Label], Field(max_length=MAX_LABEL_SETS)] = (
        Field(
            default={},
            description="One label of any set that GET /pipelines lists, by name or number:"
            ' `{"class": "coat"}`.',
        )
    )
    class_label: Label | None = Field(default=None, description="Short for the label set `class`.")
    style: Label | None = Field(default=None, description="Short for the label set `style`.")
    group: Label | None = Field(default=None, description="Short for the label set `group`.")
    background: Background = Field(
        default="white",
        description="transparent clears the white around what is shown; for colour pipelines, PNG and WebP.",
    )
    source: Source | None = Field(
        default=None,
        description="A picture to start from, as `strength` says: PNG, JPEG or WebP in base64, at most"
        f" {MAX_SOURCE_MIB} MiB; or an upload, by its id. It is fitted as /encode does; a pipeline that"
        " `needs_source` draws it larger, and takes it in that size only.",
    )
    mask: Source | None = Field(
        default=None,
        description="Where the source is drawn anew: a picture of the same size, white there (from 128 of"
        " 255 on, or transparent), else black. All other pixels come back exactly, as the fitted source has"
        " them.",
    )
    width_px: SizePx | None = Field(
        default=None, description="Of the pictures: the pipeline's own, as GET /pipelines tells it."
    )
    height_px: SizePx | None = Field(default=None, description="As `width_px`.")
    num_outputs: NumOutputs | None = Field(default=None, description="How many; one when left out.")
    num_images: NumOutputs | None = Field(
        default=None, description="The older name of `num_outputs`; both at once is refused."
    )
    seed: Seed | None = Field(
        default=None,
        description="The same request with the same seed gives the same bytes. Drawn and told when left out.",
    )
    format: FormatName | None = Field(
        default=None,
        description="Of the files: png (the default), webp or jpeg for pictures. A file in `Accept` chooses"
        " it, too.",
    )
    preview: StrictBool = Field(
        default=False,
        description="Send small pictures of what is on its way, at most two a second, in the job's events.",
    )
    return_codes: StrictBool = Field(default=False, description="Also return the codes of every output.")


class EncodeRequest(ClientRequest):
    """Turn one file, or several, into codes; into latents, where a pipeline has no codes."""

    source: (
        Source
        | Annotated[list[Source], Field(min_length=1, max_length=MAX_SAMPLES_PER_JOB, fail_fast=True)]
        | None
    ) = Field(
        default=None,
        description=f"A PNG, JPEG or WebP file in base64, at most {MAX_SOURCE_MIB} MiB; or an upload, by its"
        f" id; or a list of these, at most {MAX_SAMPLES_PER_JOB} files and 64 MiB in all. Required, here or"
        " as `image`.",
    )
    image: Base64File | None = Field(default=None, description="The older name of source.")
    effort: Annotated[int, Strict(), Field(ge=0, le=MAX_EFFORT)] = Field(
        default=0,
        description="0 takes the code nearest to each latent. More also tries other codes and keeps those"
        " that decode best, in so many sweeps over the image: two bring most of what can be had.",
    )
    posterior: Posterior | None = Field(
        default=None,
        description="Of a pipeline without codes whose encoder gives a distribution of latents: its `mean`"
        " (the default), or a `sample` of it, which a `seed` alone asks for, too.",
    )
    seed: Seed | None = Field(
        default=None,
        description="Of the samples of a `posterior`. Drawn and told when left out.",
    )
    return_psnr: bool = Field(
        default=False,
        description="Also decode the codes, and tell in `psnr_db` of each output how near that comes to the"
        " source, as it was fitted.",
    )


class CodesInfo(Message):
    """Codes and all that is needed to read them. Of a list that is wrong, the first wrong element is told."""

    codes: list[SampleCodes | None] | None = Field(
        default=None,
        fail_fast=True,
        description="(sample, *grid), or (sample, codebook, *grid) with several codebooks, as nested lists;"
        " null for a sample that failed.",
    )
    grid: tuple[StrictInt, ...] = Field(fail_fast=True)
    num_codebooks: StrictInt = 1
    codebook_size: StrictInt
    tokenizer: str = Field(max_length=64, description="The tokenizer's fingerprint.")
    precision: Precision = Field(
        default="float32", description="What the tokenizer computed them in; decoding doesn't need it."
    )
    lengths: list[StrictInt | None] | None = Field(
        default=None, fail_fast=True, description="What to cut each decoded signal to; null for pictures."
    )


class LatentsInfo(Message):
    """Latents, which are one NumPy file, and all that is needed to read them."""

    url: Annotated[str, Field(max_length=2048)] | None = Field(
        default=None,
        description="Where the file is. In a request it only names the job, and nothing is fetched from it.",
    )
    shape: tuple[StrictInt, ...] = Field(
        fail_fast=True, max_length=8, description="(sample, d, *grid); a sample that failed is NaN."
    )
    dtype: Literal["float32"] = "float32"
    tokenizer: str = Field(max_length=64, description="The fingerprint of the autoencoder.")
    lengths: list[StrictInt | None] | None = Field(
        default=None, fail_fast=True, description="What to cut each decoded signal to; null for pictures."
    )


class DecodeRequest(ClientRequest):
    """Turn one or more grids of codes, or latents, into files."""

    codes: (
        CodesInfo
        | Annotated[list[SampleCodes], Field(min_length=1, max_length=MAX_SAMPLES_PER_JOB, fail_fast=True)]
        | None
    ) = Field(
        default=None,
        description="(sample, *grid) nested lists of codes with the tokenizer beside them, or the `codes`"
        " object of a result. These, or latents.",
    )
    latents: LatentsInfo | JobReference | FileReference | None = Field(
        default=None,
        description="The `latents` object of a result, or the job that has them, or an upload of a NumPy"
        " file: (sample, d, *grid) float32. A NumPy file may also be the body itself, with the other fields"
        " in the query.",
    )
    tokenizer: Fingerprint | None = Field(
        default=None,
        description="The fingerprint of the tokenizer that made them, where they don't tell it.",
    )
    format: FormatName | None = Field(
        default=None,
        description="Of the files: png (the default), webp or jpeg for pictures. A file in `Accept` chooses"
        " it, too.",
    )


class RetryRequest(Message):
    """Try a failed job again."""

    webhook_url: WebhookUrl | None = Field(
        default=None, description="As in the request; the failed job's own is not kept."
    )


Request = GenerateRequest | EncodeRequest | DecodeRequest


# --- what queue and engine see ---------------------------------------------------------------------------


class BlobReference(Message):
    """A file that came in, checked and fitted, as the store has it."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    media_type: str


class Resolved(Message):
    """A request with every choice made: the payload of a job.

    seed: None where nothing is sampled. options: those that a request may set, each with its value.
    labels: numbers, by set. sources: one for each sample to encode; of what is generated from one, the source
    and then the mask, if any; to decode, its latents. codes: one for each sample to decode.
    samples_posterior: whether latents are drawn, by the seed. warnings: those of the result that are known
    already.
    """

    operation: Operation
    pipeline: str
    priority: Priority = "interactive"
    deadline_s: float | None = None
    num_samples: int = Field(ge=1, le=MAX_SAMPLES_PER_JOB)
    seed: Seed | None = None
    options: dict[str, Any] = {}
    labels: dict[str, int] = {}
    prompt: str | None = None
    negative_prompt: str | None = None
    sources: tuple[BlobReference, ...] = ()
    effort: int = 0
    samples_posterior: bool = False
    codes: list[SampleCodes] | None = None
    format: str = ""
    background: Background = "white"
    preview: bool = False
    return_codes: bool = False
    return_psnr: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def is_edit(self) -> bool:
        """Whether what is generated starts from a source."""
        return self.operation == "generate" and bool(self.sources)


# --- what comes back -------------------------------------------------------------------------------------


class JobError(Message):
    """Why a job, or one of its samples, failed: ``code`` is stable, ``message`` is for people."""

    code: str
    message: str


class Output(Message):
    """One output: where its bytes are and what they are; or why there are none.

    In the answer to /encode, an output has neither; with `return_psnr`, its `psnr_db`.
    """

    sample: int = Field(description="Which of the job's samples it belongs to.")
    medium: str
    url: str | None = None
    media_type: str | None = None
    num_bytes: int | None = None
    sha256: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    duration_s: float | None = None
    sample_rate_hz: int | None = None
    num_frames: int | None = None
    text: str | None = None
    psnr_db: float | None = Field(
        default=None, description="Of what the codes decode to, against the source; 100 where they are equal."
    )
    error: JobError | None = None

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        fields = {name: value for name, value in core_schema.items() if name != "serialization"}
        return handler(cast(CoreSchema, fields))  # as the serializer below hides the fields

    @model_serializer(mode="wrap")
    def _without_nulls(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class Result(Message):
    """What came of a job."""

    operation: Operation
    pipeline: str
    seed: int | None = Field(default=None, description="null where nothing was sampled.")
    outputs: list[Output] = []
    codes: CodesInfo | None = None
    latents: LatentsInfo | None = None
    warnings: list[str] = Field(default=[], description="What was not done as asked, though it went well.")

    @model_validator(mode="before")
    @classmethod
    def _read_own_json(cls, given: Any) -> Any:
        """Leave out what repeats some of the outputs."""
        return (
            {name: value for name, value in given.items() if name != "images"}
            if isinstance(given, dict)
            else given
        )

    @computed_field(description="The outputs that are images.")  # type: ignore[prop-decorator]
    @property
    def images(self) -> list[Output]:
        return [each for each in self.outputs if each.medium == "image" and each.url is not None]


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


class Progress(Message):
    """How far a running job is: calls of the model done and to do, of all of its samples."""

    step: int
    total: int


class JobMetrics(Message):
    """What a job that has ended took."""

    queue_s: float = Field(description="From its acceptance until the worker that ended it took it.")
    compute_s: float = Field(description="With that worker, until the end.")
    total_s: float = Field(description="From its acceptance to its end.")
    num_steps: int = Field(description="Calls of the model over all samples, as `progress` counts them.")
    batch_size: float | None = Field(
        default=None,
        description="How many samples, of all jobs, shared a call in the mean; null where none ran.",
    )


WebhookStatus = Literal["pending", "delivered", "failed"]


class WebhookState(Message):
    """How far the telling of a job's end is."""

    status: WebhookStatus = Field(description="failed: it was given up.")
    attempts: int


class PreviewImage(Message):
    """What an output would be if it ended now: the latest guess while it is sampled."""

    index: int = Field(description="Which of the job's samples.")
    step: int = Field(description="Calls of the model that this sample has had.")
    media_type: str
    image: str = Field(description="A small file in base64.")


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
    events_url: str | None = Field(
        default=None, description="Where its events are; with a signature where the service has API keys."
    )
    result: Result | None = None
    error: JobError | None = None
    metrics: JobMetrics | None = Field(default=None, description="Once it has ended.")
    expires_at: datetime | None = Field(
        default=None, description="When a job that has ended is forgotten, with its outputs."
    )
    webhook: WebhookState | None = Field(default=None, description="Where the request has a `webhook_url`.")


# --- what there is to ask for ----------------------------------------------------------------------------


class OptionInfo(Message):
    """One option of a pipeline's prior."""

    default: Any
    json_schema: dict[str, Any] = Field(description="Its type and bounds, as JSON Schema.")


class MediumInfo(Message):
    """A medium that a pipeline makes or takes, with its sizes and formats."""

    medium: str
    formats: tuple[str, ...] = Field(description="The default first.")
    sizes: Mapping[str, Any] = Field(description="width_px, height_px and so on, as its medium has them.")


class SeedVerdict(Message):
    """What one worker found when it checked the seed promise for a pipeline on its own weights."""

    worker: str
    is_kept: bool = Field(description="Whether the same request gives the same bytes in any batch.")
    how: str = Field(description="checked, full_batches (no verdict yet: always the same shape), or off.")
    rows: tuple[int, ...] = Field(description="The numbers of rows that a call may have.")


class PipelineLoad(Message):
    """Whether a worker has a pipeline in memory: if not, it loads it when a job wants it."""

    worker: str = Field(description="As GET /workers names it.")
    state: Literal["loaded", "loading", "not_loaded", "failed"]
    num_bytes: int = Field(default=0, description="Of its weights in memory.")
    error: str | None = Field(default=None, description="Why it could not be loaded.")


class PipelineInfo(Message):
    """What a pipeline takes and makes."""

    name: str
    makes: tuple[MediumInfo, ...]
    takes: Mapping[str, MediumInfo]
    needs_source: bool = Field(
        default=False,
        description="Whether every request to it has to bring a `source`, of the very size in `takes`.",
    )
    labels: Mapping[str, tuple[str, ...]]
    takes_prompt: bool = False
    options: Mapping[str, OptionInfo]
    grid: tuple[int, ...]
    codebook_size: int | None
    num_codebooks: int | None
    tokenizer: str | None = Field(description="The tokenizer's fingerprint.")
    latents: tuple[int, ...] | None = Field(
        default=None, description="(d, *grid) of one sample, where it encodes to latents instead of codes."
    )
    has_posterior: bool = Field(
        default=False, description="Whether latents can be drawn from a distribution: `posterior` of /encode."
    )
    seed_verdicts: tuple[SeedVerdict, ...] = ()
    is_pinned: bool = Field(default=False, description="Whether workers keep it in memory, come what may.")
    loads: tuple[PipelineLoad, ...] = Field(default=(), description="Where it is loaded.")
    example: GenerateRequest | None
