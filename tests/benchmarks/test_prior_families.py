"""The comparison of the families of priors compares like with like."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import prior_families
from benchmarks.prior_families import CONFIGS, family_config, mixed_rate, seconds_per_step
from models.autoencoders.vq import Tokenizer
from models.pipeline import Pipeline
from tests.tiny import save_families
from training.prior import _first_network, _shape


def num_parameters(family: str, out: Path) -> int:
    config = family_config(family, out)
    shape = _shape(config, Tokenizer.load(config.tokenizer), {"class": tuple("abcdefghij")}, None)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _first_network(config, shape).parameters())


def test_all_families_have_as_many_parameters_within_a_tenth(tmp_path: Path) -> None:
    numbers = {family: num_parameters(family, tmp_path) for family in CONFIGS}
    assert all(abs(number / numbers["flow"] - 1) < 0.1 for number in numbers.values()), numbers


def test_all_families_learn_the_same_codes_of_the_same_data(tmp_path: Path) -> None:
    configs = [family_config(family, tmp_path) for family in CONFIGS]
    assert len({(config.tokenizer, config.data, config.horizontal_flips) for config in configs}) == 1
    assert len({config.output for config in configs}) == len(configs)


def test_the_first_steps_which_compile_are_not_timed(tmp_path: Path) -> None:
    log = tmp_path / "losses.jsonl"
    entries = [(0, 100.0), (10, 160.0), (20, 165.0), (39, 174.5)]
    log.write_text("".join(json.dumps({"step": step, "time": at}) + "\n" for step, at in entries))
    assert seconds_per_step(log) == pytest.approx(0.5)


@pytest.mark.ci
def test_a_mix_of_all_families_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_families, "MAX_BATCH_SIZE", 2)
    save_families(tmp_path)
    pipelines = {name: Pipeline.load(tmp_path / name) for name in ("flow", "in-turn", "masked")}
    assert mixed_rate(pipelines, 0.01) > 0
