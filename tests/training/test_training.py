"""Training end to end on a folder of small images: resumable to the same losses, usable at its end."""

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

from models.autoencoders.vq import Tokenizer, TokenizerConfig
from models.conditioning import Conditions
from models.options import FlowOptions
from models.pipeline import Pipeline
from training.network import NetworkSettings, network_config
from training.prior import PriorTrainingConfig, train_prior
from training.run import TrainingError, load_config
from training.tokenizer import train_tokenizer
from training.tokenizer_config import TokenizerTrainingConfig

TOKENIZER = """
folder = "{folder}"
data = "{data}"
batch_size = 16
num_steps = 40
warmup_steps = 5
is_compiled = false
checkpoint_every_s = 0
log_every = 1
num_threads = 1

[tokenizer]
image_size_px = 12
hidden_channels = 8
num_blocks = 1
codebook_size = 16
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12×12 pictures: bright squares on the left, and on the right."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for name, columns in (("left", slice(1, 6)), ("right", slice(6, 11))):
        (folder / name).mkdir()
        for i in range(40):
            pixels = noise.integers(0, 60, (12, 12), dtype=np.uint8)
            pixels[3:9, columns] = noise.integers(180, 255)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def tokenizer_config(tmp_path: Path, name: str, pictures: Path) -> Path:
    path = tmp_path / f"{name}.toml"
    path.write_text(TOKENIZER.format(folder=tmp_path / name, data=pictures))
    return path


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "losses.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


def cli(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli.main", "train", *arguments],
        env=environment,
        stderr=subprocess.DEVNULL,
    )


def test_killed_training_resumes_to_the_same_losses(tmp_path: Path, pictures: Path) -> None:
    whole = tokenizer_config(tmp_path, "whole", pictures)
    train_tokenizer(load_config(whole, TokenizerTrainingConfig))
    killed = tokenizer_config(tmp_path, "killed", pictures)
    process = cli("tokenizer", "--config", str(killed))
    log = tmp_path / "killed" / "losses.jsonl"
    give_up = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().splitlines()) > 15):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < give_up
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(losses(tmp_path / "killed")) < 40
    assert cli("tokenizer", "--config", str(killed), "--resume").wait() == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    files = [(tmp_path / name / "tokenizer.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> PriorTrainingConfig:
    """A pipeline trained on the pictures, as the settings of its prior."""
    tmp_path = tmp_path_factory.mktemp("squares")
    config = TokenizerTrainingConfig(
        tokenizer=TokenizerConfig(
            image_size_px=12, hidden_channels=16, num_blocks=1, latent_channels=4, codebook_size=32
        ),
        folder=tmp_path / "tokenizer",
        data=str(pictures),
        batch_size=32,
        num_steps=200,
        continuous_steps=50,
        warmup_steps=10,
        is_compiled=False,
        horizontal_flips=False,
    )
    tokenizer = train_tokenizer(config)
    assert losses(config.folder)[-1][1] < losses(config.folder)[0][1] / 4
    prior = PriorTrainingConfig(
        prior=NetworkSettings(hidden_size=64, depth=2, num_heads=2),
        tokenizer=tokenizer,
        folder=tmp_path / "prior",
        output=tmp_path / "weights" / "squares",
        defaults=FlowOptions(num_steps=8, guidance_scale=1.0),
        data=str(pictures),
        batch_size=64,
        num_steps=300,
        warmup_steps=10,
        ema_decay=0.98,
        is_compiled=False,
        horizontal_flips=False,
        samples_every=300,
    )
    train_prior(prior)
    return prior


def test_pipeline_trained_on_a_folder_generates_its_classes(squares: PriorTrainingConfig) -> None:
    pipeline = Pipeline.load(squares.output)
    assert pipeline.spec.labels == {"class": ("left", "right")}
    assert pipeline.spec.latents == (4, 6, 6)
    assert pipeline.spec.codes.fingerprint == pipeline.tokenizer.fingerprint()
    images = pipeline.generate(Conditions(torch.tensor([[0]] * 8 + [[1]] * 8)), seed=0)
    left_is_brighter = images[..., :6].mean((1, 2, 3)) > images[..., 6:].mean((1, 2, 3))
    assert left_is_brighter.tolist() == [True] * 8 + [False] * 8
    for picture in ("prior/samples/0000300.png", "prior/loss.png", "tokenizer/reconstructions.png"):
        assert (squares.folder.parent / picture).exists()


def test_a_prior_can_start_from_a_finished_one(tmp_path: Path, squares: PriorTrainingConfig) -> None:
    finished = squares.output / "prior.safetensors"
    more = replace(
        squares, folder=tmp_path / "run", output=tmp_path / "more", num_steps=1, start_from=finished
    )
    train_prior(more)
    assert losses(more.folder)[0][1] < losses(squares.folder)[0][1] / 2
    deeper = replace(more, folder=tmp_path / "deeper", prior=replace(more.prior, depth=3))
    with pytest.raises(TrainingError, match=r"start_from: .*prior.safetensors has another shape"):
        train_prior(deeper)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_classes": 3}, r"prior\.label_sizes: tokenizer and data give \(2,\), the settings say \(3,\)"),
        ({"label_sizes": [2, 2]}, r"prior\.label_sizes: .* \(2, 2\)"),
        ({"grid": [14, 14]}, r"prior\.grid: tokenizer and data give \(6, 6\), the settings say \(14, 14\)"),
        ({"latent_channels": 8}, r"prior\.latent_channels: .* give 4, the settings say 8"),
        ({"text_tokens": 24, "text_channels": 8}, r"prior\.text_tokens: .* give 0, the settings say 24"),
        ({"patch_size": 4}, r"prior: .*multiple of patch_size 4"),
    ],
)
def test_a_shape_that_doesnt_fit_is_an_error_before_an_image_is_encoded(
    tmp_path: Path,
    squares: PriorTrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    said: str,
) -> None:
    monkeypatch.setattr("training.examples.encode_images", lambda *_: pytest.fail("encoded"))
    path = tmp_path / "prior.toml"
    fields = {"tokenizer": squares.tokenizer, "folder": tmp_path / "run", "output": tmp_path / "out"}
    text = [f'{name} = "{value}"\n' for name, value in fields.items()]
    text += [
        f'data = "{squares.data}"\n[prior]\n',
        *(f"{name} = {value}\n" for name, value in settings.items()),
    ]
    path.write_text("".join(text))
    with pytest.raises(TrainingError, match=said) as raised:
        train_prior(load_config(path, PriorTrainingConfig))
    assert "\n" not in str(raised.value)


def test_shapes_that_agree_may_be_given_by_their_older_names(squares: PriorTrainingConfig) -> None:
    tokenizer = Tokenizer.load(squares.tokenizer)
    given = NetworkSettings(num_classes=0, num_styles=2, num_groups=3, grid=(6, 6), latent_channels=4)
    names = {"style": ("a", "b"), "group": ("c", "d", "e")}
    assert network_config(given, tokenizer, names, None).label_sizes == (2, 3)


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings(tmp_path: Path, pictures: Path) -> None:
    path = tokenizer_config(tmp_path, "run", pictures)
    path.write_text(path.read_text().replace("num_steps = 40", "num_steps = 2"))
    train_tokenizer(load_config(path, TokenizerTrainingConfig))
    with pytest.raises(TrainingError, match="--resume"):
        train_tokenizer(load_config(path, TokenizerTrainingConfig))
    path.write_text(path.read_text().replace("batch_size = 16", "batch_size = 8"))
    with pytest.raises(TrainingError, match="batch_size"):
        train_tokenizer(load_config(path, TokenizerTrainingConfig), resume=True)


def test_a_misspelt_setting_is_named(tmp_path: Path, pictures: Path) -> None:
    path = tokenizer_config(tmp_path, "run", pictures)
    path.write_text("lerning_rate = 1\n" + path.read_text())
    with pytest.raises(TrainingError, match="lerning_rate"):
        load_config(path, TokenizerTrainingConfig)


@pytest.mark.ci
def test_two_processes_train_one_model(tmp_path: Path, pictures: Path) -> None:
    """torchrun with two processes ends, and with gradients averaged the loss is that of one process."""
    both = tokenizer_config(tmp_path, "both", pictures)
    one = tokenizer_config(tmp_path, "one", pictures)
    for path in (both, one):
        path.write_text(path.read_text().replace("num_steps = 40", "num_steps = 8\nhorizontal_flips = false"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "app.cli.main", "train", "tokenizer", "--config", str(both)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL, timeout=100)
    train_tokenizer(load_config(one, TokenizerTrainingConfig))
    weights = [
        torch.load(tmp_path / n / "checkpoint.pt", weights_only=True)["tokenizer"] for n in ("both", "one")
    ]
    name = "encoder.stages.1.weight"
    # bf16 rounds differently in batches of 8 and of 16, and Adam's first steps amplify it.
    torch.testing.assert_close(weights[0][name], weights[1][name], rtol=0.05, atol=4e-3)
