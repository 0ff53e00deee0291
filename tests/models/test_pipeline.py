"""Pipelines on disk: whole, safe to open, and clear about what is wrong."""

import json
import math
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

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


ABSENT = object()
NAME = r"must be the name of a folder, of 1 to 64 characters from a-z, 0-9, '.', '_' and '-', got"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("nmae", 1, "nmae: there is no such field"),
        ("name", ABSENT, "name: is missing"),
        ("name", "a/b", f"name: {NAME} 'a/b'"),
        ("name", "..", f"name: {NAME} '..'"),
        ("shares_with", "../..", f"shares_with: {NAME} '../..'"),
        ("shares_with", "/etc", f"shares_with: {NAME} '/etc'"),
        ("format", 3, "format: was made by a newer Smalti, this one reads 1 to 2, got 3; update Smalti"),
        ("format", "2", "format: must be 1 or 2, got '2'"),
        ("format", ABSENT, "format: is missing, so this is not a pipeline's description"),
        ("format", 1, "tokenizer: is missing, in a file of format 1"),
        ("takes_prompt", "x", "takes_prompt: should be a valid boolean, unable to interpret input, got 'x'"),
        ("makes", 5, "makes: should be a list, got 5"),
        ("makes", [], "makes: at least one medium, got none"),
        ("makes", [{"medium": "smell"}], "makes.0: medium: known are image, got 'smell'"),
        ("makes", [{"medium": "image", "width_px": 4, "height_px": 4}], "makes.0: channels: is missing"),
        ("takes", {"source": 5}, "takes.source: should be an object, got 5"),
        ("latents", [4, 0, 6], "latents.1: should be greater than or equal to 1, got 0"),
        ("codes", {"grid": [6, 6]}, "codes.size: is missing; codes.fingerprint: is missing"),
        ("codes", None, None),
        ("defaults", {"num_steps": 0}, "defaults of a flow prior: num_steps: should be greater than"),
        (
            "prior",
            ["flow"],
            "prior: known are flow, dit, sit, autoregressive, masked, llamagen, amused, got ['flow']",
        ),
        ("labels", {"class": ["a", "A"]}, "labels: the names of class must differ and not be empty, got"),
    ],
)
def test_a_bad_description_is_told_in_one_line_with_file_and_field(folder: Path, field, value, said) -> None:
    path = folder / "pipeline.json"
    fields = json.loads(path.read_text()) | {field: value}
    path.write_text(json.dumps({name: each for name, each in fields.items() if each is not ABSENT}))
    if said is None:
        PipelineSpec.load(path)
        return
    with pytest.raises(ConfigError) as raised:
        PipelineSpec.load(path)
    assert str(raised.value).startswith(f"{path}: {said}")
    assert "\n" not in str(raised.value)
    assert "pydantic" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 10**5, b"9" * 5000])
def test_a_damaged_description_is_told_in_one_line(folder: Path, content: bytes) -> None:
    path = folder / "pipeline.json"
    path.write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"pipeline\.json(: format: is missing| is not valid JSON)"
    ) as raised:
        PipelineSpec.load(path)
    assert "\n" not in str(raised.value)


def test_a_shared_folder_that_is_missing_is_named(folder: Path) -> None:
    path = folder / "pipeline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shares_with": "other"}))
    with pytest.raises(ConfigError, match=r"pipeline\.json: shares_with: there is no folder .*/other; fetch"):
        Pipeline.load(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("tokenizer.safetensors", "decoder.from_latents.bias"),
        ("tokenizer.safetensors", "latent_std"),
        ("prior.safetensors", None),
        ("text_encoder.safetensors", "norm.bias"),
        ("text_encoder.safetensors", "embed_tokens.weight.scale"),
    ],
)
def test_weights_that_are_not_finite_are_not_loaded(
    tiny_prompt_weights: Path, tmp_path: Path, file, name, value
) -> None:
    folder = Path(shutil.copytree(tiny_prompt_weights / "tiny-prompt", tmp_path / "tiny-prompt"))
    with safe_open(folder / file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(folder / file)
    name = name or next(each for each in tensors if tensors[each].is_floating_point())
    tensors[name].view(-1)[-1] = value
    save_file(tensors, folder / file, metadata=metadata)
    with pytest.raises(CheckpointError) as raised:
        Pipeline.load(folder)
    tensor = name.removesuffix(".scale")
    assert f"{folder / file}: the tensor {tensor} holds NaN or infinity" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    from models.autoencoders.vq import TokenizerConfig
    from models.checkpoint import save_checkpoint

    other = Tokenizer(TokenizerConfig(image_size_px=12, hidden_channels=8, num_blocks=2, codebook_size=32))
    config = Tokenizer.load(folder / "tokenizer.safetensors").config
    save_checkpoint(folder / "tokenizer.safetensors", other.exported(), config)
    with pytest.raises(
        CheckpointError, match=r"does not fit its configuration: Unexpected key.* …$"
    ) as raised:
        Pipeline.load(folder)
    assert "\n" not in str(raised.value)


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
        ("autoencoders", {"image": "codec"}, r"pipeline\.json: autoencoders: there is no kind 'codec'"),
    ],
)
def test_a_description_that_is_not_of_its_weights_is_refused(folder: Path, field, value, said) -> None:
    path = folder / "pipeline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ConfigError, match=said):
        Pipeline.load(folder)


def test_loading_draws_no_weights_that_are_loaded_over(tiny_weights):
    before = torch.get_rng_state()

    Pipeline.load(tiny_weights / "tiny")

    assert torch.equal(torch.get_rng_state(), before)
