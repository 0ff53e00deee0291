"""Settings of the front end, and the one way for any process to read its settings."""

import base64
import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from app.limits import Rate
from workers.settings import ServiceSettings, WorkerSettings
from workers.settings import read_settings as _read_settings

Settings = TypeVar("Settings", bound=ServiceSettings)
Names = Annotated[tuple[str, ...], NoDecode]

_DAY_S = 86400
Delay = Annotated[float, Field(ge=0, le=_DAY_S, allow_inf_nan=False)]
_MIB = 2**20
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@*,\s]+")


class AppSettings(ServiceSettings):
    """What the front end reads."""

    host: str = Field(default="127.0.0.1", description="The address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535)
    max_queue_length: int = Field(
        default=256, ge=1, le=10**6, description="Waiting jobs; one more is answered 429."
    )
    batch_queue_length: int = Field(
        default=128,
        ge=1,
        le=10**6,
        description="Rows of batches that wait in the queue at a time, at most; as many as run, mostly.",
    )
    batch_ttl_s: int = Field(
        default=7 * _DAY_S,
        ge=1,
        le=10 * 365 * _DAY_S,
        description="How long a batch, its results and its outputs are kept after its end.",
    )
    max_batch_bytes_per_key: int = Field(
        default=0,
        ge=0,
        le=2**40,
        description="Bytes that the ended batches of one API key hold, about; beyond, the oldest go before"
        " their time. 0: no bound.",
    )
    default_wait_s: float = Field(
        default=50,
        gt=0,
        le=_DAY_S,
        description="How long a request waits that accepts only a file and names no wait.",
    )
    max_wait_s: float = Field(
        default=50,  # below the 60 seconds of many proxies, whose 504 has no job's id
        gt=0,
        le=_DAY_S,
        description="The longest that `Prefer: wait` is honoured.",
    )
    max_in_flight_bytes: int = Field(
        default=128 * _MIB,
        ge=_MIB,
        le=2**40,
        description="Bytes of bodies that all requests hold at a time; what is more is answered 503.",
    )
    file_ttl_s: int = Field(
        default=_DAY_S,
        ge=1,
        le=10 * 365 * _DAY_S,
        description="How long an uploaded file is kept after it was made or last used.",
    )
    max_file_bytes_per_key: int = Field(
        default=4 * 2**30,
        ge=1,
        le=2**40,
        description="Bytes of all files that one API key keeps; what is more is answered 413.",
    )
    header_timeout_s: float = Field(
        default=10,
        gt=0,
        le=_DAY_S,
        description="How long the head of a request may take; a new connection's first one.",
    )
    body_timeout_s: float = Field(
        default=20,
        gt=0,
        le=_DAY_S,
        description="A body must go on at the least rate, looked at over this time.",
    )
    min_body_bytes_per_s: int = Field(
        default=32 * 2**10, ge=0, le=2**30, description="The least rate of a body."
    )
    keep_alive_s: int = Field(
        default=75,
        ge=1,
        le=_DAY_S,
        description="How long an idle connection is kept for its client's next request.",
    )
    max_connections: int = Field(default=2048, ge=1, le=10**6, description="Connections at a time.")
    max_connections_per_client: int = Field(
        default=1536,
        ge=0,
        le=10**6,
        description="Of one address, which may be a proxy's; 0: as many as there may be.",
    )
    allowed_hosts: Names = Field(
        default=(),
        description="Host names that requests may come by, besides addresses, this machine's name and names"
        " without a dot; `*.example.com` and `*` are understood.",
    )
    cors_origins: Names = Field(
        default=(), description="Origins whose pages may use the API, such as https://app.example.com; or *."
    )
    api_keys: str = Field(
        default="", description="API keys, hashed, as `smalti new-key` prints them; semicolons between them."
    )
    api_keys_file: Path | None = Field(default=None, description="A file with such lines.")
    require_keys: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether there must be keys: auto unless only this machine can reach the API. Where there"
        " are some, requests always need one.",
    )
    rate_limit: str = Field(
        default="",
        description="Jobs that each API key may submit in a time: 60/min; a key's line may say another rate.",
    )
    max_queue_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="The share of the waiting jobs that one API key may have, where there are several.",
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="What webhooks are signed with: whsec_ and base64. Without it there are none.",
    )
    webhook_hosts: Names = Field(
        default=(), description="Hosts, or host:port, that webhooks may go to though private, or without TLS."
    )
    webhook_retries_s: Annotated[tuple[Delay, ...], NoDecode, Field(max_length=20)] = Field(
        default="5,30,120,600,3600",  # type: ignore[arg-type]  # read as the variable is
        description="Seconds between attempts to deliver a webhook; after the last it is given up.",
    )
    root_path: str = Field(
        default="",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="The path under which a proxy shows the API, such as /smalti.",
    )

    @field_validator("allowed_hosts", "cors_origins", "webhook_hosts", "webhook_retries_s", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip().lower() for name in value.split(",") if name.strip())
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"an origin is scheme://host or scheme://host:port, without a path: {origin}"
                )
        return value

    @field_validator("rate_limit")
    @classmethod
    def _check_rate(cls, value: str) -> str:
        if value:
            Rate.read(value)
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_webhook_secret(value.get_secret_value()):
            raise ValueError(
                "must be whsec_ and 24 to 64 random bytes in base64: echo whsec_$(openssl rand -base64 32)"
            )
        return value

    @field_validator("webhook_hosts")
    @classmethod
    def _check_webhook_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not re.fullmatch(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", host):
                raise ValueError(f"must be host or host:port, with IPv6 addresses in brackets: {host}")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if host != "*" and not re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", host):
                raise ValueError(f"a host is a name without scheme, port or path, *.name or *: {host}")
        return value


def _is_webhook_secret(text: str) -> bool:
    try:
        secret = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        return False
    return text.startswith("whsec_") and 24 <= len(secret) <= 64


def read_settings(kind: type[Settings], **overrides: object) -> Settings:
    """Read the settings of any process of the service; `overrides` go before the environment.

    Raises: SettingsError for a misspelt `SMALTI_*` variable, or a value that can't be used.
    """
    return _read_settings(kind, (AppSettings, WorkerSettings), **overrides)
