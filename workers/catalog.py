"""The pipelines that are served: what each takes, and which of them a request is for. Without torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from models.media.base import MediumSpec, medium_of
from models.options import ConfigError, option_schemas, requested
from models.spec import SPEC_FILE, PipelineSpec
from workers.errors import InvalidCodes, InvalidLatents, InvalidRequest, UnknownPipeline
from workers.messages import (
    BlobReference,
    ClientRequest,
    CodesInfo,
    DecodeRequest,
    GenerateRequest,
    LatentsInfo,
    MediumInfo,
    OptionInfo,
    PipelineInfo,
    Resolved,
)
from workers.resolving import RESOLVERS, one_of, resolve_generate, unknown_fields


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
            raise UnknownPipeline(f"pipeline: there is no {name!r}; {one_of(name, self.names)}") from None

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
        fitting = [spec for spec in self._specs() if not unknown_fields(request, spec)]
        for spec in fitting if len(fitting) > 1 else ():
            try:
                resolve_generate(request, spec)
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
        return RESOLVERS[type(request)](request, spec, common, sources)

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
