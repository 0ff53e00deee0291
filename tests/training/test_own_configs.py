"""The example configurations for one's own pictures: as shipped, but for sizes and steps."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from app.cli.main import cli
from models.pipeline import Pipeline
from tests.tiny import tiny_prompt_encoder
from training.prior import PriorTrainingConfig
from training.run import load_config
from training.tokenizer import TokenizerTrainingConfig

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
SMALL = {
    "num_steps = 3000": "num_steps = 12\nis_compiled = false\nnum_threads = 1",
    "num_steps = [46]000": "num_steps = 6\nis_compiled = false\nnum_threads = 1",
    "num_steps = 16": "num_steps = 2",
    "continuous_steps = 300": "continuous_steps = 4",
    "samples_every = 500": "samples_every = 6",
    "batch_size = 64": "batch_size = 8",
    "image_size_px = 64": "image_size_px = 16",
    "hidden_channels = 32": "hidden_channels = 8",
    "codebook_size = 1024": "codebook_size = 16",
    "hidden_size = 256": "hidden_size = 32",
    "depth = 8": "depth = 2",
    "num_heads = 4": "num_heads = 2",
}


def small_copy(name: str, folder: Path) -> str:
    """Copy a shipped configuration into ``folder``, small, and return its path; each line stays but for values."""
    text = (CONFIGS / f"{name}.toml").read_text()
    for pattern, value in SMALL.items():
        text = re.sub(rf"^{pattern}\b", value, text, flags=re.M)
    if "captions" in name:
        text = text.replace("\n[prior]", '\ntext_encoder = "text"\n\n[prior]')
    (folder / f"{name}.toml").write_text(text)
    return f"{name}.toml"


def draw_pictures(folder: Path, *, with_captions: bool) -> None:
    """Draw discs and squares, in a folder for each shape, or with captions of two fields."""
    lines = []
    for number in range(40):
        colour, shape = ("red", "blue")[number % 2], ("ellipse", "rectangle")[number // 2 % 2]
        image = Image.new("RGB", (20, 24), "white")
        getattr(ImageDraw.Draw(image), shape)((3, 4, 8 + number % 7, 9 + number % 11), fill=colour)
        file = f"images/{number}.png" if with_captions else f"{shape}/{number}.png"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / file)
        lines.append(json.dumps({"file": file, "caption": f"a {colour} {shape}"}))
    if with_captions:
        (folder / "captions.jsonl").write_text("\n".join(lines))


def test_the_shipped_files_are_whole_configurations() -> None:
    tokenizer = load_config(CONFIGS / "own-pictures-tokenizer.toml", TokenizerTrainingConfig)
    for name in ("own-pictures-prior", "own-captions-prior"):
        prior = load_config(CONFIGS / f"{name}.toml", PriorTrainingConfig)
        assert prior.tokenizer == tokenizer.folder / "tokenizer.safetensors"
        assert prior.data == tokenizer.data
        assert prior.output.name == name.removesuffix("-prior")


@pytest.mark.parametrize("name", ["own-pictures", "own-captions"])
def test_the_example_configurations_end_in_a_measured_pipeline(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_pictures(tmp_path / "pictures", with_captions=name == "own-captions")
    tiny_prompt_encoder().save(tmp_path / "text")
    pipeline = f"runs/{name}/{name}"
    tokenizer, prior = (small_copy(each, tmp_path) for each in ("own-pictures-tokenizer", f"{name}-prior"))
    for command in (
        ["train", "tokenizer", "--config", tokenizer],
        ["train", "prior", "--config", prior],
        ["evaluate", pipeline, "--data", "pictures", "--num-images", "8"],
    ):
        result = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    spec = Pipeline.load(pipeline).spec
    assert spec.takes_prompt is (name == "own-captions")
    assert spec.labels == ({} if spec.takes_prompt else {"class": ("ellipse", "rectangle")})
    card = (tmp_path / pipeline / "README.md").read_text()
    assert "emoji" not in card
    assert ("Held-out prompts" in card) is spec.takes_prompt
    assert (tmp_path / pipeline / "samples.png").is_file()
