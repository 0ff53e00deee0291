"""`smalti batch`: a file of requests to a running service, its outputs into a folder."""

import json
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.exit_status import ExitStatus
from app.cli.terminal import CommandError, say

if TYPE_CHECKING:
    from app.cli.batch_outputs import BatchFolder
    from app.cli.remote import Remote

_MAX_BYTES = 64 * 2**20
_RETRY_S = 60.0
_LOOK_AGAIN_S = 0.5
_NUM_FETCHERS = 4  # of outputs, while rows go on
_MAX_WAITING = 64
_MAX_SILENT = 3  # streams that broke before they said anything


def batch(
    file: Annotated[
        Path,
        typer.Argument(
            help='JSON Lines: {"id", "operation", "body"} a line.', exists=True, dir_okay=False, readable=True
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for outputs and results.jsonl.", file_okay=False)],
    url: Annotated[str, typer.Option(help="The running service.")] = "http://127.0.0.1:8000",
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="A file with the API key; else SMALTI_API_KEY in the environment.", dir_okay=False),
    ] = None,
) -> None:
    """Send a file of requests to a running service as one batch, and fetch what comes of it.

    Run it again to go on with the same batch after any interruption: outputs that are there stay.

    Exit status: 0 if all rows succeeded, 4 if some did not, 3 if the service can't be reached now (run it
    again), 130 after Ctrl-C; the others are in docs/cli.md.
    """
    from app.cli.batch_outputs import BatchFolder
    from app.cli.remote import Remote, Unreachable, read_key

    source = _read(file)
    folder = BatchFolder(out, source)
    with Remote(url, read_key(api_key_file), _RETRY_S) as remote:
        told: dict[str, Any] = {}
        try:
            told = _made(remote, source, folder.digest)
            folder.remember(told["id"], url)
            told = _fetch_all(remote, told, folder)
            if told["status"] == "failed":
                raise CommandError(f"{file}: {told['error']['message']}")
            counts = folder.write_results(_rows(remote, told["id"], "input"))
        except Unreachable as error:
            goes_on = f"; batch {told['id']} goes on: run this again to go on with it" if told else ""
            say(f"{error}{goes_on}")
            raise typer.Exit(ExitStatus.UNAVAILABLE) from error
        except KeyboardInterrupt:
            if told:
                say(
                    f"batch {told['id']} goes on: run this again to go on with it, or end it by DELETE"
                    f" {url}/batches/{told['id']}"
                )
            raise typer.Exit(ExitStatus.INTERRUPTED) from None
    typer.echo(", ".join(f"{number} {status}" for status, number in sorted(counts.items())))
    if set(counts) != {"succeeded"}:
        say(f"{out / 'results.jsonl'} says why each of the others did not succeed")
        raise typer.Exit(ExitStatus.FAILED)


def _read(file: Path) -> bytes:
    if (num_bytes := file.stat().st_size) > _MAX_BYTES:
        raise CommandError(
            f"{file}: a batch is at most {_MAX_BYTES} bytes, got {num_bytes}; split it, or name uploads in it"
        )
    return file.read_bytes()


def _made(remote: "Remote", source: bytes, digest: str) -> dict[str, Any]:
    """Make the batch of a file, or find it: the key follows from the file.

    One that was cancelled is made anew, with a key that follows from it.
    """
    key = digest
    for _ in range(100):
        answer = remote.request(
            "POST",
            "batches",
            content=source,
            headers={"Content-Type": "application/jsonl", "Idempotency-Key": f"smalti-batch-{key}"},
            retries=False,
        )
        told: dict[str, Any] = answer.json()
        if "idempotency-replayed" not in answer.headers:
            return told
        if told["status"] != "cancelled":
            say(f"going on with batch {told['id']}")
            return told
        key = f"{digest}-{told['id']}"
    raise CommandError("this file was cancelled 100 times; change it, or wait until those have expired")


def _fetch_all(remote: "Remote", told: dict[str, Any], folder: "BatchFolder") -> dict[str, Any]:
    """Fetch outputs as rows end, until all have; return the batch as it is then."""
    from tqdm import tqdm

    def fetch(url: str) -> bytes:
        return remote.request("GET", url).content

    def settle(waiting: "deque[Future[int]]", most: int) -> None:
        while len(waiting) > most:
            waiting.popleft().result()
            bar.update()

    waiting: deque[Future[int]] = deque()
    with (
        tqdm(desc="batch", total=told["num_rows"] or None, unit="row", leave=False, disable=None) as bar,
        ThreadPoolExecutor(_NUM_FETCHERS) as pool,
    ):
        try:
            for row in _rows(remote, told["id"], "ended"):
                if bar.total is None:
                    told = _looked_up(remote, told["id"])
                    bar.total = told["num_rows"] or None
                waiting.append(pool.submit(folder.save, row, fetch))
                settle(waiting, _MAX_WAITING)
            settle(waiting, 0)
        finally:
            for each in waiting:
                each.cancel()
    return _looked_up(remote, told["id"])


def _rows(remote: "Remote", batch_id: str, order: str) -> Iterator[dict[str, Any]]:
    """Yield rows until the last one has ended; a stream that breaks is taken up behind the last row.

    Raises: Unreachable; Refused.
    """
    import httpx

    after, num_silent = 0, 0
    while True:
        told, num_rows = _looked_up(remote, batch_id), 0
        has_ended = told["status"] in ("succeeded", "failed", "cancelled")
        is_open = not has_ended and num_silent < _MAX_SILENT  # or something on the way holds streams back
        path = f"batches/{batch_id}/results?order={order}&after={after}&follow={str(is_open).lower()}"
        try:
            for line in remote.lines(path):
                row = json.loads(line)
                after, num_rows = row["seq" if order == "ended" else "line"], num_rows + 1
                yield row
        except (httpx.TransportError, json.JSONDecodeError):  # broken, perhaps in the middle of a line
            has_ended = False
        if not num_rows:
            if has_ended:
                return
            num_silent += is_open
            time.sleep(_LOOK_AGAIN_S)


def _looked_up(remote: "Remote", batch_id: str) -> dict[str, Any]:
    told: dict[str, Any] = remote.request("GET", f"batches/{batch_id}").json()
    return told
