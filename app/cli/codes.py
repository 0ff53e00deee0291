"""`smalti encode` and `smalti decode`: here and now, or by a service; folders of codes in ``bulk.py``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from app.cli.answers import (
    Answer,
    Asked,
    Place,
    answer_of,
    array_of,
    place_of,
    require_success,
    say_warnings,
    tell_json,
)
from app.cli.bulk import BulkOptions, decode_folder, encode_folder
from app.cli.completion import PipelineName
from app.cli.exit_status import ExitStatus, status_of
from app.cli.outputs import Outputs, Show
from app.cli.requests import read_codes, request_of
from app.cli.terminal import CommandError, Json, Url, given, say


def encode(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="PNG, JPEG or WebP files; - is standard input. With --out also folders, patterns, tars,"
            " parquet files and addresses.",
        ),
    ],
    pipeline: PipelineName = None,
    effort: Annotated[int, typer.Option(help="Sweeps over the image in search of better codes.")] = 0,
    posterior: Annotated[
        str | None, typer.Option(help="Of latents: mean, or sample, drawn from their distribution.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of a sample of latents; drawn and told if left out.")
    ] = None,
    return_psnr: Annotated[
        bool, typer.Option("--return-psnr", help="Also tell how well the codes decode, in dB.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write shards of codes here: see docs/codes.md. Latents: a file, x.npy."
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only every N-th shard, from the I-th: for N machines.")
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(help="Pictures in a shard; 8192 if left out.", min=1)
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Also encode each picture flipped.")] = False,
    crops: Annotated[
        int, typer.Option(help="Rows a picture: its middle, then parts of it drawn by its bytes.", min=1)
    ] = 1,
    pack: Annotated[
        bool, typer.Option("--pack", help="Keep codes in as few bits as the codebook needs, not in 16.")
    ] = False,
    column: Annotated[str | None, typer.Option(help="Of parquet files: which holds the pictures.")] = None,
    decoders: Annotated[
        int | None, typer.Option(help="Processes that decode pictures.", min=1, max=64)
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Encode for 20 s, keep nothing, tell how long it would take.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Turn images into codes: JSON on standard output, as the result of POST /encode.

    Of several files, a line each, in order, with the file's name in it. With --out, shards of a data set.
    """
    options = BulkOptions(shard, shard_size, flips, crops, pack, column, decoders, estimate)
    fields = {"pipeline": pipeline, "effort": effort, "return_psnr": return_psnr}
    fields |= given({"posterior": posterior, "seed": seed})
    if out is not None and out.suffix == ".npy":
        encode_latents(list(map(Path, sources)), out, fields, place_of(url))
        return
    if out is not None:
        if url is not None:
            raise CommandError("--out DIR encodes on this machine: leave out --url, or --out")
        request_of("encode", fields)
        encode_folder(
            sources, out, pipeline, options, effort=effort, return_psnr=return_psnr, as_json=as_json
        )
        return
    if options.are_given:
        raise CommandError(
            "--shard, --shard-size, --flips, --crops, --pack, --column, --decoders and --estimate need"
            " --out DIR"
        )
    paths = list(map(Path, sources))
    if url is None:
        request_of("encode", fields)  # what is wrong with all is said once
    place = place_of(url)
    if len(paths) == 1:
        answer = answer_of(place.answers("encode", [Asked(fields, paths[0])])[0])
        require_success([answer])
        _require_place(answer)
        say_warnings([answer])
        tell_json(answer.result)
        return
    from workers.messages import MAX_SAMPLES_PER_JOB

    failed: list[ExitStatus] = []
    for start in range(0, len(paths), MAX_SAMPLES_PER_JOB):
        asked = [Asked(fields, path) for path in paths[start : start + MAX_SAMPLES_PER_JOB]]
        failed += _encode_several(place, asked)
    if failed:
        raise CommandError(
            f"{len(failed)} of {len(paths)} files are not encoded, named above",
            failed[0] if len(set(failed)) == 1 else ExitStatus.FAILED,
        )


def encode_latents(paths: Sequence[Path], out: Path, fields: Mapping[str, object], place: Place) -> None:
    """Encode a file to latents, write these, and print the result, which tells the tokenizer."""
    if len(paths) != 1:
        raise CommandError(f"--out FILE.npy takes one picture, got {len(paths)}")
    answer = answer_of(place.answers("encode", [Asked(fields, paths[0])])[0])
    require_success([answer])
    say_warnings([answer])
    if answer.latents is None:
        raise CommandError("this pipeline encodes to codes, not to latents: leave out --out")
    try:
        out.write_bytes(answer.latents())
    except OSError as error:
        raise CommandError(f"--out {out} can't be written: {error.strerror}") from error
    tell_json({"file": str(out), **answer.result})


def _require_place(answer: Answer) -> None:
    """Check that latents are somewhere. Raises: CommandError."""
    if answer.latents is not None and answer.result["latents"]["url"] is None:
        raise CommandError("this pipeline encodes to latents, which are a file: add --out FILE.npy")


def _encode_several(place: Place, requests: Sequence[Asked]) -> list[ExitStatus]:
    """Encode files together and print a line each; return what became of those that couldn't be."""
    answers = place.answers("encode", requests, return_errors=True)
    say_warnings([answer for answer in answers if isinstance(answer, Answer)])
    failed = []
    for error in (answer for answer in answers if isinstance(answer, Exception)):
        say(str(error))
        failed.append(status_of(error))
    for asked, answer in zip(requests, answers, strict=True):
        if isinstance(answer, Exception):
            continue
        try:
            require_success([answer])
            _require_place(answer)
        except CommandError as error:
            say(f"{asked.path}: {error}")
            failed.append(error.exit_status)
        else:
            tell_json({"file": str(asked.path), **answer.result})
    return failed


def decode(
    codes: Annotated[
        Path,
        typer.Argument(
            help="What `smalti encode` wrote: a file, a folder, or latents as .npy; - is standard input."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Where to write: .png, .webp or .jpg; - is standard output; of a folder, a folder."
        ),
    ],
    pipeline: PipelineName = None,
    format: Annotated[
        str | None, typer.Option(help="Of a folder's pictures: png, webp or jpeg; png if left out.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Of latents as .npy: the fingerprint that `smalti encode` told.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
    show: Show = None,
) -> None:
    """Turn codes or latents into images, here and now, or by the service at --url."""
    if codes.is_dir():
        if url is not None:
            raise CommandError("a folder of codes is decoded on this machine: leave out --url")
        decode_folder(codes, out, pipeline, format or "png", as_json=as_json)
        return
    if format is not None:
        raise CommandError("--format is for folders of codes: of files, --out names the format")
    outputs = Outputs(out, as_json=as_json, show=show)
    choices = given({"pipeline": pipeline, "format": outputs.format})
    if codes.suffix == ".npy":
        if tokenizer is None:
            raise CommandError("latents need --tokenizer: `smalti encode` told it")
        array = array_of(codes)
        outputs.require_room(len(array) if array.ndim > 3 else 1)
        asked = [Asked({"tokenizer": tokenizer, **choices}, codes)]
    elif tokenizer is not None:
        raise CommandError("--tokenizer is for latents as .npy: codes tell theirs")
    else:
        bodies = read_codes(codes)
        numbers = [body["codes"] for body in bodies]
        outputs.require_room(sum(len(each) if isinstance(each, list) else 1 for each in numbers))
        asked = [Asked({**body, **choices}) for body in bodies]
    answers = list(map(answer_of, place_of(url).answers("decode", asked)))
    say_warnings(answers)
    files = outputs.write(answers)
    if as_json:
        tell_json({"files": files})
    require_success(answers)
