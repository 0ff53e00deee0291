"""A running service as a command meets it: where it is, by which key, and what it says where it refuses."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from app.cli.exit_status import ExitStatus
from app.cli.terminal import API_KEY_VARIABLE, CommandError

_SILENCE_S = 20.0  # a stream says something every 15
_ANSWER_S = 120.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.25, 5.0


class Unreachable(Exception):
    """Nothing answers, or what answers is not up to it now; the message says what to do."""


class Refused(CommandError):
    """The service won't do it."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        is_about_key = status in (401, 403)
        super().__init__(message, ExitStatus.NOT_ALLOWED if is_about_key else ExitStatus.REFUSED)


def read_key(file: Path | None) -> str | None:
    """Return the API key from a file, or the environment.

    Raises: CommandError.
    """
    if file is None:
        key, where = os.environ.get(API_KEY_VARIABLE, ""), API_KEY_VARIABLE
    else:
        try:
            key, where = file.read_text().strip(), f"--api-key-file {file}"
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"--api-key-file {file} can't be read: {error}") from error
    if key and not re.fullmatch(r"[!-~]+", key):
        raise CommandError(f"{where}: a key is printable ASCII without spaces")
    if file is not None and not key:
        raise CommandError(f"{where} is empty")
    return key or None


class Remote:
    """A service at an address. retry_s: how long it may be gone before a command gives up."""

    def __init__(self, url: str, key: str | None, retry_s: float) -> None:
        if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", url):
            raise CommandError(f"--url is like http://127.0.0.1:8000, got {url}")
        self._base = httpx.URL(url.rstrip("/") + "/")
        self._retry_s = retry_s
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(timeout=httpx.Timeout(_ANSWER_S, connect=10), follow_redirects=False)

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(self, method: str, path: str, *, retries: bool = True, **given: Any) -> httpx.Response:
        """Return a successful answer; what passes is tried again, which every request here may be.

        Raises: Unreachable; Refused.
        """
        ends_at, pause_s = time.monotonic() + self._retry_s, _FIRST_PAUSE_S
        while True:
            try:
                answer = self._http.send(self._build(method, path, **given))
            except httpx.TransportError as error:
                failure = self._unreachable(error)
            else:
                if answer.is_success:
                    return answer
                if answer.status_code != 429 and answer.status_code < 502:
                    raise _refusal(answer)
                failure = Unreachable(str(_refusal(answer)))
            if not retries or time.monotonic() + pause_s > ends_at:
                raise failure
            time.sleep(pause_s)
            pause_s = min(_MAX_PAUSE_S, 2 * pause_s)

    def lines(self, path: str) -> Iterator[str]:
        """Yield the lines of an answer as they come, until it ends or breaks.

        Raises: httpx.TransportError; Refused.
        """
        timeout = httpx.Timeout(_SILENCE_S, connect=10)
        answer = self._http.send(self._build("GET", path, timeout=timeout), stream=True)
        try:
            if not answer.is_success:
                answer.read()
                raise _refusal(answer)
            yield from filter(None, answer.iter_lines())
        finally:
            answer.close()

    def _build(self, method: str, path: str, **given: Any) -> httpx.Request:
        is_whole = path.startswith(("http://", "https://", self._base.path))  # as the service tells addresses
        url = self._base.join(path if is_whole else path.removeprefix("/"))
        is_ours = (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port)
        headers = {**given.pop("headers", {}), **(self._headers if is_ours else {})}
        return self._http.build_request(method, url, headers=headers, **given)

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        reason = str(error) or type(error).__name__
        return Unreachable(
            f"no service answers at {self._base} ({reason}): start one with `smalti up`, or name another with"
            " --url"
        )


def _refusal(answer: httpx.Response) -> Refused:
    try:
        problem = answer.json()
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"{answer.url} answered {answer.status_code}, and not as Smalti does; is --url right?"
    if answer.status_code in (401, 403):
        detail += f" (set {API_KEY_VARIABLE}, or name a file of the key with --api-key-file)"
    return Refused(answer.status_code, detail)
