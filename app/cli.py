"""The command line: `smalti --help`. Results go to standard output, progress to standard error.

Commands import what they need when they run, so that help and mistakes are answered at once.
"""

import base64
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.supervisor import end_with_stdin
from app.terminal import (
    CacheInterval,
    CommandError,
    GuidanceScale,
    NumSteps,
    SamplerChoice,
    given,
    say,
    show_log,
)
from app.training_cli import data_sets, evaluate, train

if TYPE_CHECKING:
    from app.settings import Settings
    from workers.catalog import AnyRequest
    from workers.messages import Background, ImageFormat
    from workers.work import Finished

cli = typer.Typer(
    help="Generate, encode and decode images with two-stage latent models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.add_typer(train, name="train")
cli.add_typer(data_sets, name="data")

_FORMATS: "dict[str, ImageFormat]" = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}

Host = Annotated[str | None, typer.Option(help="The address to listen on.  [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="0 takes any free one.  [default: 8000]", min=0, max=65535)]
PipelineName = Annotated[str | None, typer.Option("--pipeline", help="By name; the first one if left out.")]
Out = Annotated[Path, typer.Option(help="Where to write: .png, .webp or .jpg; - is standard output.")]


def main() -> None:
    """Run the command line; a failure with a known reason ends it with that reason alone."""
    # Compute threads that spin while they wait take the cores from each other: two processes on two
    # cores then run ten times slower, not twice. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        cli()
    except (SystemExit, KeyboardInterrupt):
        raise
    except _known_failures() as error:
        say(str(error))
        sys.exit(1)


def _known_failures() -> tuple[type[Exception], ...]:
    from models.config import ConfigError
    from workers.errors import ServiceError
    from workers.redis_server import ServerNotFound, ServerNotStarted
    from workers.settings import SettingsError

    return (CommandError, ConfigError, ServiceError, SettingsError, ServerNotFound, ServerNotStarted)


@cli.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    if supervised:
        end_with_stdin()
    if version:
        from importlib.metadata import version as version_of

        typer.echo(version_of("smalti"))
        raise typer.Exit


@cli.command()
def up(
    workers: Annotated[int, typer.Option(help="How many.", min=1, max=64)] = 1,
    port: Port = None,
    host: Host = None,
    pipeline: Annotated[
        list[str] | None, typer.Option(help="Serve only this one; may be repeated, the default first.")
    ] = None,
) -> None:
    """Run the queue server (unless REDIS_URL is set), the API and workers, until Ctrl-C."""
    from app.settings import AppSettings
    from app.up import run_service

    settings = _settings(AppSettings, host=host, port=port, pipelines=",".join(pipeline or ()) or None)
    raise typer.Exit(run_service(settings, workers))


@cli.command()
def serve(
    port: Port = None,
    host: Host = None,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the API alone; its queue is at REDIS_URL."""
    from app.settings import AppSettings

    settings = _settings(AppSettings, host=host, port=port)
    _require_queue(settings.redis_url, "serve")
    show_log(settings.log_level)
    import socket

    from app.server import serve as serve_until_signal

    serve_until_signal(settings, None if fd is None else socket.socket(fileno=fd))


@cli.command()
def worker(
    check: Annotated[
        bool, typer.Option("--check", help="Only say, by the exit status, whether one lives on this host.")
    ] = False,
) -> None:
    """Run one worker; its queue is at REDIS_URL."""
    from workers.settings import WorkerSettings

    settings = _settings(WorkerSettings)
    redis_url = _require_queue(settings.redis_url, "worker")
    if check:
        raise typer.Exit(0 if _has_worker_here(redis_url) else 1)
    show_log(settings.log_level)
    from workers.worker import run_worker

    run_worker(settings)


@cli.command(hidden=True)
def queue_server() -> None:
    """Keep the embedded queue server running."""
    from app.settings import AppSettings
    from app.up import keep_queue_server

    keep_queue_server(_settings(AppSettings))


@cli.command()
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

    asked = {
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
    request, finished = _compute(GenerateRequest, asked)
    say(f"seed {request.seed}, {request.num_steps} steps of {request.sampler}, {request.pipeline}")
    for warning in finished.warnings:
        say(warning)
    _write_images(finished, out, request.background)


@cli.command()
def encode(
    image: Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP file; - is standard input.")],
    pipeline: PipelineName = None,
    effort: Annotated[int, typer.Option(help="Sweeps over the image in search of better codes.")] = 0,
) -> None:
    """Turn an image into codes: JSON on standard output, as POST /encode answers."""
    from workers.messages import EncodeRequest, EncodeResult

    asked = {"image": base64.b64encode(_read(image)).decode(), "pipeline": pipeline, "effort": effort}
    _, finished = _compute(EncodeRequest, asked)
    assert finished.codes is not None
    typer.echo(EncodeResult(pipeline=finished.pipeline, **finished.codes.model_dump()).model_dump_json())


@cli.command()
def decode(
    codes: Annotated[Path, typer.Argument(help="What `smalti encode` wrote; - is standard input.")],
    out: Out,
    pipeline: PipelineName = None,
) -> None:
    """Turn codes into images."""
    from workers.messages import DecodeRequest

    try:
        given = json.loads(_read(codes))
    except ValueError as error:
        raise CommandError(f"{codes} is no JSON: {error}") from error
    given = given if isinstance(given, dict) else {}
    asked = {name: given.get(name) for name in ("codes", "tokenizer")}
    asked |= {"pipeline": pipeline, "format": _format_of(out)}
    _, finished = _compute(DecodeRequest, asked)
    _write_images(finished, out, "white")


cli.command()(evaluate)


def _settings(kind: "type[Settings]", **overrides: object) -> "Settings":
    from app.settings import read_settings

    return read_settings(kind, **given(overrides))


def _compute(kind: "type[AnyRequest]", asked: dict[str, Any]) -> "tuple[AnyRequest, Finished]":
    """Make a request of the options given and serve it; what is wrong is said before torch is loaded."""
    from pydantic import ValidationError

    from workers.settings import WorkerSettings

    settings = _settings(WorkerSettings)
    try:
        request = kind(**given(asked))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CommandError(f"{where}: {first['msg']}, got {str(first['input'])[:80]!r}") from error
    from app.local import compute

    return compute(request, settings)


def _require_queue(redis_url: str | None, command: str) -> str:
    if not redis_url:
        raise CommandError(
            f"REDIS_URL is not set: `smalti {command}` needs the address of the queue, such as"
            " redis://host:6379/0. To run everything on this machine: smalti up"
        )
    return redis_url


def _has_worker_here(redis_url: str) -> bool:
    """Say whether a worker of this host has been heard of within its lease."""
    import socket

    import redis

    from workers.protocol import WORKERS

    with redis.Redis.from_url(redis_url, socket_timeout=5, decode_responses=True) as client:
        keys = client.smembers(WORKERS)
        return any(client.hget(key, "hostname") == socket.gethostname() for key in keys)


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} can't be read: {error.strerror}") from error


def _format_of(out: Path) -> "ImageFormat":
    if str(out) == "-":
        return "png"
    try:
        return _FORMATS[out.suffix.lower()]
    except KeyError:
        raise CommandError(f"--out must end in {', '.join(_FORMATS)}, got {out}") from None


def _write_images(finished: "Finished", out: Path, background: "Background") -> None:
    """Write the images and print where each is."""
    from workers.images import encode_image, with_background

    format = _format_of(out)
    images = [encode_image(with_background(pixels, background), format) for pixels in finished.images]
    if str(out) == "-":
        if len(images) > 1:
            raise CommandError(f"--out - takes one image, and there are {len(images)}")
        sys.stdout.buffer.write(images[0])
        return
    for index, data in enumerate(images):
        path = out if len(images) == 1 else out.with_stem(f"{out.stem}-{index}")
        try:
            path.write_bytes(data)
        except OSError as error:
            raise CommandError(f"{path} can't be written: {error.strerror}") from error
        typer.echo(path)


if __name__ == "__main__":
    main()
