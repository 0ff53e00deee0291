"""The pipelines that are served: what each takes, and requests made explicit against it. Without torch."""

import difflib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from models.config import ConfigError, PipelineConfig
from workers.errors import InvalidCodes, InvalidRequest, UnknownPipeline
from workers.messages import (
    Codes,
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    PipelineInfo,
    Request,
)

CONFIG_FILE = "pipeline.json"
_MAX_NAMES_TOLD = 20

AnyRequest = TypeVar("AnyRequest", bound=Request)


@dataclass(frozen=True)
class CatalogEntry:
    config: PipelineConfig
    folder: Path


class Catalog:
    """Pipelines by name; the first is the one that a request gets that names none."""

    def __init__(self, entries: Sequence[CatalogEntry]) -> None:
        if not entries:
            raise ConfigError("there is no pipeline to serve")
        self._entries = {entry.config.name: entry for entry in entries}
        if len(self._entries) < len(entries):
            names = [entry.config.name for entry in entries]
            twice = next(name for name in names if names.count(name) > 1)
            folders = ", ".join(str(entry.folder) for entry in entries if entry.config.name == twice)
            raise ConfigError(f"several pipelines are named {twice!r}: {folders}")

    @classmethod
    def load(cls, weights_dir: Path, names: Sequence[str] | None = None) -> "Catalog":
        """Read `<weights_dir>/*/pipeline.json`: those of `names`, in that order, or all, sorted by name.

        Raises: ConfigError when there is none, one can't be used, or a name is unknown.
        """
        files = sorted(weights_dir.glob(f"*/{CONFIG_FILE}"))
        if not files:
            raise ConfigError(f"{weights_dir} holds no pipeline: there is no */{CONFIG_FILE} in it")
        catalog = cls([CatalogEntry(PipelineConfig.load(file), file.parent) for file in files])
        try:
            return cls([catalog[name] for name in names or sorted(catalog.names)])
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

    def config(self, name: str | None) -> PipelineConfig:
        """Return a pipeline's configuration; the default one's for None.

        Raises: UnknownPipeline.
        """
        return self[self.names[0] if name is None else name].config

    def info(self) -> list[PipelineInfo]:
        """Return what every pipeline takes and makes, the default first."""
        return [_info(entry.config) for entry in self._entries.values()]

    def resolve(self, request: AnyRequest) -> AnyRequest:
        """Return the request with every choice made that its client left open, checked against its pipeline.

        Raises: UnknownPipeline; InvalidRequest naming the known labels; InvalidCodes naming the code.
        """
        resolved: Request
        match request:
            case GenerateRequest():
                resolved = _resolve_generate(request, self._config_for(request))
            case EncodeRequest():
                resolved = request.model_copy(update={"pipeline": self.config(request.pipeline).name})
            case DecodeRequest():
                resolved = self._resolve_decode(request)
        return cast(AnyRequest, resolved)

    def _config_for(self, request: GenerateRequest) -> PipelineConfig:
        """Return the pipeline that a request names, or the first that can do what it asks for.

        Where none can, it is the first that takes such fields at all, whose complaint will say most.
        """
        if request.pipeline is not None:
            return self.config(request.pipeline)
        configs = [entry.config for entry in self._entries.values()]
        fitting = [config for config in configs if not _untaken(request, config)]
        for config in fitting:
            try:
                _resolve_generate(request, config)
            except InvalidRequest:
                continue
            return config
        return (fitting or configs)[0]

    def _resolve_decode(self, request: DecodeRequest) -> DecodeRequest:
        configs = [entry.config for entry in self._entries.values()]
        if request.pipeline is not None:
            configs = [self.config(request.pipeline)]
        for config in configs:
            if config.tokenizer_fingerprint == request.tokenizer:
                _check_codes(request.codes, config)
                return request.model_copy(update={"pipeline": config.name})
        known = ", ".join(f"{config.tokenizer_fingerprint} ({config.name})" for config in configs)
        raise InvalidCodes(
            f"tokenizer: these codes were made by {request.tokenizer}, and no pipeline here has that"
            f" tokenizer: {known}. Codes of one tokenizer mean nothing to another."
        )


def _resolve_generate(request: GenerateRequest, config: PipelineConfig) -> GenerateRequest:
    defaults = config.defaults
    if untaken := _untaken(request, config):
        noun = untaken[0].removesuffix("_label")
        taken = ", ".join(_taken(config)) or "none of them"
        raise InvalidRequest(f"{untaken[0]}: {config.name} takes no {noun}; it takes {taken}")
    is_grey = config.tokenizer.image_channels == 1
    if request.background == "transparent" and (is_grey or request.format == "jpeg"):
        raise InvalidRequest(
            "background: transparent is for colour pipelines as PNG or WebP,"
            f" got {config.name} as {request.format}"
        )
    chosen = {
        "pipeline": config.name,
        "class_label": _number("class_label", request.class_label, config.class_names, config),
        "style": _number("style", request.style, config.style_names, config),
        "group": _number("group", request.group, config.group_names, config),
        "seed": secrets.randbelow(2**53) if request.seed is None else request.seed,
        "num_steps": request.num_steps or defaults.num_steps,
        "guidance_scale": (
            defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
        ),
        "sampler": request.sampler or defaults.sampler,
    }
    return request.model_copy(update=chosen)


def _number(field: str, label: str | int | None, known: Sequence[str], config: PipelineConfig) -> int | None:
    """Return the number of a label given by name (in any case) or number; None, for any, stays."""
    if label is None:
        return None
    noun = field.removesuffix("_label")
    names = [name.casefold() for name in known]
    if isinstance(label, str):
        if label.strip().casefold() in names:
            return names.index(label.strip().casefold())
        if not label.strip().isdecimal():
            raise InvalidRequest(f"{field}: {config.name} has no {noun} {label!r}; {_one_of(label, known)}")
    number = int(label)
    if number >= len(names):
        raise InvalidRequest(
            f"{field}: {config.name} has numbers 0 to {len(names) - 1}, got {number}; {_one_of('', known)}"
        )
    return number


def _taken(config: PipelineConfig) -> list[str]:
    """Return the fields that say what to show, of those that a pipeline takes."""
    taken = {
        "class_label": bool(config.class_names),
        "prompt": config.prior.takes_prompt,
        "negative_prompt": config.prior.takes_prompt,
        "style": bool(config.style_names),
        "group": bool(config.group_names),
    }
    return [name for name, is_taken in taken.items() if is_taken]


def _untaken(request: GenerateRequest, config: PipelineConfig) -> list[str]:
    """Return the fields of a request that its pipeline does not take."""
    fields = ("class_label", "prompt", "negative_prompt", "style", "group")
    return [name for name in fields if getattr(request, name) is not None and name not in _taken(config)]


def _check_codes(codes: list[Codes], config: PipelineConfig) -> None:
    num_rows, num_columns = config.tokenizer.grid
    limit = config.tokenizer.codebook_size
    for image, rows in enumerate(codes):
        if len(rows) != num_rows:
            raise InvalidCodes(
                f"codes[{image}]: {config.name} has {num_rows} rows of {num_columns} codes,"
                f" got {len(rows)} rows"
            )
        for row, columns in enumerate(rows):
            if len(columns) != num_columns:
                raise InvalidCodes(
                    f"codes[{image}][{row}]: {config.name} has {num_columns} codes a row, got {len(columns)}"
                )
            if min(columns) < 0 or max(columns) >= limit:
                column = next(i for i, code in enumerate(columns) if not 0 <= code < limit)
                raise InvalidCodes(
                    f"codes[{image}][{row}][{column}]: a code is from 0 to {limit - 1}, got {columns[column]}"
                )


def _info(config: PipelineConfig) -> PipelineInfo:
    return PipelineInfo(
        name=config.name,
        class_names=config.class_names,
        style_names=config.style_names,
        group_names=config.group_names,
        takes_prompt=config.prior.takes_prompt,
        image_size_px=config.tokenizer.image_size_px,
        image_channels=config.tokenizer.image_channels,
        grid=config.tokenizer.grid,
        codebook_size=config.tokenizer.codebook_size,
        tokenizer=config.tokenizer_fingerprint,
        num_steps=config.defaults.num_steps,
        guidance_scale=config.defaults.guidance_scale,
        sampler=config.defaults.sampler,
        example=GenerateRequest(
            pipeline=config.name,
            class_label=config.class_names[-1] if config.class_names else None,
            prompt=config.example_prompt,
            style=config.style_names[0] if config.style_names else None,
            seed=7,
        ),
    )


def _one_of(got: str, known: Sequence[str]) -> str:
    """Say which names there are, the nearest first where there are many."""
    if len(known) <= _MAX_NAMES_TOLD:
        return f"known are {', '.join(known)}"
    nearest = difflib.get_close_matches(got, known, n=3) or list(known[:3])
    return f"known are {', '.join(nearest)} and {len(known) - len(nearest)} others; see /pipelines"
