"""Training a KL autoencoder, and a prior on its latents."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from models.autoencoders.vae import VariationalAutoencoder
from models.conditioning import Conditions
from models.networks.shuffle_autoencoder import ShuffleConfig
from models.options import FlowOptions
from models.pipeline import Pipeline
from models.spec import PipelineSpec
from tests.app.conftest import WAIT, serving_weights
from training.autoencoder import AutoencoderTrainingConfig, train_autoencoder
from training.bottlenecks import NormalLatents
from training.config_file import TrainingError, load_config
from training.data.dataset import scale_to_unit
from training.data.sources import load_dataset
from training.distill import DistillConfig, train_distilled
from training.network import NetworkSettings
from training.prior import train_prior
from training.prior_configs import MaskedTrainingConfig, PriorTrainingConfig

NPY = "application/x-npy"


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


def small(folder: Path, pictures: Path, num_steps: int) -> AutoencoderTrainingConfig:
    return AutoencoderTrainingConfig(
        autoencoder=ShuffleConfig(image_size_px=12, hidden_channels=16, num_blocks=1, latent_channels=4),
        folder=folder / "run",
        output=folder / "weights" / "squares",
        data=str(pictures),
        batch_size=32,
        num_steps=num_steps,
        warmup_steps=10,
        kl_weight=1e-3,
        free_nats=0.1,
        is_compiled=False,
        horizontal_flips=False,
        num_threads=1,
        log_every=1,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> AutoencoderTrainingConfig:
    config = small(tmp_path_factory.mktemp("trained"), pictures, 150)
    train_autoencoder(config)
    return config


def logged(folder: Path) -> list[dict[str, float]]:
    entries = map(json.loads, (folder / "losses.jsonl").read_text().splitlines())
    return [{name: value for name, value in entry.items() if name != "time"} for entry in entries]


def test_it_learns_to_reconstruct_and_scales_its_latents(
    trained: AutoencoderTrainingConfig, pictures: Path
) -> None:
    entries = logged(trained.folder)
    assert entries[-1]["loss"] < entries[0]["loss"] / 4
    assert entries[-1]["kl_nats"] > 0.1
    assert (trained.folder / "reconstructions.png").exists()
    pipeline = Pipeline.load(trained.output)
    assert (pipeline.prior, pipeline.spec.codes, pipeline.spec.has_posterior) == (None, None, True)
    images = scale_to_unit(load_dataset(str(pictures), "train", image_size_px=12, channels=1).images)
    latents = pipeline.autoencoder.encode(images)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    error = (pipeline.autoencoder.decode(latents) - images).square().mean()
    assert error < (images - images.mean(0)).square().mean() / 5


def test_a_folder_of_another_pipeline_and_codes_that_arent_there_are_refused(
    trained: AutoencoderTrainingConfig, tmp_path: Path, pictures: Path
) -> None:
    weights = trained.output / "tokenizer.safetensors"
    masked = MaskedTrainingConfig(
        tokenizer=weights, folder=tmp_path / "run", output=tmp_path / "out", data=str(pictures)
    )
    with pytest.raises(TrainingError, match="has no codes, which priors of the family masked learn"):
        train_prior(masked)
    colour = replace(
        small(tmp_path, pictures, 2),
        autoencoder=replace(trained.autoencoder, image_channels=3),
        output=trained.output,
    )
    with pytest.raises(TrainingError, match="holds another pipeline, whose makes is"):
        train_autoencoder(colour)
    path = tmp_path / "bad.toml"
    path.write_text('folder = "run"\noutput = "o"\ncodebook_size = 4\n[autoencoder]\nlatent_channels = 4\n')
    with pytest.raises(TrainingError, match="codebook_size is not a setting"):
        load_config(path, AutoencoderTrainingConfig)


@pytest.mark.ci
def test_training_resumes_to_the_same_losses_and_bytes(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = (small(tmp_path / name, pictures, 20) for name in ("whole", "stopped"))
    train_autoencoder(whole)
    stopped = replace(stopped, checkpoint_every_s=0)
    calls = iter(range(100))

    def learn_for_a_while(*_: object) -> None:
        if next(calls) == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(NormalLatents, "learn", learn_for_a_while)
        with pytest.raises(KeyboardInterrupt):
            train_autoencoder(stopped)
    assert len(logged(stopped.folder)) == 8
    train_autoencoder(stopped, resume=True)
    assert logged(stopped.folder) == logged(whole.folder)
    files = [(each.output / "tokenizer.safetensors").read_bytes() for each in (whole, stopped)]
    assert files[0] == files[1]
    with pytest.raises(TrainingError, match=r"kl_weight was 0.001, now 0.01"):
        train_autoencoder(replace(stopped, kl_weight=0.01, num_steps=40), resume=True)


@pytest.mark.ci
def test_the_command_trains_with_all_losses(tmp_path: Path, pictures: Path) -> None:
    settings = f"""
        folder = "{tmp_path}/run"
        output = "{tmp_path}/made"
        batch_size = 8
        num_steps = 4
        is_compiled = false
        num_threads = 1
        adversarial_weight = 0.5
        perceptual_weight = 0.1
        ssim_weight = 0.1
        [autoencoder]
        image_size_px = 12
        hidden_channels = 8
        num_blocks = 1
    """
    (tmp_path / "kl.toml").write_text(settings)
    command = ["train", "autoencoder", "--config", f"{tmp_path}/kl.toml", "--data", str(pictures)]
    ended = CliRunner().invoke(cli, command)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.strip() == f"{tmp_path}/made"
    assert "discriminator" in logged(tmp_path / "run")[-1]
    assert isinstance(Pipeline.load(tmp_path / "made").autoencoder, VariationalAutoencoder)


@pytest.fixture(scope="module")
def drawn(
    trained: AutoencoderTrainingConfig, tmp_path_factory: pytest.TempPathFactory, pictures: Path
) -> PriorTrainingConfig:
    """A flow prior on the latents, in the folder beside theirs."""
    prior = PriorTrainingConfig(
        prior=NetworkSettings(hidden_size=64, depth=2, num_heads=2),
        tokenizer=trained.output / "tokenizer.safetensors",
        folder=tmp_path_factory.mktemp("drawn"),
        output=trained.output.parent / "drawn-squares",
        shares_with="squares",
        defaults=FlowOptions(num_steps=8, guidance_scale=1.0),
        data=str(pictures),
        batch_size=64,
        num_steps=200,
        warmup_steps=10,
        ema_decay=0.98,
        is_compiled=False,
        horizontal_flips=False,
        samples_every=200,
        num_threads=1,
    )
    train_prior(prior)
    return prior


@pytest.mark.ci
def test_a_flow_prior_learns_its_latents(drawn: PriorTrainingConfig) -> None:
    assert (drawn.folder / "samples" / "0000200.png").exists()
    pipeline = Pipeline.load(drawn.output)
    assert pipeline.spec.labels == {"class": ("left", "right")}
    images = pipeline.generate(Conditions(torch.tensor([[0]] * 8 + [[1]] * 8)), seed=0)
    left_is_brighter = images[..., :6].mean((1, 2, 3)) > images[..., 6:].mean((1, 2, 3))
    assert left_is_brighter.tolist() == [True] * 8 + [False] * 8


@pytest.mark.ci
def test_a_pipeline_without_codes_is_distilled(drawn: PriorTrainingConfig, tmp_path: Path) -> None:
    config = DistillConfig(
        teacher=drawn.output,
        output=drawn.output.parent / "quick-squares",
        folder=tmp_path / "run",
        data=drawn.data,
        num_windows=2,
        teacher_steps_per_window=1,
        num_steps=2,
        batch_size=4,
        is_compiled=False,
        num_threads=1,
    )
    pipeline = Pipeline.load(train_distilled(config))
    assert (pipeline.spec.shares_with, pipeline.spec.has_posterior) == ("squares", True)
    assert isinstance(pipeline.autoencoder, VariationalAutoencoder)


@pytest.mark.ci
def test_it_encodes_decodes_and_generates_when_served(
    trained: AutoencoderTrainingConfig, drawn: PriorTrainingConfig, tmp_path: Path, redis_url: str
) -> None:
    source = base64.b64encode((Path(drawn.data) / "left" / "0.png").read_bytes()).decode()
    tokenizer = PipelineSpec.load(trained.output / "pipeline.json").fingerprint
    with serving_weights(redis_url, trained.output.parent, tmp_path / "data") as service:
        draws = [latents_of(service, source, seed=seed) for seed in (3, 3, 4)]
        assert np.array_equal(draws[0], draws[1])
        assert not np.array_equal(draws[0], draws[2])
        mean = latents_of(service, source, posterior="mean")
        assert not np.array_equal(mean, draws[0])
        for latents in (mean, draws[0]):
            assert latents.shape == (1, 4, 6, 6)
            decoded = service.post(
                "/decode",
                params={"pipeline": "squares", "tokenizer": tokenizer},
                content=file_of(latents),
                headers={**WAIT, "Content-Type": NPY, "Accept": "image/png"},
            )
            assert is_left(decoded)
        asked = {"pipeline": "drawn-squares", "class_label": "left", "seed": 1}
        for edit in ({}, {"source": source, "strength": 0.5}):
            answer = service.post("/generate", json=asked | edit, headers={**WAIT, "Accept": "image/png"})
            assert is_left(answer)


def is_left(answer: httpx.Response) -> bool:
    """Whether a picture came that is bright on the left."""
    assert answer.status_code == 200, answer.text
    made = np.asarray(Image.open(io.BytesIO(answer.content)).convert("L"), dtype=float)
    return bool(made[3:9, 1:6].mean() > made[3:9, 6:11].mean() + 60)


def latents_of(service: httpx.Client, source: str, **fields: object) -> np.ndarray:
    """Encode a picture over HTTP."""
    body = {"pipeline": "squares", "source": source, **fields}
    answer = service.post("/encode", json=body, headers={**WAIT, "Accept": NPY})
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


def file_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
