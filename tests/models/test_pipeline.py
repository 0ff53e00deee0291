"""Pipelines on disk: whole, safe to open, and clear about what is wrong."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from models.autoencoders.vq import Tokenizer
from models.checkpoint import CheckpointError
from models.conditioning import Conditions
from models.options import ConfigError
from models.pipeline import Pipeline
from models.spec import PipelineSpec


@pytest.fixture
def folder(tiny_weights: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_weights / "tiny", tmp_path / "tiny"))


def test_a_loaded_pipeline_generates_what_it_did_before(folder: Path) -> None:
    labels = Conditions(torch.tensor([[0], [1], [2]]))
    first = Pipeline.load(folder).generate(labels, seed=3)
    assert first.shape == (3, 1, 12, 12)
    assert first.abs().max() <= 1
    assert torch.equal(Pipeline.load(folder).generate(labels, seed=3), first)
    assert not torch.equal(Pipeline.load(folder).generate(labels, seed=4), first)


def test_scaled_latents_have_the_exact_round_trip(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder / "tokenizer.safetensors")
    tokenizer.latent_mean.fill_(0.3)
    tokenizer.latent_std.fill_(1.7)
    images = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    quantized = tokenizer.quantize(tokenizer.encode(images))
    assert torch.equal(quantized.latents, tokenizer.lookup(quantized.codes))
    assert torch.equal(tokenizer.quantize(quantized.latents).codes, quantized.codes)


@pytest.mark.parametrize("save", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
def test_pickles_are_refused_with_a_reason(folder: Path, save) -> None:
    save({"weight": [1.0]}, folder / "prior.safetensors")
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        Pipeline.load(folder)


def test_a_damaged_file_is_told_apart(folder: Path) -> None:
    (folder / "tokenizer.safetensors").write_bytes(b"nonsense" * 10)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        Pipeline.load(folder)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "prior.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"prior\.safetensors can't be read"):
        Pipeline.load(folder)


def test_unknown_fields_of_the_configuration_are_refused(folder: Path) -> None:
    path = folder / "pipeline.json"
    path.write_text(path.read_text().replace('"name"', '"nmae": 1, "name"'))
    with pytest.raises(ConfigError, match="nmae"):
        PipelineSpec.load(path)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    from models.autoencoders.vq import TokenizerConfig
    from models.checkpoint import save_checkpoint

    other = Tokenizer(TokenizerConfig(image_size_px=12, hidden_channels=8, num_blocks=2, codebook_size=32))
    config = Tokenizer.load(folder / "tokenizer.safetensors").config
    save_checkpoint(folder / "tokenizer.safetensors", other.exported(), config)
    with pytest.raises(CheckpointError, match="does not fit its configuration"):
        Pipeline.load(folder)


def test_another_tokenizer_than_the_fingerprint_says_is_refused(folder: Path) -> None:
    path = folder / "pipeline.json"
    spec = PipelineSpec.load(path)
    assert spec.codes is not None
    path.write_text(path.read_text().replace(spec.codes.fingerprint, "0" * 16))
    with pytest.raises(ConfigError, match="0000000000000000, but its weights have"):
        Pipeline.load(folder)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("labels", {"class": ["cat", "dog"]}, r"numbers of labels \(2,\), but its weights have \(3,\)"),
        ("labels", {}, r"numbers of labels \(\), but its weights have \(3,\)"),
        ("latents", [4, 3, 3], r"latents \(4, 3, 3\), but its weights have \(4, 6, 6\)"),
        ("prior", "diffusion", "known are flow"),
        ("autoencoders", {"image": "codec"}, "there is no kind 'codec'"),
    ],
)
def test_a_description_that_is_not_of_its_weights_is_refused(folder: Path, field, value, said) -> None:
    path = folder / "pipeline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ConfigError, match=said):
        Pipeline.load(folder)
