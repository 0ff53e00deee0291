"""`Idempotency-Key`: a request that is sent again gets the job that it has made already."""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from starlette.requests import Request as HttpRequest

from app.files import Upload
from app.keys import current_owner
from app.root_path import path_below_root
from app.sources import SourceFile
from workers.errors import InvalidRequest

_KEY = re.compile(r"[ -~]{1,255}")


@dataclass(frozen=True)
class Idempotency:
    """A client's key, the name of its API key, and the digest of the request that it came with."""

    owner: str
    key: str
    digest: str


async def idempotency_of(
    http: HttpRequest, request: BaseModel, files: Sequence[SourceFile]
) -> Idempotency | None:
    """Return the key of a request, if it has one.

    The digest is over the address, the checked fields and the files, and not over headers: the same request
    may be sent again with another `Prefer` or `Accept`.

    Raises: InvalidRequest.
    """
    keys = http.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1:
        raise InvalidRequest(f"Idempotency-Key: send one, got {len(keys)}")
    if not _KEY.fullmatch(keys[0]):
        raise InvalidRequest(f"Idempotency-Key: 1 to 255 printable ASCII characters, got {len(keys[0])}")
    path = path_below_root(http.scope)
    return Idempotency(current_owner(), keys[0], await asyncio.to_thread(_digest, path, request, files))


def _digest(path: str, request: BaseModel, files: Sequence[SourceFile]) -> str:
    text = request.model_dump_json(exclude={"source", "image", "mask"})  # which are among the files
    digest = hashlib.sha256(f"{path}\n{text}\n".encode())
    for file in files:
        if isinstance(file.content, Upload):
            digest.update(f"sha256 {file.content.sha256}\n".encode())
            continue
        content = file.content.encode() if isinstance(file.content, str) else file.content
        digest.update(f"{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
