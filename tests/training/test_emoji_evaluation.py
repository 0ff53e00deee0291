"""From pictures of emoji to a measured pipeline that draws them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.options import ConfigError, FlowOptions
from models.pipeline import Pipeline
from tests.tiny import TOKENIZER, tiny_prompt_encoder
from training.data.captioned import CAPTIONS_FILE
from training.data.sources import load_dataset
from training.emoji.dataset import load_emoji
from training.emoji.evaluate import FREE_PROMPTS, evaluate_emoji
from training.emoji.judge import JudgeTraining, judge_images, load_or_train_judge
from training.evaluation.evaluate_captions import LABEL_TRAINING
from training.evaluation.options import EvaluationOptions
from training.evaluation.verdict import Verdict
from training.network import NetworkSettings
from training.prior import PriorTrainingConfig, train_prior
from training.tokenizer import train_tokenizer
from training.tokenizer_config import TokenizerTrainingConfig

QUICK_JUDGE = JudgeTraining(width=8, embedding_size=8, num_epochs=40, batch_size=10, shift_px=1)

QUICK_STYLES = replace(LABEL_TRAINING, width=8, num_epochs=10, batch_size=10)


@pytest.fixture(scope="module")
def trained(captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline trained a little on the captioned pictures."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_prompt_encoder().save(folder / "text")
    tokenizer = train_tokenizer(
        TokenizerTrainingConfig(
            tokenizer=replace(TOKENIZER, codebook_size=16),
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
    return train_prior(
        PriorTrainingConfig(
            prior=NetworkSettings(hidden_size=32, depth=2, num_heads=2),
            tokenizer=tokenizer,
            folder=folder / "prior",
            output=folder / "drawn",
            defaults=FlowOptions(num_steps=4, guidance_scale=2.0),
            data=str(captioned),
            text_encoder=folder / "text",
            example_prompt="a red cat",
            batch_size=10,
            num_steps=150,
            warmup_steps=5,
            samples_every=150,
            is_compiled=False,
            num_threads=1,
        )
    )


def test_training_ends_in_a_pipeline_that_takes_prompts(trained: Path) -> None:
    pipeline = Pipeline.load(trained)
    assert pipeline.spec.labels == {"style": ("round", "flat", "small"), "group": ("animals", "food")}
    assert pipeline.spec.takes_prompt
    assert pipeline.spec.example_prompt == "a red cat"
    made = [
        pipeline.generate(pipeline.conditions({"style": style}, prompt).expand(4), seed=0)
        for prompt, style in (("red cat", 0), ("blue dog", 0), ("red cat", 1))
    ]
    assert made[0].shape == (4, 3, 16, 16)
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    losses = [
        json.loads(line)["loss"] for line in (trained.parent / "prior/losses.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < 0.9 * losses[0]
    assert (trained.parent / "prior/samples/0000150.png").exists()


def test_evaluation_finds_what_was_generated_and_writes_the_card(
    trained: Path, captioned: Path, tmp_path: Path
) -> None:
    options = EvaluationOptions(data=str(captioned), batch_size=8, effort=1, classifier_folder=tmp_path)
    evaluation = evaluate_emoji(trained, options, QUICK_JUDGE, QUICK_STYLES)

    assert (evaluation.held_out.num_queries, evaluation.unseen.num_queries) == (1, 3)
    assert evaluation.real_in_other_styles.num_queries == 2
    assert evaluation.held_out.num_candidates == 8
    assert list(evaluation.by_style) == ["flat"]
    assert 0 <= evaluation.style_accuracy <= 1
    assert 0 <= evaluation.reconstructed_style_accuracy <= evaluation.real_style_accuracy
    assert evaluation.searched.psnr_db_mean_of_images > evaluation.tokenizer.psnr_db_mean_of_images
    assert evaluation.frechet_distance > evaluation.frechet_distance_of_real, "hardly trained"
    others = evaluation.real_in_other_styles
    assert evaluation.judge_verdict == Verdict.of(others.recall_at_1, 1 / others.num_candidates, 2)
    assert evaluation.style_verdict.accuracy == evaluation.real_style_accuracy
    card = (trained / "README.md").read_text()
    assert ("The judge of emoji can't judge" in card) is not evaluation.judge_verdict.can_judge
    assert "| **generated**, held-out pairs of emoji and style | 1 |" in card
    assert "prompts.png" in card
    assert json.loads((trained / "metrics.json").read_text())["held_out"]["num_queries"] == 1
    with Image.open(trained / "prompts.png") as picture:
        assert picture.width > 8 * 100
    assert len(FREE_PROMPTS) == len(set(FREE_PROMPTS)) == 40


def test_a_pipeline_is_not_measured_on_data_of_other_styles(
    trained: Path, captioned: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(captioned, other)
    captions = (captioned / CAPTIONS_FILE).read_text()
    (other / CAPTIONS_FILE).write_text(captions.replace('"flat"', '"flatter"'))
    with pytest.raises(ConfigError, match=r"labels\.style: known are round, flat, small, got 'flatter'"):
        evaluate_emoji(trained, EvaluationOptions(data=str(other), classifier_folder=tmp_path))


def test_emoji_of_one_split_alone_are_not_measured(trained: Path, captioned: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(captioned, other)
    captions = (captioned / CAPTIONS_FILE).read_text()
    (other / CAPTIONS_FILE).write_text(captions.replace('"unseen"', '"held_out"'))
    with pytest.raises(ConfigError, match="is of the kind emoji and has no picture of 'unseen'"):
        evaluate_emoji(trained, EvaluationOptions(data=str(other), classifier_folder=tmp_path))


def test_a_judge_knows_things_in_other_styles(captioned: Path, tmp_path: Path) -> None:
    data = load_emoji(captioned)
    train = data.where("train")
    judge = load_or_train_judge(train, QUICK_JUDGE, folder=tmp_path)
    judged = judge_images(judge, train.images)
    likeness = judged.embeddings @ judged.embeddings.T
    is_same = torch.tensor([[a == b for a in train.code_points] for b in train.code_points])
    assert likeness[is_same].mean() > likeness[~is_same].mean() + 0.15

    again = load_or_train_judge(train, QUICK_JUDGE, folder=tmp_path)
    assert torch.equal(judge_images(again, train.images).embeddings, judged.embeddings)
    other = load_or_train_judge(train, replace(QUICK_JUDGE, num_epochs=1), folder=tmp_path)
    assert not torch.equal(judge_images(other, train.images).embeddings, judged.embeddings)


def test_a_folder_with_captions_is_a_data_set_of_styles(captioned: Path) -> None:
    train, test = (load_dataset(captioned, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (20, 3)
    assert train.class_names == ("round", "flat", "small")
    assert load_dataset(captioned, "train", image_size_px=32).images.shape == (20, 3, 32, 32)
