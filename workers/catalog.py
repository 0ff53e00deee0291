"""The pipelines that are served: what each takes, and requests made explicit against it. Without torch."""

import difflib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.media.base import MediumSpec, medium_of
from models.options import ConfigError, OptionFields, option_schemas, requested
from models.spec import SPEC_FILE, CodesSpec, PipelineSpec
from workers.errors import InvalidCodes, InvalidLatents, InvalidRequest, UnknownPipeline
from workers.messages import (
    EDIT_ROLES,
    MAX_SAMPLES_PER_JOB,
    BlobReference,
    ClientRequest,
    CodesInfo,
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    LatentsInfo,
    MediumInfo,
    OptionInfo,
    PipelineInfo,
    Resolved,
)

_MAX_NAMES_TOLD = 20
_SHORTHANDS = {"class_label": "class", "style": "style", "group": "group"}  # field → label set


@dataclass(frozen=True)
class CatalogEntry:
    """A pipeline in its folder. stamp: changes with the files in it, where somebody watches them."""

    spec: PipelineSpec
    folder: Path
    stamp: str = ""


class Catalog:
    """Pipelines by name; the first is the one that a request gets that names none."""

    def __init__(self, entries: Sequence[CatalogEntry]) -> None:
        if not entries:
            raise ConfigError("there is no pipeline to serve")
        self._entries = {entry.spec.name: entry for entry in entries}
        if len(self._entries) < len(entries):
            names = [entry.spec.name for entry in entries]
            twice = next(name for name in names if names.count(name) > 1)
            folders = ", ".join(str(entry.folder) for entry in entries if entry.spec.name == twice)
            raise ConfigError(f"several pipelines are named {twice!r}: {folders}")
        self._first_names = tuple(self._entries)
        self.refused: Mapping[str, str] = {}

    @classmethod
    def load(cls, weights_dir: Path, names: Sequence[str] | None = None) -> "Catalog":
        """Read `<weights_dir>/*/pipeline.json`: those of `names`, in that order, or all, ``in_order``.

        Raises: ConfigError when there is none, one can't be used, or a name is unknown.
        """
        files = sorted(weights_dir.glob(f"*/{SPEC_FILE}"))
        if not files:
            raise ConfigError(
                f"{weights_dir.absolute()} holds no pipeline: there is no */{SPEC_FILE} in it. Set"
                " SMALTI_WEIGHTS_DIR to the folder of pipeline folders, such as weights/ of the repository"
            )
        catalog = cls([CatalogEntry(PipelineSpec.load(file), file.parent) for file in files])
        try:
            return cls([catalog[name] for name in names] if names else in_order(catalog.entries))
        except UnknownPipeline as error:
            raise ConfigError(f"{weights_dir}: {error}") from error

    def __getitem__(self, name: str) -> CatalogEntry:
        """Return the pipeline of this name.

        Raises: UnknownPipeline, telling the names there are.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownPipeline(f"pipeline: there is no {name!r}; {_one_of(name, self.names)}") from None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def first_names(self) -> tuple[str, ...]:
        """Those that were there from the start, and still are."""
        return tuple(name for name in self._first_names if name in self._entries)

    @property
    def entries(self) -> tuple[CatalogEntry, ...]:
        return tuple(self._entries.values())

    def replace(self, entries: Sequence[CatalogEntry], refused: Mapping[str, str]) -> None:
        """Hold these pipelines from now on; requests see all of the change or nothing of it.

        refused: by folder, why one in it can't be had.
        """
        self._entries = {entry.spec.name: entry for entry in entries}
        self.refused = dict(refused)

    def spec(self, name: str | None) -> PipelineSpec:
        """Return what a pipeline makes and takes; the default one for None.

        Raises: UnknownPipeline.
        """
        if name is None and not self._entries:
            raise UnknownPipeline("pipeline: there is none any more: their folders are gone")
        return self[self.names[0] if name is None else name].spec

    def info(self) -> list[PipelineInfo]:
        """Return what every pipeline takes and makes, the default first."""
        return [_info(spec) for spec in self._specs()]

    def pipeline_for(self, request: ClientRequest) -> PipelineSpec:
        """Return the pipeline that a request names, or the first that can do what it asks for.

        Where none can, it is the first that takes such fields at all, whose complaint will say most.

        Raises: UnknownPipeline; InvalidCodes or InvalidLatents when no pipeline has their tokenizer.
        """
        if isinstance(request, DecodeRequest):
            return self._pipeline_of_tokenizer(request)
        if request.pipeline is not None or not isinstance(request, GenerateRequest):
            return self.spec(request.pipeline)
        fitting = [spec for spec in self._specs() if not _unknown_fields(request, spec)]
        for spec in fitting if len(fitting) > 1 else ():
            try:
                _resolve_generate(request, spec)
            except InvalidRequest:
                continue
            return spec
        return fitting[0] if fitting else self.spec(None)

    def resolve(self, request: ClientRequest, sources: Sequence[BlobReference] = ()) -> Resolved:
        """Return the request with every choice made that its client left open, checked against its pipeline.

        sources: what came in, as it was stored; one sample each, also of latents to decode.

        Raises: UnknownPipeline; InvalidRequest naming the known labels; InvalidCodes naming the code;
            InvalidLatents.
        """
        spec = self.pipeline_for(request)
        common = {
            "pipeline": spec.name,
            "priority": request.priority,
            "deadline_s": request.deadline_s,
        }
        return _RESOLVERS[type(request)](request, spec, common, sources)

    def check(self, request: ClientRequest) -> None:
        """Check a request against its pipeline before its files are read.

        Raises: as ``resolve``.
        """
        if isinstance(request, GenerateRequest):
            self.resolve(request)

    def _specs(self) -> Iterator[PipelineSpec]:
        return (entry.spec for entry in self._entries.values())

    def _pipeline_of_tokenizer(self, request: DecodeRequest) -> PipelineSpec:
        if (request.codes is None) is (request.latents is None):
            got = "neither" if request.codes is None else "both"
            raise InvalidRequest(f"codes: is required, or latents instead; got {got}")
        what, kind = ("codes", InvalidCodes) if request.codes is not None else ("latents", InvalidLatents)
        given = request.codes if request.codes is not None else request.latents
        told = given.tokenizer if isinstance(given, CodesInfo | LatentsInfo) else None
        tokenizer = told or request.tokenizer
        if tokenizer is None:
            raise kind(f"tokenizer: is required beside {what}; /encode tells it")
        if request.tokenizer not in (None, tokenizer):
            raise kind(f"tokenizer: got {request.tokenizer}, but the {what} were made by {tokenizer}")
        specs = list(self._specs()) if request.pipeline is None else [self.spec(request.pipeline)]
        fitting = [spec for spec in specs if (spec.codes is None) is (request.codes is None)]
        for spec in fitting:
            if spec.tokenizer == tokenizer:
                return spec
        known = ", ".join(f"{spec.tokenizer} ({spec.name})" for spec in fitting if spec.tokenizer)
        if not known:
            names = ", ".join(spec.name for spec in specs)
            raise kind(f"{what}: {names} can't decode {what}; GET /pipelines tells what each encodes to")
        raise kind(
            f"tokenizer: these {what} were made by {tokenizer}, which is not the tokenizer of"
            f" {known}. {what.capitalize()} of one tokenizer mean nothing to another."
        )


def in_order(entries: Iterable[CatalogEntry]) -> list[CatalogEntry]:
    """Return pipelines by name, those last that do nothing without a source: none of them is the default."""
    return sorted(entries, key=lambda entry: (entry.spec.needs_source, entry.spec.name))


def _resolve_generate(
    request: GenerateRequest,
    spec: PipelineSpec,
    common: Mapping[str, Any] | None = None,
    sources: Sequence[BlobReference] = (),
) -> Resolved:
    if spec.prior is None:
        raise InvalidRequest(f"pipeline: {spec.name} has no prior: it encodes and decodes only")
    if unknown := _unknown_fields(request, spec):
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


_RESOLVERS: dict[type[ClientRequest], Callable[..., Resolved]] = {
    GenerateRequest: _resolve_generate,
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
            raise InvalidRequest(f"{field}: {spec.name} has no {noun} {label!r}; {_one_of(label, known)}")
    number = int(label)
    if number >= len(names):
        raise InvalidRequest(
            f"{field}: {spec.name} has numbers 0 to {len(names) - 1}, got {number}; {_one_of('', known)}"
        )
    return number


def _known_fields(spec: PipelineSpec) -> list[str]:
    """Return the fields that say what to show, of those that a pipeline takes."""
    short = [field for field, name in _SHORTHANDS.items() if name in spec.labels]
    others = [f"labels.{name}" for name in spec.labels if name not in _SHORTHANDS.values()]
    needed = ["source"] if spec.needs_source else []
    return needed + short + others + (["prompt", "negative_prompt"] if spec.takes_prompt else [])


def _unknown_fields(request: GenerateRequest, spec: PipelineSpec) -> list[str]:
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


def _info(spec: PipelineSpec) -> PipelineInfo:
    schemas = option_schemas(spec.defaults)
    example = None
    if spec.prior is not None and not spec.needs_source:
        example = GenerateRequest(
            pipeline=spec.name,
            class_label=spec.labels["class"][-1] if "class" in spec.labels else None,
            prompt=spec.example_prompt,
            style=spec.labels["style"][0] if "style" in spec.labels else None,
            seed=7,
        )
    return PipelineInfo(
        name=spec.name,
        makes=tuple(map(_medium_info, spec.makes)),
        takes={role: _medium_info(each) for role, each in spec.inputs.items()},
        needs_source=spec.needs_source,
        labels=spec.labels,
        takes_prompt=spec.takes_prompt,
        options={
            name: OptionInfo(default=value, json_schema=schemas.get(name, {}) | spec.defaults.narrowed(name))
            for name, value in requested(spec.defaults).items()
            if name != "strength" or spec.edits
        },
        grid=spec.codes.grid if spec.codes else spec.latents[1:],
        codebook_size=spec.codes.size if spec.codes else None,
        num_codebooks=spec.codes.num_codebooks if spec.codes else None,
        tokenizer=spec.tokenizer,
        latents=None if spec.codes else spec.latents,
        has_posterior=spec.has_posterior,
        example=example,
    )


def _medium_info(spec: MediumSpec) -> MediumInfo:
    sizes = {name: value for name, value in asdict(spec).items() if name != "medium"}
    return MediumInfo(medium=spec.medium, formats=tuple(medium_of(spec.medium).formats), sizes=sizes)


def _one_of(got: str, known: Sequence[str]) -> str:
    """Say which names there are, the nearest first where there are many."""
    if len(known) <= _MAX_NAMES_TOLD:
        return f"known are {', '.join(known)}"
    nearest = difflib.get_close_matches(got, known, n=3) or list(known[:3])
    return f"known are {', '.join(nearest)} and {len(known) - len(nearest)} others; see /pipelines"
