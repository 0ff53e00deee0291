"""A request made explicit against its pipeline: every choice made, every field checked. Without torch."""

import difflib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from models.media.base import MediumSpec, medium_of
from models.options import ConfigError, OptionFields, requested
from models.spec import SPEC_FILE, CodesSpec, PipelineSpec
from workers.errors import InvalidCodes, InvalidRequest
from workers.messages import (
    EDIT_ROLES,
    MAX_SAMPLES_PER_JOB,
    BlobReference,
    ClientRequest,
    CodesInfo,
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    Resolved,
)

_MAX_NAMES_TOLD = 20
_SHORTHANDS = {"class_label": "class", "style": "style", "group": "group"}  # field → label set


def resolve_generate(
    request: GenerateRequest,
    spec: PipelineSpec,
    common: Mapping[str, Any] | None = None,
    sources: Sequence[BlobReference] = (),
) -> Resolved:
    """Return a request for samples, explicit.

    common: what every kind of request has; sources: what came in, as it was stored.

    Raises: InvalidRequest.
    """
    if spec.prior is None:
        raise InvalidRequest(f"pipeline: {spec.name} has no prior: it encodes and decodes only")
    if unknown := unknown_fields(request, spec):
        noun = unknown[0].removesuffix("_label")
        taken = ", ".join(_known_fields(spec)) or "none of them"
        message = f"{unknown[0]}: {spec.name} takes no {noun}; it takes {taken}"
        if unknown[0] in EDIT_ROLES and spec.defaults.why_no_edits:
            message = f"{unknown[0]}: {spec.name} takes no {noun}: {spec.defaults.why_no_edits}"
        raise InvalidRequest(message)
    if request.num_outputs is not None and request.num_images is not None:
        raise InvalidRequest("num_images: is the older name of num_outputs; send one of the two")
    _check_size(request, spec)
    _check_inputs(request, spec)
    format = _format(request.format, spec.medium)
    if request.background == "transparent":
        _check_transparency(spec, format)
    given = {
        name: value for name in OptionFields.model_fields if (value := getattr(request, name)) is not None
    }
    try:
        options = requested(spec.defaults.changed(given))
    except ConfigError as error:
        raise InvalidRequest(str(error)) from error
    if request.source is None or spec.needs_source:
        options.pop("strength", None)
    elif request.mask is not None and request.strength is None:
        options["strength"] = 1.0
    return Resolved(
        operation="generate",
        num_samples=request.num_outputs or request.num_images or 1,
        seed=secrets.randbelow(2**53) if request.seed is None else request.seed,
        options=options,
        sources=tuple(sources),
        labels=_labels(request, spec),
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        format=format,
        background=request.background,
        preview=request.preview,
        return_codes=request.return_codes,
        **(common or {"pipeline": spec.name}),
    )


def _check_size(request: GenerateRequest, spec: PipelineSpec) -> None:
    """Raises: InvalidRequest when pictures of a size are asked for that the pipeline does not make."""
    for field in ("width_px", "height_px"):
        asked, own = getattr(request, field), getattr(spec.medium, field, None)
        if asked is not None and asked != own:
            makes = f"{own} only" if own else f"no pictures, but {spec.medium.medium}"
            raise InvalidRequest(f"{field}: {spec.name} makes {makes}, got {asked}")


def _check_inputs(request: GenerateRequest, spec: PipelineSpec) -> None:
    """Raises: InvalidRequest when a source is wanted, or something goes with one, and there is none."""
    if spec.needs_source:
        if request.source is None:
            raise InvalidRequest(
                f"source: {spec.name} draws a picture of {_size_of(spec.takes['source'])} larger; send one"
            )
        if request.strength is not None:
            raise InvalidRequest(
                f"strength: {spec.name} draws all of a larger picture; leave it out, got {request.strength}"
            )
    if request.source is None:
        for field, what in (("mask", "which part of it"), ("strength", "how much of it")):
            if getattr(request, field) is not None:
                raise InvalidRequest(
                    f"{field}: says {what} to draw anew, but there is no source; send one, or leave"
                    f" {field} out"
                )


def _resolve_encode(
    request: EncodeRequest, spec: PipelineSpec, common: Mapping[str, Any], sources: Sequence[BlobReference]
) -> Resolved:
    if request.effort and not spec.can_search:
        raise InvalidRequest(
            f"effort: {spec.name} can't search for codes; leave it out, got {request.effort}"
        )
    if spec.tokenizer is None:
        raise InvalidRequest(
            f"pipeline: {spec.name} doesn't say whose its latents are: its {SPEC_FILE} has no fingerprint, so"
            " they could not be told from others'"
        )
    samples = request.posterior == "sample" or (request.posterior is None and request.seed is not None)
    if samples and not spec.has_posterior:
        field = "posterior" if request.posterior else "seed"
        raise InvalidRequest(f"{field}: {spec.name} draws nothing when it encodes; leave it out")
    if request.seed is not None and not samples:
        raise InvalidRequest(f"seed: the mean of a posterior needs none; leave it out, got {request.seed}")
    seed = (secrets.randbelow(2**53) if request.seed is None else request.seed) if samples else None
    return Resolved(
        operation="encode",
        seed=seed,
        samples_posterior=samples,
        num_samples=len(sources),
        sources=tuple(sources),
        effort=request.effort,
        return_codes=True,
        return_psnr=request.return_psnr,
        warnings=() if request.pipeline else (_default_tokenizer(spec),),
        **common,
    )


def _default_tokenizer(spec: PipelineSpec) -> str:
    """Warn of a tokenizer that its client has not chosen."""
    return (
        f"pipeline: none was named, so {spec.name} encodes, at {_size_of(spec.medium)}: what its tokenizer"
        " was not trained on may lose much; return_psnr tells how much"
    )


def _size_of(spec: MediumSpec) -> str:
    """Return a picture's size in words."""
    return " x ".join(str(size) for name, size in asdict(spec).items() if name.endswith("_px")) + " px"


def _resolve_decode(
    request: DecodeRequest, spec: PipelineSpec, common: Mapping[str, Any], sources: Sequence[BlobReference]
) -> Resolved:
    format = _format(request.format, spec.medium)
    if request.latents is not None:
        return Resolved(
            operation="decode", num_samples=len(sources), sources=tuple(sources), format=format, **common
        )
    assert spec.codes is not None
    codes = request.codes.codes if isinstance(request.codes, CodesInfo) else request.codes
    if not codes or len(codes) > MAX_SAMPLES_PER_JOB:
        raise InvalidCodes(f"codes: 1 to {MAX_SAMPLES_PER_JOB} grids, got {len(codes or ())}")
    for index, grid in enumerate(codes):
        if grid is None:
            raise InvalidCodes(f"codes[{index}]: is null, as its sample failed; leave it out")
        _check_grid(grid, spec.codes, f"codes[{index}]", spec.name)
    return Resolved(
        operation="decode",
        num_samples=len(codes),
        codes=list(codes),
        format=format,
        **common,
    )


RESOLVERS: dict[type[ClientRequest], Callable[..., Resolved]] = {
    GenerateRequest: resolve_generate,
    EncodeRequest: _resolve_encode,
    DecodeRequest: _resolve_decode,
}


def _labels(request: GenerateRequest, spec: PipelineSpec) -> dict[str, int]:
    """Return the numbers of the labels that a request names, by set."""
    numbers = {}
    for field, label_set, label in _named_labels(request):
        if label_set in numbers:
            raise InvalidRequest(f"{field}: is short for labels.{label_set}; send one of the two")
        numbers[label_set] = _number(field, label, spec.labels[label_set], spec)
    return numbers


def _named_labels(request: GenerateRequest) -> list[tuple[str, str, str | int]]:
    """Return (field, label set, label) of every label in a request."""
    named = [(f"labels.{name}", name, label) for name, label in request.labels.items()]
    short = [(field, name, getattr(request, field)) for field, name in _SHORTHANDS.items()]
    return named + [each for each in short if each[2] is not None]


def _number(field: str, label: str | int, known: Sequence[str], spec: PipelineSpec) -> int:
    """Return the number of a label given by name (in any case) or number."""
    noun = field.removesuffix("_label").removeprefix("labels.")
    names = [name.casefold() for name in known]
    if isinstance(label, str):
        if label.strip().casefold() in names:
            return names.index(label.strip().casefold())
        if not label.strip().isdecimal():
            raise InvalidRequest(f"{field}: {spec.name} has no {noun} {label!r}; {one_of(label, known)}")
    number = int(label)
    if number >= len(names):
        raise InvalidRequest(
            f"{field}: {spec.name} has numbers 0 to {len(names) - 1}, got {number}; {one_of('', known)}"
        )
    return number


def _known_fields(spec: PipelineSpec) -> list[str]:
    """Return the fields that say what to show, of those that a pipeline takes."""
    short = [field for field, name in _SHORTHANDS.items() if name in spec.labels]
    others = [f"labels.{name}" for name in spec.labels if name not in _SHORTHANDS.values()]
    needed = ["source"] if spec.needs_source else []
    return needed + short + others + (["prompt", "negative_prompt"] if spec.takes_prompt else [])


def unknown_fields(request: GenerateRequest, spec: PipelineSpec) -> list[str]:
    """Return the fields of a request that its pipeline does not take."""
    prompts = [name for name in ("prompt", "negative_prompt") if getattr(request, name) is not None]
    unknown = [] if spec.takes_prompt else prompts
    unknown += [name for name in EDIT_ROLES if getattr(request, name) is not None and name not in spec.inputs]
    return unknown + [field for field, name, _ in _named_labels(request) if name not in spec.labels]


def _format(asked: str | None, medium: MediumSpec) -> str:
    """Return the format of a request's files."""
    formats = list(medium_of(medium.medium).formats)
    if asked is not None and asked not in formats:
        raise InvalidRequest(f"format: {medium.medium} files are {', '.join(formats)}, got {asked!r}")
    return asked or formats[0]


def _check_transparency(spec: PipelineSpec, format: str) -> None:
    if getattr(spec.medium, "channels", None) != 3 or format == "jpeg":
        raise InvalidRequest(
            f"background: transparent is for colour pipelines as PNG or WebP, got {spec.name} as {format}"
        )


def _check_grid(value: Any, codes: CodesSpec, where: str, name: str) -> None:
    """Check nested lists of codes: (*grid), or (codebook, *grid) with several codebooks.

    Raises: InvalidCodes naming the place.
    """
    sides = codes.grid if codes.num_codebooks == 1 else (codes.num_codebooks, *codes.grid)
    shape = " x ".join(map(str, sides))

    def check(value: Any, axis: int, where: str) -> None:
        if axis == len(sides):
            if type(value) is not int or not 0 <= value < codes.size:
                raise InvalidCodes(f"{where}: a code is from 0 to {codes.size - 1}, got {_shown(value)}")
            return
        if not isinstance(value, list) or len(value) != sides[axis]:
            got = f"{len(value)} of them" if isinstance(value, list) else "no list"
            raise InvalidCodes(f"{where}: {name} has {shape} codes, so {sides[axis]} here; got {got}")
        for index, each in enumerate(value):
            check(each, axis + 1, f"{where}[{index}]")

    check(value, 0, where)


def _shown(value: Any) -> str:
    """Return a value from JSON as a message shows it; a list or object may be large and deep."""
    match value:
        case list():
            return f"a list of {len(value)}"
        case dict():
            return "an object"
    return json.dumps(value)[:20]


def one_of(got: str, known: Sequence[str]) -> str:
    """Say which names there are, the nearest first where there are many."""
    if len(known) <= _MAX_NAMES_TOLD:
        return f"known are {', '.join(known)}"
    nearest = difflib.get_close_matches(got, known, n=3) or list(known[:3])
    return f"known are {', '.join(nearest)} and {len(known) - len(nearest)} others; see /pipelines"
