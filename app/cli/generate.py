"""`smalti generate`: here and now, or by a service."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.answers import Asked, answer_of, place_of, require_success, say_warnings, tell_json
from app.cli.completion import PipelineName
from app.cli.outputs import Outputs, Show
from app.cli.requests import labels_of
from app.cli.terminal import CommandError, GuidanceScale, Json, NumSteps, SamplerChoice, Temperature, Url, say

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
    source: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture to start from; - is standard input.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the source is drawn anew: white there.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of the source is drawn anew: up to 1.")
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
    temperature: Temperature = None,
    top_k: Annotated[
        int | None, typer.Option(help="Draw from so many of the likeliest codes.", min=0)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest codes that reach this share together.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Draw codes of at least this share of the likeliest one's probability."),
    ] = None,
    repetition_window: Annotated[
        int | None, typer.Option(help="Draw a code once more that is frequent among so many.", min=0)
    ] = None,
    pipeline: PipelineName = None,
    return_codes: Annotated[
        bool, typer.Option("--return-codes", help="Write the codes, too: x.json, for `smalti decode`.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
    show: Show = None,
) -> None:
    """Generate images of a class or a prompt, or from a source, here and now, or by the service at --url."""
    outputs = Outputs(out, as_json=as_json, show=show)
    if return_codes and outputs.is_standard_output:
        raise CommandError("--return-codes writes the codes beside the file that --out names, and - is none")
    fields = {
        "class_label": class_label,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "style": style,
        "group": group,
        "labels": labels_of(labels or ()),
        "background": background,
        "seed": seed,
        "num_outputs": num_outputs,
        "num_images": num_images,
        "num_steps": num_steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "strength": strength,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_window": repetition_window,
        "pipeline": pipeline,
        "format": outputs.format,
        "return_codes": return_codes,
    }
    if mask is not None and source is None:
        raise CommandError("--mask says which part of --source to draw anew; give both")
    outputs.require_room(num_outputs or num_images or 1)
    answer = answer_of(place_of(url).answers("generate", [Asked(fields, source, mask)])[0])
    result = answer.result
    options = "".join(f", {name} {value}" for name, value in answer.options.items())
    say(f"seed {result['seed']}{options}, {result['pipeline']}")
    say_warnings([answer])
    files = outputs.write([answer])
    if return_codes:
        outputs.write_codes(result)
    if as_json:
        tell_json({**result, "files": files})
    require_success([answer])
