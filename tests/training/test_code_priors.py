"""Priors over codes, trained end to end: resumable to the same losses, usable at their end."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.autoencoders.vq import Tokenizer
from models.checkpoint import save_checkpoint
from models.conditioning import Conditions
from models.pipeline import Pipeline
from models.stage import Sample, SampleSpec, run_path
from tests.tiny import save_families
from training.config_file import TrainingError, load_config
from training.data.dataset import scale_to_unit
from training.data.sources import load_dataset
from training.examples import tokenize_images
from training.network import NetworkSettings, code_network_config
from training.prior import most_frequent, train_prior
from training.prior_configs import PRIOR_CONFIGS, PriorConfig

FAMILIES = ("autoregressive", "masked")
SETTINGS = """
tokenizer = "{tokenizer}"
folder = "{folder}"
output = "{folder}/weights/made"
data = "{data}"
batch_size = 16
num_steps = {num_steps}
warmup_steps = 5
ema_decay = 0.95
is_compiled = false
horizontal_flips = false
checkpoint_every_s = 0
log_every = 1
num_threads = 1

[prior]
hidden_size = 32
depth = 2
num_heads = 2
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12×12 pictures, bright on the left and on the right."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for name, columns in (("left", slice(0, 6)), ("right", slice(6, 12))):
        (folder / name).mkdir()
        for i in range(40):
            pixels = noise.integers(0, 60, (12, 12), dtype=np.uint8)
            pixels[:, columns] = 200 + noise.integers(0, 50)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A tokenizer, 12×12 grey, 6×6 codes of 32: untrained, but with codes of these pictures' latents."""
    folder = tmp_path_factory.mktemp("families")
    save_families(folder)
    path = folder / "flow" / "tokenizer.safetensors"
    made, data = Tokenizer.load(path), load_dataset(str(pictures), "train", image_size_px=12, channels=1)
    vectors = made.encode(scale_to_unit(data.images)).movedim(1, -1).flatten(0, -2)  # (N, d)
    chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:32]
    made.quantizer.codebook.copy_(vectors[chosen])
    save_checkpoint(path, made.exported(), made.config)
    return path


def settings(folder: Path, tokenizer: Path, data: Path, num_steps: int) -> Path:
    path = folder.with_suffix(".toml")
    path.write_text(SETTINGS.format(folder=folder, tokenizer=tokenizer, data=data, num_steps=num_steps))
    return path


def read(path: Path, family: str) -> PriorConfig:
    return load_config(path, PRIOR_CONFIGS[family])


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "losses.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_on_codes_generates_those_of_its_classes(
    family: str, tmp_path: Path, tokenizer: Path, pictures: Path
) -> None:
    config = replace(read(settings(tmp_path / "run", tokenizer, pictures, 120), family), samples_every=120)
    train_prior(config)
    found = losses(config.folder)
    assert found[-1][1] < 0.6 * found[0][1]
    assert (config.folder / "samples" / "0000120.png").exists()
    pipeline = Pipeline.load(config.output, dtype=torch.float32)
    assert pipeline.spec.prior == family
    assert pipeline.spec.labels == {"class": ("left", "right")}
    data = load_dataset(str(pictures), "train", image_size_px=12, channels=1)
    codes = tokenize_images(pipeline.tokenizer, data.images)
    assert pipeline.prior.network.config.common_code == most_frequent(codes)
    typical = torch.stack([_shares(codes[data.labels == label]) for label in range(2)])  # (2, 36, 32)
    null = pipeline.prior.null_conditions()
    num_right = 0
    for label in range(2):
        asked = SampleSpec(0, pipeline.spec.defaults, Conditions(torch.tensor([[label]])), null)
        samples = [Sample(asked, index) for index in range(8)]
        run_path([pipeline.make_stages(8).sample], samples)
        made = torch.stack([sample.value for sample in samples]).flatten(1)  # (8, 36)
        likely = typical[:, torch.arange(36), made].log().sum(-1)  # (2, 8)
        num_right += int((likely.argmax(0) == label).sum())
    assert num_right >= 14  # of 16


def _shares(codes: torch.Tensor) -> torch.Tensor:
    """Return how often each code is at each place, (N, codebook), of codes (B, h, w)."""
    counts = torch.nn.functional.one_hot(codes.flatten(1).long(), 32).sum(0)
    return (counts + 0.1) / (counts + 0.1).sum(-1, keepdim=True)


def test_codes_to_learn_are_those_that_the_tokenizer_makes(tokenizer: Path, pictures: Path) -> None:
    whole = Tokenizer.load(tokenizer)
    data = load_dataset(str(pictures), "train", image_size_px=12, channels=1)
    wanted = whole.quantize(whole.encode(scale_to_unit(data.images))).codes
    codes = tokenize_images(whole, data.images)
    assert codes.dtype == torch.int32
    assert (codes == wanted).float().mean() > 0.999  # sums of another order may turn a code


@pytest.mark.parametrize(("family", "patch_size"), [("autoregressive", 1), ("masked", 2)])
def test_a_shape_follows_from_tokenizer_and_family(tokenizer: Path, family: str, patch_size: int) -> None:
    whole, names = Tokenizer.load(tokenizer), {"class": ("a", "b", "c")}
    is_causal = family == "autoregressive"
    shape = code_network_config(NetworkSettings(), whole, names, None, is_causal=is_causal)
    assert (shape.grid, shape.codebook_size, shape.label_sizes) == ((6, 6), 32, (3,))
    assert (shape.patch_size, shape.is_causal) == (patch_size, is_causal)
    with pytest.raises(TrainingError, match=r"prior.grid: tokenizer and data give \(6, 6\), the settings"):
        code_network_config(NetworkSettings(grid=(4, 4)), whole, names, None, is_causal=is_causal)


def test_settings_of_another_family_are_named(tmp_path: Path, tokenizer: Path, pictures: Path) -> None:
    path = settings(tmp_path / "run", tokenizer, pictures, 2)
    path.write_text("time_mean = 0.5\n" + path.read_text())
    with pytest.raises(TrainingError, match="time_mean is not a setting"):
        read(path, "masked")
    assert read(path, "flow").time_mean == 0.5


@pytest.mark.ci
@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_training_resumes_to_the_same_losses(
    family: str, tmp_path: Path, tokenizer: Path, pictures: Path
) -> None:
    train_prior(read(settings(tmp_path / "whole", tokenizer, pictures, 40), family))
    killed = settings(tmp_path / "killed", tokenizer, pictures, 40)
    command = [sys.executable, "-m", "app.cli.main", "train", "prior", "--family", family]
    command += ["--config", str(killed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    log, give_up = tmp_path / "killed" / "losses.jsonl", time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 15):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < give_up
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(losses(tmp_path / "killed")) < 40
    subprocess.run([*command, "--resume"], env=environment, stderr=subprocess.DEVNULL, check=True)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    files = [
        (tmp_path / name / "weights" / "made" / "prior.safetensors").read_bytes()
        for name in ("whole", "killed")
    ]
    assert files[0] == files[1]
