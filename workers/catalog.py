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

        Raises: UnknownPipeline; InvalidRequest naming the known classes; InvalidCodes naming the code.
        """
        resolved: Request
        match request:
            case GenerateRequest():
                resolved = _resolve_generate(request, self.config(request.pipeline))
            case EncodeRequest():
                resolved = request.model_copy(update={"pipeline": self.config(request.pipeline).name})
            case DecodeRequest():
                resolved = self._resolve_decode(request)
        return cast(AnyRequest, resolved)

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
    chosen = {
        "pipeline": config.name,
        "class_label": _class_number(request.class_label, config),
        "seed": secrets.randbelow(2**53) if request.seed is None else request.seed,
        "num_steps": request.num_steps or defaults.num_steps,
        "guidance_scale": (
            defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
        ),
        "sampler": request.sampler or defaults.sampler,
    }
    return request.model_copy(update=chosen)


def _class_number(label: str | int | None, config: PipelineConfig) -> int | None:
    """Return the number of a class given by name (in any case) or number; None, for no class, stays."""
    if label is None:
        return None
    names = [name.casefold() for name in config.class_names]
    if isinstance(label, str):
        if label.strip().casefold() in names:
            return names.index(label.strip().casefold())
        if not label.strip().isdecimal():
            raise InvalidRequest(
                f"class_label: {config.name} has no class {label!r}; {_one_of(label, config.class_names)}"
            )
    number = int(label)
    if number >= len(names):
        raise InvalidRequest(
            f"class_label: {config.name} has classes 0 to {len(names) - 1}, got {number};"
            f" {_one_of('', config.class_names)}"
        )
    return number


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
        image_size_px=config.tokenizer.image_size_px,
        image_channels=config.tokenizer.image_channels,
        grid=config.tokenizer.grid,
        codebook_size=config.tokenizer.codebook_size,
        tokenizer=config.tokenizer_fingerprint,
        num_steps=config.defaults.num_steps,
        guidance_scale=config.defaults.guidance_scale,
        sampler=config.defaults.sampler,
        example=GenerateRequest(
            pipeline=config.name, class_label=config.class_names[-1] if config.class_names else None, seed=7
        ),
    )


def _one_of(got: str, known: Sequence[str]) -> str:
    """Say which names there are, the nearest first where there are many."""
    if len(known) <= _MAX_NAMES_TOLD:
        return f"known are {', '.join(known)}"
    nearest = difflib.get_close_matches(got, known, n=3) or list(known[:3])
    return f"known are {', '.join(nearest)} and {len(known) - len(nearest)} others; see /pipelines"
