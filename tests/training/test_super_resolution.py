"""Training a prior to draw small pictures larger, from one that draws them from words alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.media.image import ImageSpec
from models.networks.dit import DiT
from models.options import FlowOptions
from models.pipeline import PRIOR_FILE, Pipeline
from models.stage import Sample, SampleSpec, run_path
from tests.tiny import PRIOR, TOKENIZER, save_untrained, tiny_prompt_encoder
from training.config_file import TrainingError
from training.data.dataset import scale_to_unit
from training.distill import DistillConfig, train_distilled
from training.emoji.dataset import load_emoji
from training.emoji.judge import JudgeTraining
from training.emoji.super_resolution import BICUBIC, DRAWN, RECONSTRUCTED, evaluate_super_resolution
from training.evaluation.options import EvaluationOptions
from training.network import NetworkSettings
from training.prior import PriorTrainingConfig, train_prior
from training.small_pictures import shrink
from training.tokenizer import train_tokenizer
from training.tokenizer_config import TokenizerTrainingConfig

LABELS = {"style": ("round", "flat", "small"), "group": ("animals", "food")}


@pytest.fixture(scope="module")
def config(captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> PriorTrainingConfig:
    """Settings for a trained tokenizer."""
    folder = tmp_path_factory.mktemp("enlarging")
    tiny_prompt_encoder().save(folder / "text")
    tokenizer = train_tokenizer(
        TokenizerTrainingConfig(
            tokenizer=replace(TOKENIZER, codebook_size=16, latent_channels=4),
            folder=folder / "tokenizer",
            data=str(captioned),
            batch_size=10,
            num_steps=60,
            continuous_steps=20,
            warmup_steps=5,
            is_compiled=False,
            num_threads=1,
        )
    )
    return PriorTrainingConfig(
        prior=NetworkSettings(hidden_size=32, depth=2, num_heads=2),
        tokenizer=tokenizer,
        folder=folder / "prior",
        output=folder / "larger",
        defaults=FlowOptions(num_steps=4),
        data=str(captioned),
        text_encoder=folder / "text",
        source_size_px=8,
        batch_size=20,
        num_steps=150,
        warmup_steps=5,
        samples_every=150,
        is_compiled=False,
        in_eight_bits=True,
        num_threads=1,
    )


@pytest.fixture(scope="module")
def trained(config: PriorTrainingConfig) -> Path:
    return train_prior(config)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of an untrained prior of prompts."""
    folder = tmp_path_factory.mktemp("words") / "words"
    save_untrained(folder, TOKENIZER, PRIOR, labels=LABELS, prompt_encoder=tiny_prompt_encoder())
    return folder / PRIOR_FILE


def test_a_network_that_takes_sources_begins_as_the_one_that_takes_none(words: Path) -> None:
    words = DiT.load(words)
    network = words.taking_source(4)
    asked = replace(network.null_conditions(2), source=torch.randn(2, 4, 4, 4))
    latents, t = torch.randn(2, 4, 4, 4), torch.tensor([0.2, 0.7])
    with torch.inference_mode():
        assert torch.equal(network(latents, t, asked), words(latents, t, words.null_conditions(2)))


@pytest.mark.ci
def test_training_starts_from_a_prior_that_takes_none(config, words: Path, tmp_path: Path) -> None:
    network = NetworkSettings(hidden_size=32, depth=3, num_heads=2)
    places = {"folder": tmp_path / "run", "output": tmp_path / "larger"}
    made = train_prior(replace(config, prior=network, start_from=words, num_steps=1, **places))
    begun, ended = DiT.load(words).state_dict(), DiT.load(made / PRIOR_FILE).state_dict()
    assert ended.keys() - begun.keys() == {"embed_source.weight"}
    for name, tensor in begun.items():
        assert torch.allclose(ended[name], tensor, atol=0.05), name


@pytest.mark.ci
def test_training_ends_in_a_pipeline_that_draws_its_source(trained: Path, captioned: Path) -> None:
    pipeline = Pipeline.load(trained)
    assert pipeline.spec.needs_source
    assert pipeline.spec.takes == {"source": ImageSpec(width_px=8, height_px=8, channels=3)}
    images = load_emoji(captioned).images[::3]
    asked, signals = pipeline.conditions(), scale_to_unit(shrink(images, 8))
    spec = SampleSpec(1, pipeline.spec.defaults, asked, asked)
    samples = [Sample(spec, number, signal, source=signal) for number, signal in enumerate(signals)]
    run_path(pipeline.make_stages(len(samples)).path("generate", is_edit=True), samples)
    made = torch.stack([sample.value for sample in samples])
    own, others = ((made - scale_to_unit(each)).square().mean() for each in (images, images.roll(1, 0)))
    assert own < 0.7 * others
    assert (trained.parent / "prior/samples/0000150.png").exists()


@pytest.mark.ci
def test_evaluation_compares_what_was_drawn_with_interpolation(trained, captioned, tmp_path) -> None:
    options = EvaluationOptions(data=str(captioned), batch_size=8, classifier_folder=tmp_path)
    judge = JudgeTraining(width=8, embedding_size=8, num_epochs=2, batch_size=10, shift_px=1)
    evaluation = evaluate_super_resolution(trained, options, judge)
    assert evaluation.num_images == 4
    assert len(evaluation.scores) == 5
    scores = evaluation.scores
    assert scores[BICUBIC].source_psnr_db > scores[BICUBIC].psnr_db
    assert scores[RECONSTRUCTED].psnr_db == pytest.approx(
        evaluation.tokenizer.psnr_db_mean_of_images, abs=0.01
    )
    assert scores[DRAWN].psnr_db < scores[RECONSTRUCTED].psnr_db + 1
    assert scores[BICUBIC].retrieval.num_queries == 4
    assert "| Lanczos |" in (trained / "README.md").read_text()
    assert json.loads((trained / "metrics.json").read_text())["source_size_px"] == 8
    with Image.open(trained / "samples.png") as picture:
        assert picture.width > 12 * 16


@pytest.mark.ci
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_size_px": 16}, r"source_size_px: the tokenizer's pictures have 16: less is needed, got 16"),
        (
            {"start_from": None, "data": "codes:{folder}"},
            r"source_size_px: codes:.* has codes, and no pictures",
        ),
    ],
)
def test_what_can_not_be_learnt_is_said_before_the_first_step(config, tmp_path, changes, message) -> None:
    changes = {
        name: value.format(folder=tmp_path) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    bad = replace(config, folder=tmp_path / "run", output=tmp_path / "out", **changes)
    with pytest.raises(TrainingError, match=message):
        train_prior(bad)


@pytest.mark.ci
def test_a_student_of_it_is_refused(trained: Path, captioned: Path, tmp_path: Path) -> None:
    student = DistillConfig(
        teacher=trained, folder=tmp_path, output=trained.parent / "student", data=str(captioned)
    )
    with pytest.raises(TrainingError, match="teacher: larger needs a source"):
        train_distilled(student)
