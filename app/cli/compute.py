"""The commands that compute here and now, without a server or a queue."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.terminal import (
    CacheInterval,
    CommandError,
    GuidanceScale,
    NumSteps,
    SamplerChoice,
    given,
    say,
    settings_of,
)

if TYPE_CHECKING:
    from app.sources import SourceFile
    from workers.compute import Finished
    from workers.messages import Request, Resolved

PipelineName = Annotated[str | None, typer.Option("--pipeline", help="By name; the first one if left out.")]
Out = Annotated[Path, typer.Option(help="Where to write: .png, .webp or .jpg; - is standard output.")]


def generate(
    out: Out,
    class_label: Annotated[str | None, typer.Option(help="By name or number; any class if left out.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to show, in English.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to lead away from.")] = None,
    style: Annotated[str | None, typer.Option(help="By name or number; any if left out.")] = None,
    group: Annotated[str | None, typer.Option(help="By name or number; any if left out.")] = None,
    background: Annotated[str, typer.Option(help="white or transparent.")] = "white",
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same bytes.", min=0)] = None,
    num_images: Annotated[int, typer.Option(help="More than one are numbered: x-0.png, ….", min=1)] = 1,
    num_steps: NumSteps = None,
    guidance_scale: GuidanceScale = None,
    sampler: SamplerChoice = None,
    cache_interval: CacheInterval = None,
    pipeline: PipelineName = None,
) -> None:
    """Generate images of a class or a prompt, here and now."""
    from workers.messages import GenerateRequest

    fields = {
        "class_label": class_label,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "style": style,
        "group": group,
        "background": background,
        "seed": seed,
        "num_images": num_images,
        "num_steps": num_steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "cache_interval": cache_interval,
        "pipeline": pipeline,
        "format": _format_of(out),
    }
    resolved, finished = _compute(GenerateRequest, fields)
    options = "".join(f", {name} {value}" for name, value in resolved.options.items())
    say(f"seed {resolved.seed}{options}, {resolved.pipeline}")
    for warning in finished.warnings:
        say(warning)
    _write_outputs(resolved, finished, out)


def encode(
    image: Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP file; - is standard input.")],
    pipeline: PipelineName = None,
    effort: Annotated[int, typer.Option(help="Sweeps over the image in search of better codes.")] = 0,
) -> None:
    """Turn an image into codes: JSON on standard output, as the result of POST /encode."""
    from app.sources import SourceFile
    from workers.messages import EncodeRequest, Output, Result

    file = SourceFile(str(image), _read(image))
    _, finished = _compute(EncodeRequest, {"pipeline": pipeline, "effort": effort}, [file])
    _require_success(finished)
    outputs = [Output(sample=number, medium=sample.medium) for number, sample in enumerate(finished.samples)]
    result = Result(operation="encode", pipeline=finished.pipeline, outputs=outputs, codes=finished.codes)
    typer.echo(result.model_dump_json())


def decode(
    codes: Annotated[Path, typer.Argument(help="What `smalti encode` wrote; - is standard input.")],
    out: Out,
    pipeline: PipelineName = None,
) -> None:
    """Turn codes into images."""
    from app.codes import codes_of_answer
    from workers.messages import DecodeRequest

    try:
        body = codes_of_answer(json.loads(_read(codes)))
    except ValueError as error:
        raise CommandError(f"{codes} does not hold codes in JSON: {error}") from error
    body = body if isinstance(body, dict) else {}
    fields = {name: body.get(name) for name in ("codes", "tokenizer")}
    fields |= {"pipeline": pipeline, "format": _format_of(out)}
    resolved, finished = _compute(DecodeRequest, fields)
    _write_outputs(resolved, finished, out)


def _compute(
    kind: "type[Request]", fields: dict[str, Any], files: "Sequence[SourceFile]" = ()
) -> "tuple[Resolved, Finished]":
    """Make a request of the options given and serve it."""
    from pydantic import ValidationError

    from app.cli.local import compute
    from app.field_errors import field_errors
    from workers.settings import WorkerSettings

    settings = settings_of(WorkerSettings)
    try:
        request = kind(**given(fields))
    except ValidationError as error:
        found = field_errors(error.errors(include_url=False))
        raise CommandError("; ".join(f"{each.field}: {each.message}" for each in found)) from error
    return compute(request, settings, files)


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} can't be read: {error.strerror}") from error


def _format_of(out: Path) -> str | None:
    """Return the format that a file's name asks for; standard output gets the pipeline's default."""
    if str(out) == "-":
        return None
    suffix = out.suffix.lower().removeprefix(".")
    if not suffix:
        raise CommandError(f"--out must end in .png, .webp or .jpg, got {out}")
    return "jpeg" if suffix == "jpg" else suffix


def _write_outputs(resolved: "Resolved", finished: "Finished", out: Path) -> None:
    """Write the outputs and print where each is."""
    from models.media.base import medium_of

    if str(out) == "-" and len(finished.samples) > 1:
        raise CommandError(f"--out - takes one output, and there are {len(finished.samples)}")
    for number, sample in enumerate(finished.samples):
        if sample.signal is None:
            continue  # said at the end
        medium = medium_of(sample.medium)
        array = medium.from_signal(sample.signal)
        data = medium.save(array, resolved.format, background=resolved.background)
        if str(out) == "-":
            sys.stdout.buffer.write(data)
            continue
        path = out if len(finished.samples) == 1 else out.with_stem(f"{out.stem}-{number}")
        try:
            path.write_bytes(data)
        except OSError as error:
            raise CommandError(f"{path} can't be written: {error.strerror}") from error
        typer.echo(path)
    _require_success(finished)


def _require_success(finished: "Finished") -> None:
    failed = [f"output {number}: {each.error}" for number, each in enumerate(finished.samples) if each.error]
    if failed:
        raise CommandError("; ".join(failed))
