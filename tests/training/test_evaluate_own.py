"""Evaluation on data of one's own: one class, few pictures, judges that know nothing, faults said early."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.autoencoders.vq import TokenizerConfig
from models.networks.dit import DiTConfig
from models.options import ConfigError
from tests.tiny import save_untrained
from training.evaluation.classifier import ClassifierTraining
from training.evaluation.evaluate import evaluate
from training.evaluation.metrics import small_pixels
from training.evaluation.options import EvaluationOptions
from training.evaluation.scores import distance_ratio
from training.evaluation.verdict import Verdict, chance_of

QUICK = ClassifierTraining("residual", seed=1, width=4, num_epochs=1, batch_size=16, is_flipped=False)


def save_noise(folder: Path, num_images: int, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for number in range(num_images):
        pixels = torch.randint(0, 256, (16, 16), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")


def save_pipeline(folder: Path, *class_names: str, image_size_px: int = 16) -> Path:
    tokenizer = TokenizerConfig(
        image_size_px=image_size_px, hidden_channels=8, num_blocks=1, codebook_size=16
    )
    size = image_size_px // 2
    prior = DiTConfig(
        grid=(size, size), hidden_size=32, depth=1, num_heads=2, label_sizes=(len(class_names),)
    )
    save_untrained(folder, tokenizer, prior, labels={"class": class_names})
    return folder


def options_for(data: Path) -> EvaluationOptions:
    return EvaluationOptions(
        data=str(data),
        num_images=12,
        batch_size=16,
        num_steps=1,
        sampler="euler",
        trainings=(QUICK,),
        classifier_folder=data.parent / "classifiers",
    )


def test_one_class_is_compared_in_pixels_and_not_classified(tmp_path: Path) -> None:
    save_noise(tmp_path / "data", 60)
    folder = save_pipeline(tmp_path / "mine", "image")
    evaluation = evaluate(folder, replace(options_for(tmp_path / "data"), effort=1))
    (metrics,) = evaluation.classifiers.values()
    assert metrics.test_accuracy is metrics.generated.class_accuracy is metrics.real.frechet_distance is None
    assert not list((tmp_path / "classifiers").iterdir())
    assert evaluation.searched is not None
    card = (folder / "README.md").read_text()
    assert "| images | number | precision | recall | density | coverage |" in card
    assert "searched for with effort 1" in card
    for word in ("accuracy", "lassifier `", "emoji", "can't judge"):
        assert word not in card
    assert json.loads((folder / "metrics.json").read_text())["classifiers"]["pixels"]["verdict"] is None


def test_a_judge_that_knows_nothing_is_said_to_know_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(("cats", "dogs", "owls")):
        save_noise(tmp_path / "data" / "train" / name, 20, seed=number)
        save_noise(tmp_path / "data" / "test" / name, 2, seed=10 + number)
    folder = save_pipeline(tmp_path / "mine", "cats", "dogs", "owls")
    evaluation = evaluate(folder, options_for(tmp_path / "data"))
    (metrics,) = evaluation.classifiers.values()
    assert metrics.verdict is not None
    assert (metrics.verdict.num_images, metrics.verdict.chance) == (6, pytest.approx(1 / 3))
    assert not metrics.verdict.can_judge
    card = (folder / "README.md").read_text()
    assert f"can't judge**: it is right on only {metrics.verdict.accuracy:.1%} of 6 real pictures" in card
    assert "data-residual-1 can't judge" in caplog.text
    assert "few real pictures" not in caplog.text
    written = json.loads((folder / "metrics.json").read_text())
    assert written["classifiers"]["residual-1"]["verdict"]["can_judge"] is False


@pytest.mark.parametrize(
    ("accuracy", "chance", "can_judge"),
    [(0.36, 0.1, False), (0.69, 0.1, False), (0.7, 0.1, True), (0.93, 0.1, True), (0.74, 0.5, False),
     (0.76, 0.5, True), (0.92, 0.9, False), (0.96, 0.9, True), (1.0, 1.0, False)],
)  # fmt: skip
def test_a_judge_must_know_more_than_most_and_than_the_most_frequent_answer(
    accuracy: float, chance: float, can_judge: bool
) -> None:
    verdict = Verdict.of(accuracy, chance, 100)
    assert verdict.can_judge is can_judge
    assert bool(verdict.doubts("It")) is not can_judge
    assert chance_of(torch.tensor([2, 0, 2, 1])) == 0.5


def test_few_pictures_lower_the_number_of_neighbours_or_are_too_few(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_noise(tmp_path / "data" / "train", 24)
    save_noise(tmp_path / "data" / "test", 3, seed=1)
    folder = save_pipeline(tmp_path / "mine", "image")
    evaluation = evaluate(folder, options_for(tmp_path / "data"))
    assert evaluation.num_neighbours == 2
    assert "3 real pictures to compare with" in caplog.text
    save_noise(tmp_path / "few", 5)
    with pytest.raises(ConfigError, match=r"1 pictures to test on .* at least 2 of each are needed"):
        evaluate(folder, options_for(tmp_path / "few"))


def test_what_would_fail_at_the_end_is_said_at_the_start(tmp_path: Path) -> None:
    """There is no data: none of it is looked for before."""
    options = options_for(tmp_path / "nowhere")
    folder = save_pipeline(tmp_path / "mine", "image")
    (tmp_path / "file").touch()
    for changed, said in (
        ({"device": "cuda:99"}, "device: 'cuda:99' can't be used here"),
        ({"device": "abacus"}, "device: 'abacus' can't be used here"),
        ({"classifier_folder": tmp_path / "file" / "inside"}, "inside can't be written: Not a directory"),
    ):
        with pytest.raises(ConfigError, match=said) as raised:
            evaluate(folder, replace(options, **changed))
        assert "\n" not in str(raised.value)
    (folder / "README.md").write_text("# Mine\n<!-- evaluation -->\n")
    with pytest.raises(ConfigError, match=r"README\.md: <!-- evaluation --> has no"):
        evaluate(folder, options)
    with pytest.raises(ConfigError, match="at least 11 pixels a side can be measured, got 8"):
        evaluate(save_pipeline(tmp_path / "small", "image", image_size_px=8), options)


def test_other_classes_are_said_in_one_short_line(tmp_path: Path) -> None:
    for number in range(30):
        save_noise(tmp_path / "data" / "test" / f"class-{number}", 1)
    save_noise(tmp_path / "data" / "train" / "class-0", 2)
    folder = save_pipeline(tmp_path / "mine", "cats", "class-0")
    with pytest.raises(ConfigError, match=r"are not the pipeline's: class: 29 more .* and 1 fewer \(cats\)$"):
        evaluate(folder, options_for(tmp_path / "data"))


def test_copies_of_training_pictures_give_a_finite_ratio() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator())
    pixels = small_pixels(images)
    assert pixels.shape == (4, 3 * 16 * 16)
    assert distance_ratio(pixels, pixels, pixels) == 1
    assert torch.isfinite(torch.tensor(distance_ratio(pixels[:2], pixels[2:], pixels)))
