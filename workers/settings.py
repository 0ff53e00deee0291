"""Settings from the environment: what every process reads, and what only a worker reads.

Read once, where a process starts, and passed down. Variables are named `SMALTI_<FIELD>`; the queue server's
address keeps its usual name, `REDIS_URL`.
"""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.options import Precision
from workers.logs import LogFormat
from workers.redis_url import require_address

ENV_PREFIX = "SMALTI_"
CLIENT_VARIABLES = frozenset({"SMALTI_API_KEY"})  # of commands that ask a running service
_SECRET = ("REDIS_URL", "SMALTI_WEBHOOK_SECRET", "SMALTI_RESULT_STORE")  # a password may be in it
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.\.?(/|$))[A-Za-z0-9_.=-]+)*/?")
_YEAR_S = 365 * 86400

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Tracing = Literal["off", "otlp"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Settings = TypeVar("Settings", bound="ServiceSettings")


class SettingsError(ValueError):
    """A setting that can't be used; the message names the variable, and the nearest right one."""


class ServiceSettings(BaseSettings):
    """What the front end and the workers must agree on."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        env_ignore_empty=True,
        allow_inf_nan=False,
    )

    redis_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("REDIS_URL", "redis_url"),
        description="The queue server; without it, `smalti up` starts one of its own.",
    )
    weights_dir: Path = Field(default=Path("weights"), description="The folder of pipeline folders.")
    pipelines: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Names to serve, separated by commas, the default first; all when empty."
    )
    data_dir: Path = Field(
        default=Path(".smalti"),
        description="Results and the embedded queue server's data; front end and workers share it.",
    )
    result_store: str = Field(
        default="",
        description="Where results are kept: a folder, or s3://BUCKET/PREFIX; in the data folder when left"
        " out.",
    )
    result_ttl_s: int = Field(
        default=3600, ge=1, le=10 * _YEAR_S, description="How long a finished job can be looked up."
    )
    moderation: str = Field(
        default="",
        pattern=r"^([A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?$",
        description="A hook that may refuse requests and outputs, as package.module:object.",
    )
    moderation_timeout_s: float = Field(
        default=10, gt=0, le=600, description="A call of the hook that takes longer counts as a refusal."
    )
    log_level: LogLevel = "INFO"
    log_format: LogFormat = Field(default="text", description="json: one object a line, for programs.")
    tracing: Tracing = Field(
        default="off",
        description="otlp sends spans by OpenTelemetry, with the extra otel, to where OTEL_* variables say.",
    )

    @field_validator("redis_url")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is not None:
            require_address(value)
        return value

    @field_validator("pipelines", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("result_store")
    @classmethod
    def _check_store(cls, value: str) -> str:
        if "://" in value and not _BUCKET.fullmatch(value):
            raise ValueError(
                "must be a folder, s3://BUCKET or s3://BUCKET/PREFIX; credentials have variables of their own"
            )
        return value

    @property
    def has_bucket(self) -> bool:
        """Whether results are kept in a store of objects instead of a folder."""
        return "://" in self.result_store

    @property
    def results_dir(self) -> Path:
        """The folder of results, where they are kept in one."""
        return Path(self.result_store) if self.result_store else self.data_dir / "results"

    @property
    def blobs_dir(self) -> Path:
        return self.data_dir / "blobs"

    @property
    def files_dir(self) -> Path:
        return self.data_dir / "files"

    @property
    def batches_dir(self) -> Path:
        return self.data_dir / "batches"

    @property
    def openai_batches_dir(self) -> Path:
        return self.data_dir / "openai-batches"

    @property
    def verdicts_dir(self) -> Path:
        return self.data_dir / "seed-verdicts"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The data folder and those in it that processes write to; not another one for results."""
        results = () if self.result_store else (self.results_dir,)
        return self.data_dir, *results, self.blobs_dir, self.files_dir, self.batches_dir, self.verdicts_dir


class WorkerSettings(ServiceSettings):
    """What a worker reads."""

    device: Device = Field(default="auto", description="auto, cpu, mps, cuda or cuda:N.")
    worker_number: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="With auto, which of the machine's GPUs, in turn; `smalti up` sets it.",
    )
    max_batch_size: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="The most images that are denoised at once, if memory has room for them.",
    )
    max_loaded_bytes: int | None = Field(
        default=None,
        ge=1,
        le=2**40,
        description="The most that the weights of loaded pipelines may take in a worker's memory; what is"
        " free, if left out.",
    )
    seed_promise: Literal["on", "off"] = Field(
        default="on",
        description="off computes whatever number of rows is at hand: faster where the check finds that"
        " they don't agree, but the same request may then give other bytes in another batch.",
    )
    tokenizer_precision: Precision = Field(
        default="float32",
        description="tf32 lets a GPU encode and decode several times faster, to slightly other codes; a"
        " result's codes tell it.",
    )
    provenance: Literal["on", "off"] = Field(
        default="on",
        description="on writes into every output that it was generated, by which pipeline and from which"
        " seed (XMP, with IPTC's DigitalSourceType).",
    )
    num_threads: int | None = Field(
        default=None, ge=1, le=1024, description="Compute threads; torch's own choice if left out."
    )
    lease_s: float = Field(
        default=5,
        ge=1,
        le=3600,
        description="A worker unheard of for this long has lost its jobs to another.",
    )
    max_tries: int = Field(
        default=3, ge=1, le=1000, description="Workers that may die on one job before it fails."
    )
    ageing_s: float = Field(
        default=30,
        ge=0,
        le=_YEAR_S,
        description="Batch jobs that have waited or been parked for longer get every fourth turn before"
        " interactive jobs.",
    )
    drain_grace_s: float = Field(
        default=20,
        ge=0,
        le=_YEAR_S,
        description="After SIGTERM, running jobs may finish for this long; then they go back.",
    )


def read_settings(
    kind: type[Settings],
    known: Iterable[type[ServiceSettings]],
    **overrides: object,
) -> Settings:
    """Read settings of one kind; `overrides` (of the command line) go before the environment.

    Processes of one service share an environment, so a variable that any of the `known` kinds reads is right,
    and a value that one of them can't use is refused by all.

    Raises: SettingsError for a variable with our prefix that nobody reads, or a value that can't be used.
    """
    others: list[type[ServiceSettings]] = [each for each in known if each is not kind]
    kinds: list[type[ServiceSettings]] = [kind, *others]
    variables = sorted({_variable_of(name) for each in kinds for name in each.model_fields})
    for variable in os.environ:
        known_here = variable.upper() in variables or variable in CLIENT_VARIABLES
        if variable.upper().startswith(ENV_PREFIX) and not known_here:
            nearest = difflib.get_close_matches(variable.upper(), variables, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(variables)}"
            raise SettingsError(f"{variable} is not a setting of Smalti: {hint}")
    try:
        settings = kind(**overrides)  # type: ignore[arg-type]
        for other in others:
            other(**{name: value for name, value in overrides.items() if name in other.model_fields})  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError("; ".join(map(_problem, error.errors()))) from error
    return settings


def _variable_of(field: str) -> str:
    return "REDIS_URL" if field.upper() == "REDIS_URL" else ENV_PREFIX + field.upper()


def _problem(error: ErrorDetails) -> str:
    """Say in one line which variable has which value, and what it must be."""
    variable = _variable_of(str(error["loc"][0]))
    limits = error.get("ctx", {})
    match error["type"]:
        case "int_parsing" | "int_from_float" | "int_type":
            claim = "must be a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            claim = "must be a number"
        case "greater_than_equal":
            claim = f"must be {limits['ge']} or more"
        case "greater_than":
            claim = f"must be more than {limits['gt']}"
        case "less_than_equal":
            claim = f"must be {limits['le']} or less"
        case "literal_error":
            claim = f"must be {limits['expected']}"
        case "bool_parsing":
            claim = "must be true or false"
        case "string_pattern_mismatch" if variable == "SMALTI_MODERATION":
            claim = "must be package.module:object"
        case "string_pattern_mismatch" if variable == "SMALTI_DEVICE":
            claim = "must be auto, cpu, mps, cuda or cuda:N"
        case "value_error":
            claim = str(limits["error"])
        case _:
            claim = f"can't be used: {error['msg']}"
    is_secret = variable in _SECRET
    return f"{variable} {claim}" if is_secret else f"{variable} {claim}, got {error['input']!r}"
