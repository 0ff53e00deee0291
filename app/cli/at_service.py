"""Have a service compute what a command asks for, through the Python client."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.cli.answers import Answer, Asked, Made, array_of, read_file
from app.cli.exit_status import status_of
from app.cli.terminal import API_KEY_VARIABLE, CommandError, given, say

if TYPE_CHECKING:
    from smalti import Client, Result

_TIMEOUT_S = 3600.0
_RETRY_S = 20.0  # of a service that is full, or that was started a moment ago


def read_key(file: Path | None = None) -> str | None:
    """Return the API key from a file, or the environment.

    Raises: CommandError.
    """
    if file is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    try:
        key = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--api-key-file {file} can't be read: {error}") from error
    if not re.fullmatch(r"[!-~]+", key):
        raise CommandError(f"--api-key-file {file}: a key is printable ASCII without spaces, and not empty")
    return key


def client_of(
    url: str, key: str | None = None, *, retry_s: float | None = None, request_timeout_s: float = 60.0
) -> "Client":
    """Return the client of the service at an address; its key comes from the environment, else.

    Raises: CommandError.
    """
    try:
        from smalti import Client, InvalidArgument
    except ModuleNotFoundError as error:
        raise CommandError(
            "--url needs the Python client: pip install smalti-client, or ./client in Smalti's sources"
        ) from error
    if "@" in url:  # which other users of this machine could read
        raise CommandError("--url is like http://127.0.0.1:8000, without a name and a password")
    try:
        return Client(
            url,
            key or read_key(),
            timeout_s=_TIMEOUT_S,
            retry_s=_RETRY_S if retry_s is None else retry_s,
            request_timeout_s=request_timeout_s,
        )
    except InvalidArgument as error:
        named = str(error).replace("base_url: ", "--url ").replace("api_key: ", f"{API_KEY_VARIABLE} ")
        raise CommandError(named) from error


class AtService:
    """A service. Raises: CommandError when there can be none at the address."""

    def __init__(self, url: str) -> None:
        self._client = client_of(url)

    def answers(
        self,
        operation: Literal["generate", "encode", "decode"],
        requests: Sequence[Asked],
        *,
        return_errors: bool = False,
    ) -> Sequence[Answer | Exception]:
        """Return the answers to requests, each a job; see ``Place``. Ctrl-C cancels a job that is alone.

        Raises: SmaltiError; CommandError.
        """
        with self._client as client:
            if len(requests) == 1 and not return_errors:
                return [self._wait(client, operation, requests[0])]
            from smalti import SmaltiError

            answers: list[Answer | Exception] = []
            sendable = [_fields_of(operation, asked) for asked in requests]
            for asked, answer in zip(
                requests, client.map(operation, sendable, return_errors=return_errors), strict=True
            ):
                if isinstance(answer, SmaltiError):
                    where = f"{asked.path}: " if asked.path else ""
                    answers.append(CommandError(f"{where}{answer}", status_of(answer)))
                else:
                    answers.append(_answer_of(answer))
            return answers

    def _wait(
        self, client: "Client", operation: Literal["generate", "encode", "decode"], asked: Asked
    ) -> Answer:
        job = client.submit(operation, **_fields_of(operation, asked))
        try:
            return _answer_of(job.wait(progress=sys.stderr.isatty()))
        except KeyboardInterrupt:
            say(f"job {job.id} is {job.cancel().status}")
            raise


def _fields_of(operation: str, asked: Asked) -> dict[str, Any]:
    fields = given(dict(asked.fields))
    if asked.path is not None and operation == "decode":
        fields["codes"] = array_of(asked.path)
    elif asked.path is not None:
        fields["source"] = read_file(asked.path) if str(asked.path) == "-" else asked.path
    if asked.mask is not None:
        fields["mask"] = read_file(asked.mask) if str(asked.mask) == "-" else asked.mask
    return fields


def _answer_of(result: "Result") -> Answer:
    made = [
        Made(
            read=output.bytes if output.is_fetched else None,
            error=f"{output.error.message} ({output.error.code})" if output.error else None,
        )
        for output in result.outputs
    ]
    latents = result.latents
    is_here = latents is not None and latents.is_fetched
    read = latents.bytes if latents is not None and is_here else None
    return Answer(result.model_dump(mode="json"), made, latents=read)
