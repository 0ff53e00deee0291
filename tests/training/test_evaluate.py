import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.autoencoders.vq import TokenizerConfig
from models.networks.dit import DiTConfig
from models.networks.shuffle_autoencoder import ShuffleConfig
from models.options import ConfigError, FlowOptions
from models.spec import PipelineSpec
from tests.tiny import save_untrained
from training.data.dataset import ImageDataset
from training.evaluation.classifier import (
    ClassifierConfig,
    ClassifierTraining,
    classify,
    load_or_train_classifiers,
    train_classifier,
)
from training.evaluation.evaluate import draw_subset, evaluate, split_for_classifiers, spread_labels
from training.evaluation.model_card import render_evaluation, write_card_section
from training.evaluation.options import EvaluationOptions
from training.evaluation.plots import Curve, save_curves, save_grid
from training.evaluation.scores import (
    ClassifierMetrics,
    Evaluation,
    SampleMetrics,
    TokenizerMetrics,
    build_reference,
    score_samples,
)

CLASS_NAMES = ("left", "right")
QUICK = (
    ClassifierTraining("residual", seed=1, width=4, num_epochs=2, batch_size=32, is_flipped=False),
    ClassifierTraining("plain", seed=2, width=4, num_epochs=2, batch_size=32, is_flipped=False),
)


def make_dataset(num_images: int, seed: int) -> ImageDataset:
    """Grey 16x16 noise with its left or its right half bright."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (num_images, 1, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.arange(num_images) % 2
    images[labels == 0, :, :, :8] += 120
    images[labels == 1, :, :, 8:] += 120
    return ImageDataset(images, labels, CLASS_NAMES)


@pytest.fixture(scope="module")
def train() -> ImageDataset:
    return make_dataset(256, seed=0)


@pytest.fixture(scope="module")
def test() -> ImageDataset:
    return make_dataset(64, seed=1)


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classifiers")


def test_classifiers_of_both_architectures_learn_and_are_cached(
    train: ImageDataset, test: ImageDataset, classifier_folder: Path
) -> None:
    first = load_or_train_classifiers("halves", train, test, QUICK, folder=classifier_folder)
    assert [classifier.name for classifier in first] == ["residual-1", "plain-2"]
    assert all(classifier.test_accuracy > 0.95 for classifier in first)
    path = classifier_folder / "halves-residual-1.safetensors"
    written_ns = path.stat().st_mtime_ns

    again = load_or_train_classifiers("halves", train, test, QUICK, folder=classifier_folder)
    assert path.stat().st_mtime_ns == written_ns
    for one, other in zip(first, again, strict=True):
        assert torch.equal(classify(one.model, test.images).logits, classify(other.model, test.images).logits)

    fewer = replace(train, images=train.images[:64], labels=train.labels[:64])
    load_or_train_classifiers("halves", fewer, test, QUICK[:1], folder=classifier_folder)
    assert path.stat().st_mtime_ns > written_ns


def test_same_seed_trains_the_same_classifier(train: ImageDataset) -> None:
    config = ClassifierConfig("residual", num_classes=2, channels=1, image_size_px=16, width=4)
    training = replace(QUICK[0], num_epochs=1)
    first, second = (train_classifier(train, config, training) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_classifiers_take_any_size_and_colour() -> None:
    for size_px in (8, 28, 33, 64):
        config = ClassifierConfig("plain", num_classes=3, channels=3, image_size_px=size_px, width=4)
        images = torch.zeros(2, 3, size_px, size_px)
        model = train_classifier(
            ImageDataset(images.to(torch.uint8), torch.tensor([0, 2]), ("a", "b", "c")),
            config,
            ClassifierTraining("plain", seed=0, width=4, num_epochs=1),
        )
        assert classify(model, images).logits.shape == (2, 3)


def test_scores_tell_real_images_from_noise(
    train: ImageDataset, test: ImageDataset, classifier_folder: Path
) -> None:
    (classifier,) = load_or_train_classifiers("halves", train, test, QUICK[1:], folder=classifier_folder)
    reference = build_reference(classifier, test.images, num_neighbours=3)
    real = score_samples(train.images, train.labels, reference)
    noise = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fake = score_samples(noise, torch.arange(64) % 2, reference)
    assert real.num_images == 256
    assert real.class_accuracy > 0.95 > 0.8 > fake.class_accuracy
    assert real.frechet_distance < fake.frechet_distance
    assert real.coverage > fake.coverage


def test_labels_are_spread_in_the_proportions_of_the_test_split() -> None:
    labels = torch.tensor([1, 0, 1, 2, 1, 0, 1, 2])
    assert spread_labels(labels, 4).bincount().tolist() == [1, 2, 1]
    assert spread_labels(labels, 16).bincount().tolist() == [4, 8, 4]


def test_drawn_subset_has_distinct_images_in_proportion(train: ImageDataset) -> None:
    subset = draw_subset(train, torch.tensor([0, 0, 0, 1]), 40, torch.Generator().manual_seed(0))
    assert subset.labels.bincount().tolist() == [30, 10]
    assert len(subset.images.flatten(1).unique(dim=0)) == 40


def test_a_sixth_of_every_class_is_kept_from_the_classifiers(train: ImageDataset) -> None:
    split = split_for_classifiers(train)
    assert split.unseen.labels.bincount().tolist() == [21, 21]
    assert split.seen.labels.bincount().tolist() == [107, 107]
    assert torch.equal(split.unseen.images, split_for_classifiers(train).unseen.images)
    together = torch.cat([split.seen.images, split.unseen.images])
    assert len(together.flatten(1).unique(dim=0)) == 256


def make_evaluation() -> Evaluation:
    samples = SampleMetrics(100, 0.9, 0.25, 0.8, 0.7, 1.1, 0.6)
    return Evaluation(
        pipeline="tiny",
        tokenizer_fingerprint="0" * 16,
        data="halves",
        sampling=FlowOptions(num_steps=8, sampler="heun", guidance_scale=1.5, guidance_interval=(0.1, 0.9)),
        seed=0,
        device="cpu",
        num_threads=2,
        batch_size=10,
        seconds_per_image=0.1,
        tokenizer=TokenizerMetrics(64, 30.0, 29.0, 0.98, 512, 1.0, 400.0),
        classifiers={"plain-2": ClassifierMetrics(0.95, samples, samples, samples, samples, 1.0)},
    )


def test_card_section_is_replaced_in_place(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# Mine\n\n<!-- evaluation -->\nstale figures\n<!-- /evaluation -->\n\n## Licence\n")
    write_card_section(path, "tiny", render_evaluation(make_evaluation()))
    once = path.read_text()
    write_card_section(path, "tiny", render_evaluation(make_evaluation()))
    assert path.read_text() == once
    assert once.startswith("# Mine\n")
    assert once.endswith("<!-- /evaluation -->\n\n## Licence\n")
    assert "stale figures" not in once
    assert "| 30.00 dB |" in once
    assert "Sampler `heun`, 8 steps, guidance 1.5 from t = 0.1 to 0.9, seed 0; 0.100 s an image" in once


def test_card_is_made_or_completed(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    write_card_section(path, "tiny", render_evaluation(make_evaluation()))
    assert path.read_text().startswith("# tiny\n\n<!-- evaluation -->\n## Evaluation\n")
    path.write_text("# Mine\n")
    write_card_section(path, "tiny", render_evaluation(make_evaluation()))
    assert path.read_text().startswith("# Mine\n\n<!-- evaluation -->\n")
    path.write_text("# Mine\n<!-- evaluation -->\n")
    with pytest.raises(ValueError, match="has no <!-- /evaluation -->"):
        write_card_section(path, "tiny", render_evaluation(make_evaluation()))


def test_curves_and_grids_are_pictures(tmp_path: Path) -> None:
    save_curves(tmp_path / "loss.png", {"loss": Curve([1, 2, 3], [3.0, 1.0, 0.5])})
    save_grid(tmp_path / "grid.png", torch.zeros(5, 1, 28, 28), num_columns=3)
    with Image.open(tmp_path / "loss.png") as curves, Image.open(tmp_path / "grid.png") as grid:
        assert curves.width > 500
        assert grid.width > grid.height
        assert grid.getpixel((10, 10)) == (128, 128, 128)
        assert grid.getpixel((grid.width - 10, grid.height - 10)) == (255, 255, 255)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="num_images must exceed num_neighbours 5, got 5"):
        EvaluationOptions(num_images=5)


def save_images(dataset: ImageDataset, folder: Path) -> None:
    for index, (image, label) in enumerate(zip(dataset.images, dataset.labels, strict=True)):
        path = folder / CLASS_NAMES[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)


@pytest.mark.ci
def test_a_pipeline_without_codes_is_measured_without_their_use(
    train: ImageDataset, test: ImageDataset, tmp_path: Path
) -> None:
    data, folder = tmp_path / "halves", tmp_path / "weights"
    save_images(train, data / "train")
    save_images(test, data / "test")
    shape = ShuffleConfig(image_size_px=16, hidden_channels=8, num_blocks=1)
    prior = DiTConfig(grid=(8, 8), hidden_size=32, depth=1, num_heads=2, label_sizes=(2,))
    save_untrained(folder, shape, prior, labels={"class": CLASS_NAMES})
    options = EvaluationOptions(
        data=str(data),
        num_images=10,
        num_steps=2,
        sampler="euler",
        num_neighbours=3,
        trainings=QUICK[:1],
        classifier_folder=tmp_path / "classifiers",
    )
    evaluation = evaluate(folder, options)
    written = json.loads((folder / "metrics.json").read_text())
    assert written["tokenizer_fingerprint"] == PipelineSpec.load(folder / "pipeline.json").fingerprint
    assert written["tokenizer"]["codebook_size"] is None
    assert evaluation.tokenizer.psnr_db_mean_of_images > 0
    assert evaluation.classifiers["residual-1"].generated.frechet_distance > 0
    card = (folder / "README.md").read_text()
    assert "### Autoencoder, 64 test images" in card
    assert "| codes used" not in card
    with pytest.raises(ConfigError, match="effort: weights can't search for codes"):
        evaluate(folder, replace(options, effort=1))


def test_evaluation_of_a_pipeline_is_written_into_its_folder(
    train: ImageDataset, test: ImageDataset, tmp_path: Path
) -> None:
    data, folder = tmp_path / "halves", tmp_path / "weights"
    save_images(train, data / "train")
    save_images(test, data / "test")
    tokenizer = TokenizerConfig(image_size_px=16, hidden_channels=8, num_blocks=1, codebook_size=16)
    prior = DiTConfig(grid=(8, 8), hidden_size=32, depth=1, num_heads=2, label_sizes=(2,))
    save_untrained(folder, tokenizer, prior, labels={"class": CLASS_NAMES})
    options = EvaluationOptions(
        data=str(data),
        num_images=40,
        batch_size=16,
        num_steps=2,
        sampler="euler",
        num_neighbours=3,
        trainings=QUICK,
        classifier_folder=tmp_path / "classifiers",
    )
    evaluation = evaluate(folder, options)

    defaults = PipelineSpec.load(folder / "pipeline.json").defaults
    assert evaluation.sampling == replace(defaults, num_steps=2, sampler="euler")
    assert evaluation.data == "halves"
    assert evaluation.tokenizer.num_images == 64
    assert set(evaluation.classifiers) == {"residual-1", "plain-2"}
    for metrics in evaluation.classifiers.values():
        assert metrics.generated.num_images == metrics.real.num_images == 40
        assert metrics.paired_test_reconstructions.num_images == 64
        # Untrained weights make nothing like the data.
        assert metrics.generated.frechet_distance > metrics.real.frechet_distance
    written = (folder / "metrics.json").read_text()
    assert json.loads(written)["tokenizer"]["ssim"] == evaluation.tokenizer.ssim
    card = (folder / "README.md").read_text()
    assert "`euler`, 2 steps" in card
    assert ", seed 0" in card
    assert str(tmp_path) not in card + written
    with Image.open(folder / "samples.png") as samples:
        assert samples.height > 2 * 56

    wrong_data = tmp_path / "others"
    save_images(ImageDataset(train.images[:20], train.labels[:20] * 0, CLASS_NAMES), wrong_data)
    with pytest.raises(ValueError, match="are not the pipeline's"):
        evaluate(folder, replace(options, data=str(wrong_data)))
