"""``pipeline.json``: what the front end needs to know of a pipeline, and no architecture. Without torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from models.media.base import MEDIA, MediumSpec, medium_of
from models.options import CHECKED, ConfigError, Count, FlowOptions, Options, describe_invalid, read_options

SPEC_FILE = "pipeline.json"
SPEC_FORMAT = 2

_FOLDER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SEARCHABLE = {"vq"}  # kinds of autoencoders
_LATER = {"fingerprint": None, "has_posterior": False}  # fields of format 2 that its first version lacks
_LATER_OPTIONS = {"strength": FlowOptions.strength}
_LABELS_OF_FORMAT_1 = {"class": "class_names", "style": "style_names", "group": "group_names"}


def check_folder_name(name: str) -> str:
    """Return ``name`` if a folder of a pipeline may have it. Raises: ConfigError."""
    if not _FOLDER_NAME.fullmatch(name):
        raise ConfigError(
            "must be the name of a folder, of 1 to 64 characters from a-z, 0-9, '.', '_' and '-',"
            f" got {name!r:.60}"
        )
    return name


def _read_medium(raw: Any) -> Any:
    """Return what a medium adds, of its own class, from JSON."""
    if not isinstance(raw, dict):
        return raw
    name = raw.get("medium")
    if not isinstance(name, str) or name not in MEDIA:
        raise ConfigError(f"medium: known are {', '.join(MEDIA)}, got {name!r:.60}")
    try:
        return TypeAdapter(medium_of(name).spec_class).validate_python(raw)
    except ValidationError as error:
        raise ConfigError(describe_invalid(error)) from error


Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
FolderName = Annotated[str, AfterValidator(check_folder_name)]
AnyMedium = Annotated[MediumSpec, BeforeValidator(_read_medium)]


@dataclass(frozen=True, config=CHECKED)
class CodesSpec:
    """The codes of a tokenizer. ``fingerprint``: 16 hexadecimal digits that tell it from all others."""

    grid: Annotated[tuple[Count, ...], Field(min_length=1, max_length=3)]
    size: Annotated[int, Field(ge=2, le=2**20)]
    fingerprint: Fingerprint
    num_codebooks: Count = 1


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PipelineSpec:
    """What a pipeline makes and takes.

    makes: a specification for each medium that it makes; takes: by role ("source"), what comes in: a source
    of another size than what it makes must, as it draws that larger.
    latents: the shape (d, *grid) of what its prior samples. codes: None where the autoencoder has no
    codebook: what it encodes to are latents then, ``fingerprint`` tells it from all others, and
    ``has_posterior`` says whether latents can be drawn from a distribution. labels: the names in each set, by
    the set's name. autoencoders: by medium, and prior: kinds of ``models/registry.py``; without a prior, a
    pipeline encodes and decodes only. ``example_prompt`` is shown to people who ask what a pipeline takes.
    ``shares_with`` names the folder beside it that has its autoencoder and text encoder, where it has none of
    its own.
    """

    name: FolderName
    makes: tuple[AnyMedium, ...]
    latents: tuple[Count, ...]
    autoencoders: Mapping[str, str]
    codes: CodesSpec | None = None
    fingerprint: Fingerprint | None = None
    has_posterior: bool = False
    takes: Mapping[str, AnyMedium] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    takes_prompt: bool = False
    prior: str | None = None
    defaults: Options = field(default_factory=Options)
    example_prompt: str | None = None
    shares_with: FolderName | None = None

    def __post_init__(self) -> None:
        if not self.makes:
            raise ConfigError("makes: at least one medium, got none")
        for label_set, names in self.labels.items():
            folded = [name.strip().casefold() for name in names]
            if "" in folded or len(set(folded)) < len(folded):
                raise ConfigError(
                    f"labels: the names of {label_set} must differ and not be empty, got {names}"
                )
        if self.codes is not None and (self.fingerprint or self.has_posterior):
            field = "fingerprint" if self.fingerprint else "has_posterior"
            raise ConfigError(f"{field}: is for pipelines without codes")
        for medium in self.makes:
            if medium.medium not in self.autoencoders:
                raise ConfigError(f"autoencoders: none for {medium.medium}")

    @property
    def medium(self) -> MediumSpec:
        """What it makes; of several, the first."""
        return self.makes[0]

    @property
    def tokenizer(self) -> str | None:
        """The fingerprint of its autoencoder; None where there are no codes, and it isn't told."""
        return self.fingerprint if self.codes is None else self.codes.fingerprint

    @property
    def codebook_size(self) -> int | None:
        """How many codes there are; None where there are none."""
        return self.codes.size if self.codes else None

    @property
    def needs_source(self) -> bool:
        """Whether all that it does is to draw a picture that comes in larger."""
        return self.takes.get("source", self.medium) != self.medium

    @property
    def edits(self) -> bool:
        """Whether it also draws pictures that come in anew, or parts of them."""
        can_edit = "strength" in self.defaults.requestable and bool(self.prior)
        return self.medium.medium == "image" and can_edit and not self.needs_source

    @property
    def inputs(self) -> Mapping[str, MediumSpec]:
        """What may come in with a request to generate, by role."""
        if not self.edits:
            return self.takes
        mask = type(self.medium)(**{**asdict(self.medium), "channels": 1})
        return {**self.takes, "source": self.medium, "mask": mask}

    @property
    def can_search(self) -> bool:
        """Whether codes can be searched for that decode better than the nearest."""
        return self.codes is not None and self.autoencoders[self.medium.medium] in _SEARCHABLE

    def save(self, path: Path) -> None:
        """Write ``pipeline.json``."""
        path.write_text(json.dumps({"format": SPEC_FORMAT, **self._written()}, indent=2) + "\n")

    def _written(self) -> dict[str, Any]:
        """Return the fields, of those that came later only what is set, so that older versions read them."""
        written = asdict(self)
        for holder, later in ((written, _LATER), (written["defaults"], _LATER_OPTIONS)):
            for name, unset in later.items():
                if name in holder and holder[name] == unset:
                    del holder[name]
        return written

    @classmethod
    def load(cls, path: Path) -> "PipelineSpec":
        """Read ``pipeline.json``, of this format or the one before.

        Raises: ConfigError, in one line, when the file is missing, is not JSON, is of a newer format, or has
        missing, unknown or bad fields.
        """
        try:
            text = path.read_text("utf-8-sig")
            if text.startswith("version https://git-lfs.github.com/spec/"):
                raise ConfigError(f"{path} is a Git LFS pointer: run `git lfs pull` in its repository")
            raw = json.loads(text)
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{path} is not valid JSON: {error}") from error
        try:
            fields = _fields_of_format_2(raw)
            family = fields.get("prior")
            options = Options() if family is None else read_options(family, fields.get("defaults", {}))
            return _READER.validate_python({**fields, "defaults": options})
        except ValidationError as error:
            raise ConfigError(f"{path}: {describe_invalid(error)}") from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


_READER: TypeAdapter[PipelineSpec] = TypeAdapter(PipelineSpec)


def _fields_of_format_2(raw: Any) -> dict[str, Any]:
    """Return the fields of a file of any format that is known.

    Raises: ConfigError.
    """
    if not isinstance(raw, dict) or "format" not in raw:
        raise ConfigError("format: is missing, so this is not a pipeline's description")
    fields = dict(raw)
    match fields.pop("format"):
        case 1:
            return _from_format_1(fields)
        case 2:
            return fields
        case int() as newer if newer > SPEC_FORMAT:
            raise ConfigError(
                f"format: was made by a newer Smalti, this one reads 1 to {SPEC_FORMAT}, got {newer};"
                " update Smalti"
            )
        case other:
            raise ConfigError(f"format: must be 1 or {SPEC_FORMAT}, got {other!r:.60}")


def _from_format_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of format 2 from those of format 1, which held the architecture, too."""
    try:
        return _converted(raw)
    except KeyError as error:
        raise ConfigError(f"{error.args[0]}: is missing, in a file of format 1") from error
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"a field has another form than in format 1: {error}") from error


def _converted(raw: dict[str, Any]) -> dict[str, Any]:
    tokenizer, prior = raw["tokenizer"], raw["prior"]
    size, factor = tokenizer["image_size_px"], tokenizer["downsample_factor"]
    image = {"medium": "image", "width_px": size, "height_px": size, "channels": tokenizer["image_channels"]}
    return {
        "name": raw["name"],
        "makes": [image],
        "latents": (prior["latent_channels"], *prior["grid"]),
        "codes": {
            "grid": (size // factor, size // factor),
            "size": tokenizer["codebook_size"],
            "fingerprint": raw["tokenizer_fingerprint"],
        },
        "labels": {name: raw[key] for name, key in _LABELS_OF_FORMAT_1.items() if raw.get(key)},
        "takes_prompt": bool(prior.get("text_tokens", 0)),
        "autoencoders": {"image": "vq"},
        "prior": "flow",
        "defaults": raw["defaults"],
        "example_prompt": raw.get("example_prompt"),
        "shares_with": raw.get("shares_with"),
    }
