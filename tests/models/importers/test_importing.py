"""An import gives a pipeline that serves, whole; whatever goes wrong, nothing is left of it."""

import hashlib
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import load_tensors
from models.importers.base import ImportFailed
from models.importers.importing import ImportRequest, import_checkpoint
from models.options import ConfigError
from models.pipeline import AUTOENCODER_FILE, PRIOR_FILE, Pipeline
from models.registry import IMPORTERS
from models.spec import SPEC_FILE
from tests.models.importers.toy_format import CLASSES, publish

TEN_KIB = 10 * 2**10


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMPORTERS, "toy", "tests.models.importers.toy_format")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def take_over(source: Path | str, out: Path, **more) -> list[str]:
    """Import, and return what was said."""
    said: list[str] = []
    import_checkpoint(ImportRequest(str(source), out, **more), said.append)
    return said


def listed(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir()) if folder.exists() else []


def test_an_autoencoder_alone_is_a_pipeline_that_encodes_and_decodes(tmp_path: Path, weights: Path) -> None:
    said = take_over(publish(tmp_path / "source", "autoencoder"), weights / "own")
    assert listed(weights) == ["own"]
    assert listed(weights / "own") == ["README.md", SPEC_FILE, AUTOENCODER_FILE]
    pipeline = Pipeline.load(weights / "own")
    assert (pipeline.prior, pipeline.spec.prior, pipeline.spec.name) == (None, None, "own")
    assert pipeline.spec.codes is not None
    assert (pipeline.spec.codes.grid, pipeline.spec.codes.size) == ((4, 4), 32)
    assert pipeline.autoencoder.encode(torch.zeros(1, 3, 16, 16)).shape == (1, *pipeline.spec.latents)
    assert "note: a toy | of <ours>" in said


def test_a_prior_shares_the_autoencoder_that_it_was_trained_on(tmp_path: Path, weights: Path) -> None:
    take_over(publish(tmp_path / "source", "autoencoder"), weights / "own")
    take_over(
        publish(tmp_path / "prior", "prior", latent_std=1.0),
        weights / "joined",
        autoencoder="own",
        name="other",
        settings={"num_steps": "5"},
    )
    assert listed(weights) == ["joined", "own"]
    assert listed(weights / "joined") == ["README.md", SPEC_FILE, PRIOR_FILE]
    spec = Pipeline.load(weights / "joined").spec
    assert (spec.name, spec.shares_with, spec.prior) == ("other", "own", "flow")
    assert spec.labels == {"class": CLASSES}
    assert spec.defaults.num_steps == 5
    # One that joins that one shares with the folder that has the file.
    take_over(tmp_path / "prior", weights / "third", autoencoder="joined")
    assert Pipeline.load(weights / "third").spec.shares_with == "own"


def test_a_prior_of_other_figures_gets_a_copy_with_them(tmp_path: Path, weights: Path) -> None:
    take_over(publish(tmp_path / "source", "autoencoder"), weights / "own")
    before = hashlib.sha256((weights / "own" / AUTOENCODER_FILE).read_bytes()).digest()
    take_over(publish(tmp_path / "prior", "prior", latent_std=2.5), weights / "joined", autoencoder="own")
    pipeline = Pipeline.load(weights / "joined")
    assert pipeline.spec.shares_with is None
    assert torch.equal(
        load_tensors(weights / "joined" / AUTOENCODER_FILE)["latent_std"], torch.full((4, 1, 1), 2.5)
    )
    assert hashlib.sha256((weights / "own" / AUTOENCODER_FILE).read_bytes()).digest() == before
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    own = Pipeline.load(weights / "own").autoencoder
    torch.testing.assert_close(pipeline.autoencoder.encode(images) * 2.5, own.encode(images))


def test_a_prior_of_larger_pictures_gets_an_autoencoder_for_them(tmp_path: Path, weights: Path) -> None:
    take_over(publish(tmp_path / "source", "autoencoder"), weights / "own")
    said = take_over(publish(tmp_path / "prior", "prior", grid=6), weights / "joined", autoencoder="own")
    assert "note: Its pictures are 24 px instead, as the prior's latents ask." in said
    assert "Its pictures are 24 px instead" in (weights / "joined" / "README.md").read_text()
    pipeline = Pipeline.load(weights / "joined")
    assert (pipeline.spec.latents, pipeline.spec.shares_with) == ((4, 6, 6), None)
    assert pipeline.generate(pipeline.conditions({"class": 1}), seed=3).shape == (1, 3, 24, 24)
    assert Pipeline.load(weights / "own").spec.latents == (4, 4, 4)


def test_both_parts_of_a_pipeline_come_in_one_folder(tmp_path: Path, weights: Path, monkeypatch) -> None:
    monkeypatch.setitem(IMPORTERS, "toy-too", "tests.models.importers.toy_format")
    publish(tmp_path / "source" / "vae", "autoencoder")
    publish(tmp_path / "source" / "transformer", "prior", latent_std=0.5)
    (tmp_path / "source" / "model_index.json").write_text('{"vae": ["t", "A"], "transformer": ["t", "B"]}')
    take_over(tmp_path / "source", weights / "both")
    pipeline = Pipeline.load(weights / "both")
    assert pipeline.prior is not None
    assert torch.equal(
        load_tensors(weights / "both" / AUTOENCODER_FILE)["latent_std"], torch.full((4, 1, 1), 0.5)
    )


def test_a_part_that_no_importer_reads_is_named(tmp_path: Path, weights: Path) -> None:
    """Of Kandinsky, say, whose tokenizer can be read alone."""
    publish(tmp_path / "source" / "vqvae", "autoencoder")
    folder = publish(tmp_path / "source" / "transformer", "prior")
    (folder / "config.json").write_text('{"_class_name": "Prior"}')
    (tmp_path / "source" / "model_index.json").write_text('{"vqvae": ["t", "A"], "transformer": ["t", "B"]}')
    said = take_over(tmp_path / "source", weights / "own")
    assert "note: Left out, as no importer that was tried reads it: transformer (Prior)." in said
    assert Pipeline.load(weights / "own").prior is None


def test_the_card_tells_where_it_comes_from(tmp_path: Path, weights: Path) -> None:
    source = publish(tmp_path / "source", "autoencoder")
    (source / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Theirs\n")
    take_over(source, weights / "own", command="smalti import source --out weights/own")
    card = (weights / "own" / "README.md").read_text()
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    for told in (
        "| source | source |", "| format | toy |", "| licence | cc-by-nc-4.0, as the source tells it |",
        "- a toy \\| of &lt;ours>", f"| model.safetensors | `{digest}` |", "smalti import source --out weights/own",
        "| codes | 4 × 4 of 32 |", str(tmp_path),
    ):  # fmt: skip
        assert (told in card) == (told != str(tmp_path)), told
    take_over(source / "model.safetensors", weights / "one-file")
    assert f"| model.safetensors | `{digest}` |" in (weights / "one-file" / "README.md").read_text()
    (source / "README.md").write_text("---\nlicense: [\n---\n")
    (source / "LICENSE.txt").write_text("\nMIT License\n\nCopyright\n")
    take_over(source, weights / "own", replaces=True)
    assert "| licence | MIT License (LICENSE.txt), as" in (weights / "own" / "README.md").read_text()
    (source / "LICENSE.txt").unlink()
    take_over(source, weights / "own", replaces=True)
    assert "| licence | not told |" in (weights / "own" / "README.md").read_text()


def test_what_is_there_is_replaced_only_when_that_is_asked_for(tmp_path: Path, weights: Path) -> None:
    source = publish(tmp_path / "source", "autoencoder")
    take_over(source, weights / "own")
    (weights / "own" / "kept").write_text("x")
    with pytest.raises(ImportFailed, match="is there already; take another name, or say --overwrite"):
        take_over(source, weights / "own")
    take_over(source, weights / "own", only_checks=True)
    assert (weights / "own" / "kept").exists()
    take_over(source, weights / "own", replaces=True)
    assert listed(weights / "own") == ["README.md", SPEC_FILE, AUTOENCODER_FILE]
    assert listed(weights) == ["own"]


def test_a_name_that_another_pipeline_has_is_refused(tmp_path: Path, weights: Path) -> None:
    source = publish(tmp_path / "source", "autoencoder")
    take_over(source, weights / "own", name="theirs")
    with pytest.raises(ImportFailed, match=r"--name: the pipeline in .*own is named 'theirs'"):
        take_over(source, weights / "theirs")
    take_over(source, weights / "own", name="theirs", replaces=True)
    assert listed(weights) == ["own"]


def broken(source: Path, name: str) -> Path:
    """Break a checkpoint in one way."""
    file = source / "model.safetensors"
    tensors = load_file(file)
    first = min(tensors)
    match name:
        case "missing":
            del tensors[first]
        case "extra":
            tensors["toy.more"] = torch.ones(1)
        case "shape":
            tensors[first] = torch.ones(7, 7)
        case "nan":
            tensors[first] = torch.full_like(tensors[first], torch.nan)
        case "unknown":
            (source / "config.json").write_text('{"other": 1}')
    save_file(tensors, file)
    if name == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    return source


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing", r"1 missing \("),
        ("extra", r"1 left over \(toy\.more \(1,\)\)"),
        ("shape", r"1 of another shape .* \(7, 7\), expected \("),
        ("nan", "holds NaN or infinity"),
        ("truncated", "is truncated"),
        (
            "unknown",
            r"of no format that is known: it has \d+ tensors, the first toy\.\w.*configuration of other",
        ),
    ],
)
def test_what_does_not_fit_leaves_nothing(tmp_path: Path, weights: Path, name: str, told: str) -> None:
    source = broken(publish(tmp_path / "source", "autoencoder"), name)
    with pytest.raises(ConfigError, match=told):
        take_over(source, weights / "own")
    assert listed(weights) == []


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"out": "Own"}, "--out: must be the name of a folder"),
        ({"name": "../x"}, "--name: must be the name of a folder"),
        ({"autoencoder": "../own"}, "--autoencoder: must be the name of a folder"),
        ({"autoencoder": "none"}, "--autoencoder: there is no none/pipeline.json beside"),
        ({"format_name": "none"}, "--format: known are .*toy, got 'none'"),
        ({"format_name": "compvis-vq"}, "is not of the format compvis-vq"),
        ({"settings": {"num_step": "3"}}, "--set num_step: there is no such setting of toy"),
        ({"settings": {"compvis-vq.size": "3"}}, "--set compvis-vq.size: there is no such setting of toy"),
        ({"settings": {"weights": "other"}}, "weights must be ema or model"),
        ({}, "this is a prior, which needs an autoencoder"),
    ],
)
def test_what_was_asked_wrongly_is_told(tmp_path: Path, weights: Path, more: dict, told: str) -> None:
    source = publish(tmp_path / "source", "prior")
    with pytest.raises(ConfigError, match=told):
        take_over(source, weights / more.get("out", "own"), **{k: v for k, v in more.items() if k != "out"})
    assert listed(weights) == []


def test_an_autoencoder_of_other_latents_is_refused(tmp_path: Path, weights: Path) -> None:
    take_over(publish(tmp_path / "source", "autoencoder"), weights / "own")
    prior = publish(tmp_path / "prior", "prior", latent_std=1.0, channels=8)
    with pytest.raises(ImportFailed, match="the prior's latents have 8 channels, the autoencoder's 4"):
        take_over(prior, weights / "joined", autoencoder="own")
    assert listed(weights) == ["own"]


def test_a_disk_that_fills_leaves_nothing_and_is_told(tmp_path: Path, weights: Path) -> None:
    """A limit of the size of files stands for a disk with so much room."""
    source = publish(tmp_path / "source", "autoencoder")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (TEN_KIB, before[1]))
    try:
        with pytest.raises(
            ImportFailed, match=r"was not written, and nothing of it is left: .*File too large"
        ):
            take_over(source, weights / "own")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert listed(weights) == []
