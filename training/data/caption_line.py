"""A line of captions: what may stand in it, and how it is checked."""

import dataclasses
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

CaptionSplit = Literal["train", "held_out", "unseen"]
SPLITS: tuple[CaptionSplit, ...] = ("train", "held_out", "unseen")
IGNORE_OTHERS = ConfigDict(extra="ignore")


def _check_text(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must not be blank")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError("surrogate", "must be valid unicode, without half of a surrogate pair")
    return text


def _check_inside(file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\0" in file:
        raise PydanticCustomError("outside", "must lie inside the folder")
    return file


def _as_texts(given: Any) -> Any:
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list | tuple):
        raise PydanticCustomError("no_texts", "must be a text, or a list of texts")
    return given


_NotBlank = Annotated[str, AfterValidator(_check_text)]
_Inside = Annotated[
    _NotBlank,
    BeforeValidator(lambda given: given.replace("\\", "/") if isinstance(given, str) else given),
    AfterValidator(_check_inside),
]
_Texts = Annotated[tuple[_NotBlank, ...], Field(min_length=1), BeforeValidator(_as_texts)]


@dataclass(frozen=True, config=IGNORE_OTHERS)
class CaptionLine:
    """A line of ``captions.jsonl``; ``caption`` holds one or several."""

    file: _Inside = Field(validation_alias=AliasChoices("file", "file_name"))
    caption: _Texts = Field(validation_alias=AliasChoices("caption", "text"))
    labels: Mapping[str, _NotBlank] = dataclasses.field(default_factory=dict)
    split: CaptionSplit | None = None


def first_error(error: ValidationError) -> str:
    """Return what is wrong in one line."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'value'}: {first['msg']}, got {first['input']!r:.80}"
