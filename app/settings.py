"""Settings of the front end, and the one way for any process to read its settings."""

from typing import TypeVar

from pydantic import Field

from workers.settings import ServiceSettings, WorkerSettings
from workers.settings import read_settings as _read_settings

Settings = TypeVar("Settings", bound=ServiceSettings)


class AppSettings(ServiceSettings):
    """What the front end reads."""

    host: str = Field(default="127.0.0.1", description="The address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535)
    max_queue_length: int = Field(default=256, ge=1, description="Waiting jobs; one more is answered 429.")
    default_wait_s: float = Field(
        default=50, gt=0, description="How long a request waits that accepts only a file and names no wait."
    )
    max_wait_s: float = Field(
        default=50,  # below the 60 seconds of many proxies, whose 504 has no job's id
        gt=0,
        description="The longest that `Prefer: wait` is honoured.",
    )


def read_settings(kind: type[Settings], **overrides: object) -> Settings:
    """Read the settings of any process of the service; `overrides` go before the environment.

    Raises: SettingsError for a misspelt `SMALTI_*` variable, or a value that can't be used.
    """
    return _read_settings(kind, (AppSettings, WorkerSettings), **overrides)
