"""`smalti batch`: a file of requests to a running service, its outputs into a folder."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.exit_status import ExitStatus, status_of
from app.cli.terminal import DEFAULT_URL, CommandError, ServiceUrl, say

if TYPE_CHECKING:
    from app.cli.batch_outputs import BatchFolder
    from smalti import Batch, BatchInfo, Client

_MAX_BYTES = 64 * 2**20
_RETRY_S = 60.0
_ANSWER_S = 120.0
_NUM_FETCHERS = 4  # of outputs, while rows go on
_MAX_WAITING = 64


def batch(
    file: Annotated[
        Path,
        typer.Argument(
            help='JSON Lines: {"id", "operation", "body"} a line.', exists=True, dir_okay=False, readable=True
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for outputs and results.jsonl.", file_okay=False)],
    url: ServiceUrl = DEFAULT_URL,
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
    from app.cli.at_service import client_of, read_key
    from app.cli.batch_outputs import BatchFolder

    source = _read(file)
    key = read_key(api_key_file)
    folder = BatchFolder(out, source)
    told = ""
    with (
        client_of(url, key, retry_s=0, request_timeout_s=_ANSWER_S) as once,
        client_of(url, key, retry_s=_RETRY_S, request_timeout_s=_ANSWER_S) as client,
    ):
        try:
            batch = _made(once, file, folder)
            told = f"batch {batch.id} goes on: run this again to go on with it"
            folder.remember(batch.id, url)
            ended = _fetch_all(client, client.get_batch(batch.id), folder)
            if ended.status == "failed":
                raise CommandError(f"{file}: {ended.error.message if ended.error else 'can not be read'}")
            counts = folder.write_results(client.get_batch(batch.id).results(order="input", fetch=False))
        except KeyboardInterrupt:
            if told:
                say(f"{told}, or end it by DELETE {url}/batches/{batch.id}")
            raise typer.Exit(ExitStatus.INTERRUPTED) from None
        except Exception as error:
            if told and status_of(error) is ExitStatus.UNAVAILABLE:
                raise CommandError(f"{error}; {told}", ExitStatus.UNAVAILABLE) from error
            raise
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


def _made(client: "Client", file: Path, folder: "BatchFolder") -> "Batch":
    """Make the batch of a file, or find it: the key follows from the file.

    One that was cancelled is made anew, with a key that follows from it.
    """
    key = folder.digest
    for _ in range(100):
        batch = client.batch(file, idempotency_key=f"smalti-batch-{key}")
        if batch.info.status != "cancelled":
            if batch.id == folder.batch_id:
                say(f"going on with batch {batch.id}")
            return batch
        key = f"{folder.digest}-{batch.id}"
    raise CommandError("this file was cancelled 100 times; change it, or wait until those have expired")


def _fetch_all(client: "Client", batch: "Batch", folder: "BatchFolder") -> "BatchInfo":
    """Fetch outputs as rows end, until all have; return the batch as it is then."""
    from tqdm import tqdm

    def settle(waiting: "deque[Future[int]]", most: int) -> None:
        while len(waiting) > most:
            waiting.popleft().result()
            bar.update()

    waiting: deque[Future[int]] = deque()
    with (
        tqdm(desc="batch", total=batch.info.num_rows or None, unit="row", leave=False, disable=None) as bar,
        ThreadPoolExecutor(_NUM_FETCHERS) as pool,
    ):
        try:
            for row in batch.results(fetch=False):
                if bar.total is None:
                    bar.total = batch.refresh().num_rows or None
                waiting.append(pool.submit(folder.save, row, client.fetch))
                settle(waiting, _MAX_WAITING)
            settle(waiting, 0)
        finally:
            for each in waiting:
                each.cancel()
    return batch.refresh()
