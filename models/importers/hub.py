"""``hf:OWNER/NAME[/PATH][@REVISION]``: the files of a repository of Hugging Face that an import needs."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, cast

from models.importers.base import ImportFailed
from models.importers.card import Origin
from models.importers.sources import (
    MODEL_INDEX,
    WORDS_FILES,
    choose_config,
    choose_weights,
    parts_of,
    read_config,
    shards_of,
)

PREFIX = "hf:"

_NAME = re.compile(
    r"hf:(?P<repository>[\w.-]{1,96}/[\w.-]{1,96})(?:/(?P<path>[^@]{1,500}))?(?:@(?P<revision>[\w./-]{1,200}))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Fetched:
    """What was fetched: the file or folder to open, and where it comes from."""

    path: Path
    origin: Origin


def fetch(source: str, say: Callable[[str], None]) -> Fetched:
    """Fetch into huggingface_hub's cache what an import needs, pinned to one commit.

    The token is that of HF_TOKEN, if any; it is sent to the endpoint (HF_ENDPOINT), and told to nobody else.

    Raises: ImportFailed.
    """
    match = _NAME.fullmatch(source)
    if match is None:
        raise ImportFailed(f"SOURCE: must be hf:OWNER/NAME[/PATH][@REVISION], got {source[:200]!r}")
    repository, path = match["repository"], (match["path"] or "").strip("/")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    # Of the client that huggingface_hub uses, which is another from version to version.
    clients = (each for each in HfHubHTTPError.__mro__ if each.__name__ == "HTTPError")
    http_error = cast(type[Exception], next(clients))

    token = os.environ.get("HF_TOKEN") or False
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        info = api.model_info(repository, revision=match["revision"])
        commit = info.sha or ""
        if not _COMMIT.fullmatch(commit):
            raise ImportFailed(f"{source}: the hub tells no commit, but {commit[:60]!r}")
        names = [each.rfilename for each in info.siblings or ()]
        _check_names(names)

        @cache
        def get(name: str) -> Path:
            say(f"fetching {name} of {repository} at {commit[:12]}")
            return Path(api.hf_hub_download(repository, name, revision=commit, token=token))

        opened = _fetch_needed(names, path, get)
    except HfHubHTTPError as error:
        raise ImportFailed(f"{source}: {_reason(error.response.status_code)}") from error
    except (http_error, OfflineModeIsEnabled, HFValidationError, OSError) as error:
        words = " ".join(str(error).split())
        raise ImportFailed(f"{source}: can't be fetched: {type(error).__name__}: {words[:200]}") from error
    return Fetched(opened, Origin(f"hf:{repository}{'/' if path else ''}{path}", commit, _licence(info)))


def _check_names(names: Sequence[str]) -> None:
    """Check that files stay within their folder. Raises: ImportFailed."""
    for name in names:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
            raise ImportFailed(f"the repository lists a file outside of it, {name[:100]!r}")


def _fetch_needed(names: Sequence[str], path: str, get: Callable[[str], Path]) -> Path:
    """Fetch a file with what belongs to it, or what is needed of a folder; return the path to open.

    Raises: ImportFailed where there is no such path, or nothing to import.
    """
    if path in names:
        folder, chosen = PurePosixPath(path).parent, PurePosixPath(path).name
        _fetch_weights(_here(names, folder), folder, chosen, get)
        return get(path)
    folder = PurePosixPath(path)
    here = _here(names, folder)
    if not here and not any(name.startswith(f"{path}/") for name in names):
        raise ImportFailed(f"the repository has no {path}; it has {_listed(names)}")
    if MODEL_INDEX in here:
        index = get(str(folder / MODEL_INDEX))
        for part in parts_of(read_config(index)):
            if inside := _here(names, folder / part):
                _fetch_weights(inside, folder / part, choose_weights(inside), get)
        return index.parent
    weights = choose_weights(here)
    if weights is None:
        raise ImportFailed(f"the repository has no weights there; it has {_listed(names)}")
    _fetch_weights(here, folder, weights, get)
    return get(str(folder / weights)).parent


def _fetch_weights(
    here: Sequence[str], folder: PurePosixPath, weights: str | None, get: Callable[[str], Path]
) -> None:
    """Fetch the weights of a folder, the files that they list, and their configuration."""
    if weights is not None:
        file = get(str(folder / weights))
        for shard in shards_of(file) if weights.endswith(".index.json") else ():
            get(str(folder / shard))
    if (config := choose_config(here, weights)) is not None:
        get(str(folder / config))
    for words in WORDS_FILES if weights is None else ():
        if words in here:
            get(str(folder / words))


def _here(names: Sequence[str], folder: PurePosixPath) -> list[str]:
    return [PurePosixPath(name).name for name in names if PurePosixPath(name).parent == folder]


def _licence(info: Any) -> str | None:
    """Return the licence that the repository's card tells, or its tag."""
    card = info.card_data or {}
    told = card.get("license_name") or card.get("license")
    tagged = (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
    return str(told) if told else next(tagged, None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name[:80] for name in names[:10]) + (", …" if len(names) > 10 else "") or "no files"


def _reason(status: int) -> str:
    match status:
        case 401 | 403:
            return (
                f"the hub answers {status}: there is no such repository or revision, or it wants a token that"
                " may read it, in HF_TOKEN"
            )
        case 404:
            return "the hub answers 404: there is no such repository, revision or file"
    return f"the hub answers {status}"
