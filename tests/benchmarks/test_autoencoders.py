"""The comparison of autoencoders compares like with like, and its commands work from end to end."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.autoencoders import (
    CONFIGS,
    PRIOR_CONFIG,
    Place,
    autoencoder_config,
    measure,
    prior_config,
    report,
    train_for,
    weights_of,
)
from models.networks.shuffle_autoencoder import ShuffleConfig
from models.pipeline import Pipeline
from tests.training.test_evaluate import CLASS_NAMES, QUICK, make_dataset, save_images
from training.evaluation.options import EvaluationOptions
from training.reconstruction_config import ReconstructionConfig

SHARED = """
folder = "run"
{output}
batch_size = 16
is_compiled = false
[{table}]
image_size_px = 16
hidden_channels = 8
num_blocks = 1
"""
FSQ = 'quantizer = "fsq"\nfsq_levels = [3, 3, 3, 3]\ncodebook_size = 81\n'
PRIOR = """
tokenizer = "-"
folder = "run"
output = "out"
batch_size = 16
is_compiled = false
horizontal_flips = false
[prior]
hidden_size = 32
depth = 1
num_heads = 2
[defaults]
num_steps = 2
"""


def test_the_arms_differ_in_what_is_between_encoder_and_decoder_alone(tmp_path: Path) -> None:
    place = Place(tmp_path)
    configs = {name: autoencoder_config(name, place) for name in CONFIGS}
    shapes = {
        name: getattr(config, "autoencoder" if name == "kl" else "tokenizer")
        for name, config in configs.items()
    }
    same = [
        {
            field: value
            for settings in (asdict(shapes[name]), asdict(configs[name]))
            for field, value in settings.items()
            if field in ShuffleConfig.__dataclass_fields__ | ReconstructionConfig.__dataclass_fields__
            if field != "folder"
        }
        for name in CONFIGS
    ]
    assert same[0] == same[1] == same[2]
    assert 0.95 < shapes["fsq"].codebook_size / shapes["vq"].codebook_size <= 1
    priors = [prior_config(name, place) for name in CONFIGS]
    assert [prior.tokenizer for prior in priors] == [weights_of(config) for config in configs.values()]
    own = ("tokenizer", "folder", "output")
    shared = [{name: value for name, value in vars(prior).items() if name not in own} for prior in priors]
    assert shared[0] == shared[1] == shared[2]
    assert len({each.folder for each in (*priors, *configs.values())}) == 6


@pytest.mark.ci
def test_all_arms_are_trained_measured_and_reported_in_some_seconds(tmp_path: Path) -> None:
    data = tmp_path / "halves"
    save_images(make_dataset(96, seed=0), data / "train")
    save_images(make_dataset(32, seed=1), data / "test")
    place = Place(tmp_path / "out", tmp_path / "configs", str(data))
    place.configs.mkdir()
    for name, file in CONFIGS.items():
        kl = name == "kl"
        text = SHARED.format(output='output = "out"' * kl, table="autoencoder" if kl else "tokenizer")
        (place.configs / file).write_text(text + FSQ * (name == "fsq"))
    (place.configs / PRIOR_CONFIG).write_text(PRIOR)
    for name in CONFIGS:
        train_for(autoencoder_config(name, place), minutes=0.005)
        train_for(prior_config(name, place), minutes=0.005)
        train_for(prior_config(name, place), minutes=0.005)  # which is finished
        assert Pipeline.load(place.pipeline(name)).spec.labels == {"class": CLASS_NAMES}
    assert report(place) == "nothing is measured yet\n"
    options = EvaluationOptions(
        num_images=10, num_neighbours=3, trainings=QUICK[:1], classifier_folder=tmp_path / "classifiers"
    )
    measure(place, options)
    table = report(place).splitlines()
    assert table[0] == "| | vq | fsq | kl |"
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in table[2:-2]}
    assert all(len(values) == 3 for values in cells.values())
    assert cells["bits an image, at most"][:2] == ["640", "406"]  # 64 places of 10 bits, and of log2(81)
    assert cells["codes used"][2] == "– |"
    assert any(label.startswith("frechet distance of generated, residual-1") for label in cells)
    shutil.rmtree(place.pipeline("fsq"))
    assert report(place).startswith("| | vq | kl |")
