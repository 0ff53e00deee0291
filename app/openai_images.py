"""OpenAI's Images API in terms of our own: which pipeline, which request, and what comes back."""

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, StrictBool

from models.media.image import MEDIA_TYPES, ImageSpec
from models.options import OptionFields
from models.spec import PipelineSpec
from workers.catalog import Catalog
from workers.errors import InvalidRequest, UnknownPipeline
from workers.messages import MAX_LABEL_SETS, GenerateRequest, JobError, JobView, Label, Prompt, Seed

MAX_SECONDS = 600  # what OpenAI's clients wait by themselves
MAX_IMAGES = 10
MAX_PARTIAL_IMAGES = 3
_OPENAI_MODELS = ("dall-e-", "gpt-image-", "chatgpt-image-")
_URL_BY_DEFAULT = "dall-e-"
_OPENAI_STYLES = ("vivid", "natural")
_MAX_NAMES_TOLD = 20
_FORMATS = {media_type: name for name, media_type in MEDIA_TYPES.items()}

OutputFormat = Literal["png", "webp", "jpeg"]
ShortText = Annotated[str, Field(max_length=256)]


class VariationsRequest(OptionFields):
    """A request as OpenAI's clients send it. What it leaves open, or `auto`, is the pipeline's own choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ShortText | None = Field(
        default=None,
        description="A pipeline's name. Left out, or one of OpenAI's own (`gpt-image-…`, `dall-e-…`): the"
        " first pipeline that takes a prompt; the answer's `model` says which.",
    )
    n: Annotated[int, Strict(), Field(ge=1, le=MAX_IMAGES)] | None = Field(
        default=None, description="How many; one when left out."
    )
    size: ShortText | None = Field(default=None, description="`auto`, or the pipeline's own, as `64x64`.")
    background: Literal["auto", "transparent", "opaque"] | None = None
    output_format: OutputFormat | None = Field(default=None, description="png when left out.")
    output_compression: Annotated[int, Strict(), Field(ge=0, le=100)] | None = Field(
        default=None, description="Only 100: files have full quality."
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        default=None, description="When left out, `url` for the model names `dall-e-…`, else `b64_json`."
    )
    stream: StrictBool | None = None
    partial_images: Annotated[int, Strict(), Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = Field(
        default=None, description="With `stream`: at most so many pictures of what is on its way."
    )
    style: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="A label of the set `style`; `vivid` and `natural` have no effect."
    )
    seed: Seed | None = Field(default=None, description="The same request and seed give the same bytes.")
    negative_prompt: Prompt | None = None
    labels: Annotated[dict[Annotated[str, Field(max_length=64)], Label], Field(max_length=MAX_LABEL_SETS)] = (
        Field(default={}, description="As in /generate.")
    )
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = Field(
        default=None, description="Without effect; `num_steps` has one."
    )
    complexity: Literal["low", "medium", "high"] | None = Field(default=None, description="Without effect.")
    moderation: Literal["auto", "low"] | None = Field(default=None, description="Without effect.")
    user: ShortText | None = Field(default=None, description="Not kept.")
    safety_identifier: ShortText | None = Field(default=None, description="Not kept.")


class ImagesRequest(VariationsRequest):
    """A request with a prompt."""

    prompt: Prompt = Field(description="What to show. A pipeline without prompts reads the name of a class.")


class EditsRequest(ImagesRequest):
    """A request to edit a picture."""

    input_fidelity: Literal["high", "low"] | None = Field(
        default=None, description="Without effect; `strength` has one."
    )


class ImageData(BaseModel):
    """One picture; or why there is none, while others of the request succeeded."""

    b64_json: str | None = None
    url: str | None = Field(default=None, description="Whole; valid for `SMALTI_RESULT_TTL_S`.")
    error: JobError | None = None


class ImagesAnswer(BaseModel):
    """What OpenAI's `ImagesResponse` has, without `usage`, and three fields of ours at its end."""

    created: int
    data: list[ImageData]
    background: Literal["opaque", "transparent"]
    output_format: OutputFormat
    size: str
    model: str = Field(description="The pipeline that made the pictures.")
    seed: int
    warnings: list[str] = Field(default=[], description="What was not done as asked.")


class ModelInfo(BaseModel):
    """A pipeline that draws."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When its description was written.")
    owned_by: str = "smalti"


class ModelList(BaseModel):
    """All pipelines that draw, the default first."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


def models_of(catalog: Catalog) -> list[PipelineSpec]:
    """Return the pipelines that can draw pictures: those that take a prompt first."""
    specs = [catalog.spec(name) for name in catalog.names]
    drawing = [spec for spec in specs if spec.prior is not None and isinstance(spec.medium, ImageSpec)]
    return sorted(drawing, key=lambda spec: not spec.takes_prompt)


def pipeline_named(model: str, catalog: Catalog) -> PipelineSpec:
    """Return the pipeline of this name, if it draws pictures.

    Raises: UnknownPipeline.
    """
    specs = models_of(catalog)
    for spec in specs:
        if spec.name == model:
            return spec
    known = ", ".join(spec.name for spec in specs[:_MAX_NAMES_TOLD]) or "none, as no pipeline draws pictures"
    raise UnknownPipeline(f"model: there is no {model[:64]!r}; known are {known}")


def pipeline_of(model: str | None, catalog: Catalog) -> PipelineSpec:
    """Return the pipeline that a request means: the default one for no model, and for OpenAI's own.

    Raises: UnknownPipeline.
    """
    specs = models_of(catalog)
    is_open = model is None or (model.startswith(_OPENAI_MODELS) and model not in catalog.names)
    return specs[0] if specs and is_open else pipeline_named(model or "", catalog)


def generate_request(
    request: VariationsRequest, spec: PipelineSpec, files: Mapping[str, bytes] | None = None
) -> GenerateRequest:
    """Return the request in our terms. files: source and mask, if any.

    Raises: InvalidRequest naming OpenAI's field.
    """
    if files and not spec.edits:
        raise InvalidRequest(f"image: {spec.name} takes no picture; leave model out, or name one that does")
    size = size_of(spec)
    if request.size not in (None, "auto", size):
        raise InvalidRequest(
            f"size: {spec.name} makes {size} only, got {request.size!r}; ask for it, or for auto"
        )
    if request.output_compression not in (None, 100):
        raise InvalidRequest(
            f"output_compression: files have full quality; leave it out, or send 100, got"
            f" {request.output_compression}"
        )
    if request.stream and request.response_format == "url":
        raise InvalidRequest("response_format: a stream sends b64_json; leave it out, got 'url'")
    is_ignored = request.style in _OPENAI_STYLES and request.style not in spec.labels.get("style", ())
    fields: dict[str, Any] = {
        **{name: getattr(request, name) for name in OptionFields.model_fields},
        **_shown(request, spec),
        "pipeline": spec.name,
        **{role: in_base64(data) for role, data in (files or {}).items()},
        "negative_prompt": request.negative_prompt,
        "style": None if is_ignored else request.style,
        "num_outputs": request.n or 1,
        "seed": request.seed,
        "format": request.output_format or "png",
        "background": "transparent" if request.background == "transparent" else "white",
        "preview": bool(request.stream and request.partial_images),
        "deadline_s": float(MAX_SECONDS),
    }
    return GenerateRequest.model_validate(fields)


def _shown(request: VariationsRequest, spec: PipelineSpec) -> dict[str, Any]:
    """Return what to show: a prompt, or for a pipeline that takes none, the class of this name.

    Raises: InvalidRequest.
    """
    if not isinstance(request, ImagesRequest):
        return {"labels": request.labels}
    if spec.takes_prompt or "class" not in spec.labels:
        return {"prompt": request.prompt, "labels": request.labels}
    names = spec.labels["class"]
    folded = [name.casefold() for name in names]
    wanted = request.prompt.strip().casefold()
    if wanted in folded:
        return {"labels": request.labels, "class_label": folded.index(wanted)}
    told = ", ".join(names[:_MAX_NAMES_TOLD]) + (", …" if len(names) > _MAX_NAMES_TOLD else "")
    raise InvalidRequest(
        f"prompt: {spec.name} takes the name of a class instead: {told}; got {request.prompt[:60]!r}"
    )


def size_of(spec: PipelineSpec) -> str:
    """Return the size of a pipeline's pictures as OpenAI writes it."""
    assert isinstance(spec.medium, ImageSpec)
    return f"{spec.medium.width_px}x{spec.medium.height_px}"


def wants_urls(request: VariationsRequest) -> bool:
    """Say whether pictures are sent as addresses: as asked, or as the model of this name does."""
    if request.response_format is not None:
        return request.response_format == "url"
    return (request.model or "").startswith(_URL_BY_DEFAULT) and not request.stream


def description_of(request: VariationsRequest, spec: PipelineSpec) -> dict[str, str]:
    """Return what an answer says of all of its pictures."""
    return {
        "background": "transparent" if request.background == "transparent" else "opaque",
        "output_format": request.output_format or "png",
        "size": size_of(spec),
    }


def warnings_of(request: VariationsRequest, spec: PipelineSpec, job: JobView) -> list[str]:
    """Return what was not done as asked."""
    warnings = list(job.result.warnings) if job.result else []
    if request.model not in (None, spec.name):
        warnings.insert(0, f"model: {request.model!r} is not one of this server's; {spec.name} was used")
    return warnings


def images_answer(
    request: VariationsRequest, spec: PipelineSpec, job: JobView, data: Sequence[ImageData]
) -> ImagesAnswer:
    """Return the answer to a request whose job has succeeded."""
    assert job.result is not None
    assert job.result.seed is not None
    return ImagesAnswer.model_validate(
        {
            **description_of(request, spec),
            "created": int((job.ended_at or job.created_at).timestamp()),
            "data": data,
            "model": spec.name,
            "seed": job.result.seed,
            "warnings": warnings_of(request, spec, job),
        }
    )


def format_of(media_type: str) -> str:
    """Return a file's format as OpenAI names it."""
    return _FORMATS[media_type]


def in_base64(data: bytes) -> str:
    """Return bytes as JSON holds them."""
    return base64.b64encode(data).decode()
