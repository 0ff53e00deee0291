"""DiT, SiT and LightningDiT, imported: what their authors' own code computed once, computed again."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.conditioning import Conditions
from models.importers.base import ImportFailed, Source
from models.networks.class_dit import ClassDiT, pair_turns, sine_positions
from models.options import DiffusionOptions, FlowOptions
from models.registry import IMPORTERS
from tests.models.importers.dit_references import load_prior, sample_ours
from tests.models.importers.published import full_size, small

HEADS = {"num_heads": "2"}  # of the small ones; no published size has so few channels
SCALED = {"latent_scale": "1"}
NUM_CLASSES = 5


def source_of(name, format_name):
    """Return a small checkpoint and what its authors' code made of it."""
    tensors, results = small(name)
    fixed = {key.removeprefix("fixed/"): results[key] for key in results if key.startswith("fixed/")}
    return Source(Path(f"{format_name}.pt"), tensors | fixed), results


def read(source, settings):
    """Return what the first importer makes of a source that knows it."""
    module = next(each for each in map(import_module, IMPORTERS.values()) if each.recognises(source))
    return module.read(source, settings)


@pytest.mark.parametrize(
    ("name", "kind"), [("dit", "dit"), ("sit", "sit"), ("lightningdit", "sit"), ("lightningdit-other", "sit")]
)
def test_the_network_computes_what_the_authors_code_does(tmp_path: Path, name: str, kind: str) -> None:
    """Within 1e-5 of outputs of about 1, in float32: only the order of sums differs."""
    source, theirs = source_of(name, name)
    imported = read(source, HEADS | (SCALED if name.startswith("light") else {}))
    assert imported.kind == kind
    network = load_prior(imported, tmp_path).network
    conditions = Conditions(theirs["labels"][:, None])
    with torch.inference_mode():
        ours = network(theirs["x"], theirs["times"], conditions)[:, : theirs["output"].shape[1]]
    assert theirs["output"].std() > 0.5
    torch.testing.assert_close(ours, theirs["output"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "run", "options"),
    [
        ("dit", "ddpm", DiffusionOptions(sampler="ddpm", num_steps=10)),
        ("dit", "ddim", DiffusionOptions(sampler="ddim", num_steps=7)),
        ("sit", "euler", FlowOptions(sampler="euler", num_steps=8)),
        ("lightningdit", "euler", FlowOptions(sampler="euler", num_steps=8, guidance_interval=(0.11, 1))),
    ],
)
def test_a_run_is_the_authors(tmp_path: Path, name: str, run: str, options: FlowOptions) -> None:
    """Within 1e-4 of the largest latent, from the same noise, guided by 3 on three channels.

    DiT's learned variance, its respaced timesteps and LightningDiT's shifted ones are in there.
    """
    source, theirs = source_of(name, name)
    imported = read(source, HEADS | (SCALED if name.startswith("light") else {}))
    ours = sample_ours(load_prior(imported, tmp_path), [1, 4], replace(options, guidance_scale=3.0), seed=5)
    largest = theirs[run].abs().max().item()
    assert (ours - theirs[run]).abs().max().item() < 1e-4 * max(1.0, largest)


@pytest.mark.parametrize(
    ("name", "count", "grid", "hidden"),
    [("dit-s-2-256", 132, 32, 384), ("dit-xl-2-512", 292, 64, 1152), ("lightningdit-xl-1", 351, 16, 1152)],
)
def test_a_full_size_has_every_published_name_and_shape(
    name: str, count: int, grid: int, hidden: int
) -> None:
    """On the meta device, but for what is made again: none missing, none left over."""
    tensors = full_size(name)
    side = grid // (1 if name.startswith("light") else 2)
    made = {"pos_embed": sine_positions(side, hidden)[None]}
    if name.startswith("light"):
        turns = pair_turns(side, hidden // 16)
        made |= {f"feat_rope.freqs_{kind}": each for kind, each in zip(("cos", "sin"), turns, strict=True)}
    assert all(tensors[key].shape == made[key].shape for key in made)
    tensors |= made
    imported = read(Source(Path("weights.pt"), tensors), SCALED)
    assert len(tensors) == count
    network = imported.config.network
    assert (network.grid, network.hidden_size, network.num_labels) == ((grid, grid), hidden, 1000)
    with torch.device("meta"):
        assert set(imported.tensors) == set(ClassDiT(network).state_dict())
    assert imported.labels["class"][207] == "golden retriever"
    assert any("matrix products of its own" in note for note in imported.notes) == (hidden > 480)


def test_a_dit_without_a_variance_or_named_so_is_a_sit() -> None:
    source, _ = source_of("dit", "SiT-XL-2-256x256")
    assert read(source, HEADS).kind == "sit"
    source, _ = source_of("dit", "website")
    assert read(source, HEADS).kind == "dit"


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            lambda tensors: tensors.pop("blocks.0.mlp.fc1.bias"),
            {},
            r"1 missing \(blocks\.0\.mlp\.fc1\.bias \(64,\)",
        ),
        (lambda tensors: tensors.update(extra=torch.zeros(3)), {}, r"1 left over \(extra \(3,\)\)"),
        (lambda tensors: tensors["pos_embed"].add_(1), {}, r"pos_embed .* is not the fixed embedding"),
        (lambda tensors: None, {"num_heads": "0"}, r"num_heads must be a whole number from 1, got '0'"),
        (lambda tensors: None, {"num_heads": "3"}, r"hidden_size must give each of num_heads 3"),
        (lambda tensors: None, {"latent_scale": "no"}, r"latent_scale must be a number above 0, got 'no'"),
        (lambda tensors: None, {"guided_channels": "x"}, r"guided_channels must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, settings, message) -> None:
    source, _ = source_of("dit", "dit")
    change(source.tensors)
    with pytest.raises(ImportFailed, match=message):
        read(source, HEADS | settings)


def test_of_a_size_that_was_never_published_the_heads_have_to_be_told() -> None:
    with pytest.raises(ImportFailed, match=r"no published network has hidden_size 16.*--set num_heads="):
        read(source_of("dit", "dit")[0], {})


def test_lightningdit_reads_its_yaml_and_the_figures_of_its_latents(tmp_path: Path) -> None:
    source, _ = source_of("lightningdit", "lightningdit")
    config = {
        "data": {"latent_multiplier": 2.0},
        "sample": {"num_sampling_steps": 100, "cfg_scale": 6.7, "cfg_interval_start": 0.125},
        "transport": {"path_type": "Linear", "prediction": "velocity"},
    }
    source = replace(source, path=tmp_path / "lightningdit.pt", config=config)
    with pytest.raises(ImportFailed, match=r"latents_stats\.pt is not there"):
        read(source, HEADS)
    mean, std = torch.arange(6.0).view(1, 6, 1, 1), torch.full((1, 6, 1, 1), 3.0)
    stats = tmp_path / "stats.safetensors"  # read as fast as a pickle is not
    save_file({"mean": mean, "std": std}, stats)
    imported = read(source, HEADS | {"latents_stats": str(stats)})
    assert imported.defaults == FlowOptions(
        num_steps=99, sampler="euler", guidance_scale=6.7, guidance_interval=(0.125, 1.0)
    )
    assert torch.equal(imported.latent_mean, mean[0])
    assert torch.equal(imported.latent_std, std[0] / 2)
    gvp = replace(source, config=config | {"transport": {"path_type": "GVP"}})
    with pytest.raises(ImportFailed, match=r"transport's path_type must be 'Linear', got 'GVP'"):
        read(gvp, HEADS)
