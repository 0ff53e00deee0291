"""The commands that compute here and now, without a server or a queue."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.bulk import BulkOptions, decode_folder, encode_folder
from app.cli.outputs import Outputs, require_success
from app.cli.terminal import (
    CommandError,
    GuidanceScale,
    NumSteps,
    SamplerChoice,
    given,
    say,
    settings_of,
)

if TYPE_CHECKING:
    from app.cli.local import Local
    from workers.compute import Finished
    from workers.messages import Operation, Request, Result

PipelineName = Annotated[str | None, typer.Option("--pipeline", help="By name; the first one if left out.")]
Out = Annotated[Path, typer.Option(help="Where to write: .png, .webp or .jpg; - is standard output.")]


def generate(
    out: Out,
    class_label: Annotated[str | None, typer.Option(help="By name or number; any class if left out.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to show, in English.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to lead away from.")] = None,
    style: Annotated[str | None, typer.Option(help="By name or number; any if left out.")] = None,
    group: Annotated[str | None, typer.Option(help="By name or number; any if left out.")] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="SET=NAME", help="A label of any set of the pipeline; may be repeated."),
    ] = None,
    background: Annotated[str, typer.Option(help="white or transparent.")] = "white",
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same bytes.", min=0)] = None,
    num_outputs: Annotated[
        int | None, typer.Option(help="More than one are numbered: x-0.png, ….  [default: 1]", min=1)
    ] = None,
    num_images: Annotated[int | None, typer.Option(help="The older name of --num-outputs.", min=1)] = None,
    num_steps: NumSteps = None,
    guidance_scale: GuidanceScale = None,
    sampler: SamplerChoice = None,
    pipeline: PipelineName = None,
    return_codes: Annotated[
        bool, typer.Option("--return-codes", help="Write the codes, too: x.json, for `smalti decode`.")
    ] = False,
) -> None:
    """Generate images of a class or a prompt, here and now."""
    from workers.messages import GenerateRequest

    outputs = Outputs(out)
    if return_codes and outputs.is_standard_output:
        raise CommandError("--return-codes writes the codes beside the file that --out names, and - is none")
    fields = {
        "class_label": class_label,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "style": style,
        "group": group,
        "labels": _labels(labels or ()),
        "background": background,
        "seed": seed,
        "num_outputs": num_outputs,
        "num_images": num_images,
        "num_steps": num_steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "pipeline": pipeline,
        "format": outputs.format,
        "return_codes": return_codes,
    }
    request = _request(GenerateRequest, fields)
    local = _local()
    work = local.prepare(request)
    outputs.require_room([work])
    (finished,) = local.run([work])
    if finished.error is not None:
        raise finished.error
    resolved = work.request
    options = "".join(f", {name} {value}" for name, value in resolved.options.items())
    say(f"seed {resolved.seed}{options}, {resolved.pipeline}")
    _say_once([finished])
    outputs.write([work], [finished], tells_provenance=local.tells_provenance)
    if return_codes:
        outputs.write_file(out.with_suffix(".json"), _result("generate", finished).model_dump_json().encode())
    require_success([finished])


def encode(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="PNG, JPEG or WebP files; - is standard input. With --out also folders, patterns, tars and"
            " parquet files.",
        ),
    ],
    pipeline: PipelineName = None,
    effort: Annotated[int, typer.Option(help="Sweeps over the image in search of better codes.")] = 0,
    return_psnr: Annotated[
        bool, typer.Option("--return-psnr", help="Also tell how well the codes decode, in dB.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write shards of codes here: see docs/codes.md.")
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
) -> None:
    """Turn images into codes: JSON on standard output, as the result of POST /encode.

    Of several files, a line each, in order, with the file's name in it. With --out, shards of a data set.
    """
    from app.sources import SourceFile
    from workers.messages import MAX_SAMPLES_PER_JOB, EncodeRequest

    options = BulkOptions(shard, shard_size, flips, crops, pack, column, decoders, estimate)
    if out is not None:
        _request(EncodeRequest, {"pipeline": pipeline, "effort": effort})
        encode_folder(sources, out, pipeline, options, effort=effort, return_psnr=return_psnr)
        return
    if options.are_given:
        raise CommandError(
            "--shard, --shard-size, --flips, --crops, --pack, --column, --decoders and --estimate need"
            " --out DIR"
        )
    images = list(map(Path, sources))
    fields = {"pipeline": pipeline, "effort": effort, "return_psnr": return_psnr}
    request = _request(EncodeRequest, fields)
    if len(images) == 1:
        file = SourceFile(str(images[0]), _read(images[0]))
        local = _local()
        (finished,) = local.run([local.prepare(request, [file])])
        require_success([finished])
        _say_once([finished])
        typer.echo(_result("encode", finished).model_dump_json())
        return
    local, num_encoded = _local(), 0
    for start in range(0, len(images), MAX_SAMPLES_PER_JOB):
        num_encoded += _encode_several(local, request, images[start : start + MAX_SAMPLES_PER_JOB])
    if num_encoded < len(images):
        raise CommandError(f"{len(images) - num_encoded} of {len(images)} files are not encoded, named above")


def _encode_several(local: "Local", request: "Request", paths: Sequence[Path]) -> int:
    """Encode files in shared batches and print a line each; return how many could be."""
    from app.sources import SourceFile
    from workers.errors import ServiceError

    works, read = [], []
    for path in paths:
        try:
            works.append(local.prepare(request, [SourceFile(str(path), _read(path))]))
        except (ServiceError, CommandError) as error:
            say(str(error))
        else:
            read.append(path)
    num_encoded, encoded = 0, local.run(works)
    _say_once(encoded)
    for path, finished in zip(read, encoded, strict=True):
        try:
            require_success([finished])
        except CommandError as error:
            say(f"{path}: {error}")
            continue
        typer.echo(json.dumps({"file": str(path), **_result("encode", finished).model_dump(mode="json")}))
        num_encoded += 1
    return num_encoded


def decode(
    codes: Annotated[
        Path, typer.Argument(help="What `smalti encode` wrote: a file, or a folder; - is standard input.")
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
) -> None:
    """Turn codes into images."""
    from workers.messages import DecodeRequest

    if codes.is_dir():
        decode_folder(codes, out, pipeline, format or "png")
        return
    if format is not None:
        raise CommandError("--format is for folders of codes: of files, --out names the format")
    outputs = Outputs(out)
    bodies = _read_codes(codes)
    local = _local()
    works = []
    for body in bodies:
        fields = {name: body.get(name) for name in ("codes", "tokenizer")}
        fields |= {"pipeline": pipeline, "format": outputs.format}
        works.append(local.prepare(_request(DecodeRequest, fields)))
    outputs.require_room(works)
    finished = local.run(works)
    outputs.write(works, finished, tells_provenance=local.tells_provenance)
    require_success(finished)


def _read_codes(path: Path) -> list[dict[str, Any]]:
    """Return the requests for /decode that a file holds: one, or one a line.

    Raises: CommandError.
    """
    from app.codes import codes_of_answer

    data = _read(path)
    try:
        try:
            answers = [json.loads(data)]
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise
            answers = [json.loads(line) for line in data.split(b"\n") if line.strip()]
        bodies = list(map(codes_of_answer, answers))
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path} does not hold codes in JSON: {error}") from error
    return [body if isinstance(body, dict) else {} for body in bodies]


def _labels(pairs: Sequence[str]) -> dict[str, str] | None:
    labels: dict[str, str] = {}
    for pair in pairs:
        name, is_pair, label = pair.partition("=")
        if not (name and is_pair and label):
            raise CommandError(f"--labels must be SET=NAME, as in style=noto, got {pair!r}")
        if name in labels:
            raise CommandError(f"--labels names the set {name!r} twice: {labels[name]!r} and {label!r}")
        labels[name] = label
    return labels or None


def _local() -> "Local":
    from app.cli.local import Local
    from workers.settings import WorkerSettings

    return Local(settings_of(WorkerSettings))


def _request(kind: "type[Request]", fields: dict[str, Any]) -> "Request":
    """Make a request of the options given.

    Raises: CommandError naming each option that can't be used.
    """
    from pydantic import ValidationError

    from app.field_errors import field_errors

    try:
        return kind(**given(fields))
    except ValidationError as error:
        found = field_errors(error.errors(include_url=False))
        raise CommandError("; ".join(f"{each.field}: {each.message}" for each in found)) from error


def _say_once(finished: "Sequence[Finished]") -> None:
    """Say what was not done as asked."""
    for warning in dict.fromkeys(warning for each in finished for warning in each.warnings):
        say(warning)


def _result(operation: "Operation", finished: "Finished") -> "Result":
    """Return what the service would answer, without the outputs' addresses."""
    from workers.messages import Output, Result

    outputs = [
        Output(sample=number, medium=sample.medium, psnr_db=sample.psnr_db)
        for number, sample in enumerate(finished.samples)
    ]
    return Result(
        operation=operation,
        pipeline=finished.pipeline,
        outputs=outputs,
        codes=finished.codes,
        warnings=list(finished.warnings),
    )


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} can't be read: {error.strerror}") from error
