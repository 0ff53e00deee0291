"""From a folder of pictures with captions of one's own to a measured pipeline, by the command line."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from app.cli.main import cli
from models.pipeline import Pipeline
from tests.tiny import tiny_prompt_encoder
from training.evaluation.classifier import ClassifierTraining
from training.evaluation.evaluate_captions import evaluate_captions
from training.evaluation.options import EvaluationOptions

TOKENIZER = """
folder = "{root}/tokenizer"
data = "{data}"
batch_size = 16
num_steps = 20
continuous_steps = 5
warmup_steps = 2
is_compiled = false
num_threads = 1

[tokenizer]
image_channels = 3
image_size_px = 16
downsample_factor = 4
hidden_channels = 8
num_blocks = 1
codebook_size = 16
"""

PRIOR = """
tokenizer = "{root}/tokenizer/tokenizer.safetensors"
folder = "{root}/prior"
output = "{root}/mine"
data = "{data}"
text_encoder = "{root}/text"
batch_size = 16
num_steps = 10
warmup_steps = 2
samples_every = 10
is_compiled = false
num_threads = 1

[prior]
hidden_size = 32
depth = 2
num_heads = 2

[defaults]
num_steps = 2
"""


def draw(folder: Path, *, with_labels: bool) -> None:
    """Draw discs and squares of several sizes, with two fields a line, or with labels, too."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(40):
        colour, shape = ("red", "blue")[number % 2], ("ellipse", "rectangle")[number // 2 % 2]
        image = Image.new("RGBA", (20, 24))  # neither the tokenizer's size nor opaque
        getattr(ImageDraw.Draw(image), shape)((3, 4, 8 + number % 7, 9 + number % 11), fill=colour)
        file = f"images/{number}.png"
        image.save(folder / file)
        line: dict[str, object] = {"file": file, "caption": f"a {colour} {shape}"}
        lines.append(json.dumps({**line, "labels": {"colour": colour}} if with_labels else line))
    (folder / "captions.jsonl").write_text("\n".join(lines))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("with_labels", [False, True])
def test_own_captions_make_a_pipeline_that_is_measured(tmp_path: Path, with_labels: bool) -> None:
    data = tmp_path / "data"
    draw(data, with_labels=with_labels)
    tiny_prompt_encoder().save(tmp_path / "text")
    for name, text in (("tokenizer", TOKENIZER), ("prior", PRIOR)):
        (tmp_path / f"{name}.toml").write_text(text.format(root=tmp_path, data=data))
        run("train", name, "--config", str(tmp_path / f"{name}.toml"))
    folder = tmp_path / "mine"
    spec = Pipeline.load(folder).spec
    assert spec.takes_prompt
    assert spec.labels == ({"colour": ("blue", "red")} if with_labels else {})

    if with_labels:
        quick = ClassifierTraining("residual", seed=1, width=4, num_epochs=2, batch_size=16, is_flipped=False)
        options = EvaluationOptions(data=str(data), effort=1, classifier_folder=tmp_path / "classifiers")
        evaluation = evaluate_captions(folder, options, quick)
        assert list(evaluation.labels) == ["colour"]
        assert evaluation.features == "colour"
        assert evaluation.frechet_distances is not None
        assert evaluation.searched is not None
    else:
        assert "nearest training image" in run("evaluate", str(folder), "--data", str(data))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["data"] == "data"
    assert (metrics["frechet_distances"] is not None) == with_labels
    assert 2 <= metrics["num_images"] == metrics["tokenizer"]["num_images"] <= 10
    card = (folder / "README.md").read_text()
    assert ("under their own colour" in card) == with_labels
    assert ("emoji" in card) is False
    with Image.open(folder / "samples.png") as picture:
        assert picture.width > 4 * 100


def test_a_pipeline_that_takes_prompts_is_not_measured_without_captions(tiny_prompt_weights: Path) -> None:
    result = CliRunner().invoke(cli, ["evaluate", str(tiny_prompt_weights / "tiny-prompt")])
    assert "takes prompts: give a folder with captions, got fashion-mnist" in str(result.exception)
