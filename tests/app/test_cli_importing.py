"""A model comes in with one command, is served with the next, and goes out with a third."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from app.cli.main import cli
from models.autoencoders.vq import Tokenizer
from models.options import ConfigError
from models.pipeline import Pipeline
from models.registry import EXPORTERS, IMPORTERS
from models.spec import SPEC_FILE
from tests.models.importers.toy_format import publish
from tests.tiny import TOKENIZER
from workers.catalog import Catalog


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMPORTERS, "toy", "tests.models.importers.toy_format")


def run(*arguments: str | Path):
    """Run a command; a failure raises, as ``main`` reports it."""
    return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)


def test_an_import_prints_the_folder_and_the_next_command(tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "weights" / "own"
    source = publish(tmp_path / "source", "autoencoder")
    done = run("import", source, "--out", out, "--set", "weights=model")
    assert done.stdout.splitlines() == [str(out), f"SMALTI_WEIGHTS_DIR={out.parent} smalti up --pipeline own"]
    assert "read as toy: autoencoder of kind vq" in done.stderr
    assert Catalog.load(out.parent).names == ("own",)
    monkeypatch.chdir(tmp_path)
    done = run("import", source, "--out", "weights/other")
    assert done.stdout.splitlines() == ["weights/other", "smalti up --pipeline other"]


def test_a_check_keeps_nothing(tmp_path: Path) -> None:
    done = run("import", publish(tmp_path / "source", "autoencoder"), "--out", tmp_path / "own", "--check")
    assert done.stdout == ""
    assert "it can be imported; nothing was kept" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_what_is_exported_and_imported_again_makes_the_same_codes_and_pictures(tmp_path: Path) -> None:
    own, out = tmp_path / "own", tmp_path / "published"
    run("import", publish_vqgan(tmp_path / "source"), "--out", own, "--set", "image_size_px=16")
    assert run("export", own, "--out", out).stdout == f"{out}\n"
    assert sorted(str(each.relative_to(out)) for each in out.rglob("*.*")) == [
        "vqvae/config.json", "vqvae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    run("import", out / "vqvae", "--out", tmp_path / "again", "--set", "image_size_px=16")
    first, again = (Pipeline.load(tmp_path / name).autoencoder for name in ("own", "again"))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = [each.quantize(each.encode(images)).codes for each in (first, again)]
    assert torch.equal(*codes)
    assert len(codes[0].unique()) > 1
    assert torch.equal(*(each.decode(each.lookup(codes[0])) for each in (first, again)))


def publish_vqgan(folder: Path) -> Path:
    """Write a small ``VQModel`` by way of the exporter's own file."""
    from models.autoencoders.vqgan import Vqgan, VqganConfig
    from models.exporters.vq import write_vqmodel
    from models.networks.ldm_autoencoder import LdmConfig
    from models.spec import CodesSpec, PipelineSpec

    network = LdmConfig(latent_channels=3, level_channels=(8, 16), num_blocks=1, num_groups=4)
    vqgan = Vqgan(VqganConfig(network=network, image_size_px=16, codebook_size=40, code_channels=4))
    generator = torch.Generator().manual_seed(0)
    for name, tensor in vqgan.state_dict().items():
        if not name.startswith("latent_"):
            tensor.normal_(std=0.3, generator=generator)
    spec = PipelineSpec(
        name="own",
        makes=({"medium": "image", "width_px": 16, "height_px": 16, "channels": 3},),
        latents=vqgan.latent_shape,
        autoencoders={"image": "vqgan"},
        codes=CodesSpec(vqgan.latent_shape[1:], 40, vqgan.fingerprint()),
    )
    folder.mkdir()
    write_vqmodel(Pipeline(spec, vqgan, None, torch.device("cpu"), torch.float32), folder)
    return folder / "vqvae"


def test_a_format_that_can_not_hold_a_kind_says_so_and_writes_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(EXPORTERS, "diffusers", {"vq": "tests.app.test_cli_importing:write_tensors"})
    own = tmp_path / "own"
    run("import", publish(tmp_path / "source", "autoencoder"), "--out", own)
    joined = tmp_path / "joined"
    run("import", publish(tmp_path / "prior", "prior"), "--out", joined, "--autoencoder", "own")
    out = tmp_path / "out"
    with pytest.raises(
        ConfigError, match="for the prior, which is of the kind 'flow', only for vq; --only auto"
    ):
        run("export", joined, "--out", out)
    with pytest.raises(ValueError, match="--format: known are diffusers, got 'onnx'"):
        run("export", joined, "--out", out, "--format", "onnx")
    with pytest.raises(ValueError, match="--only: the pipeline own has no prior"):
        run("export", own, "--out", out, "--only", "prior")
    assert not out.exists()
    run("export", joined, "--out", out, "--only", "autoencoder")
    assert load_file(out / "all.safetensors").keys() == Tokenizer(TOKENIZER).exported().keys()
    with pytest.raises(ValueError, match="is there already"):
        run("export", own, "--out", out)
    assert (own / SPEC_FILE).exists()


def write_tensors(pipeline: Pipeline, folder: Path) -> None:
    """Write a format of one file."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in pipeline.tokenizer.exported().items()}
    save_file(tensors, folder / "all.safetensors")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["import", "x", "--out", "y", "--set", "size"], "--set must be KEY=VALUE, got 'size'"),
        (["export", "x", "--out", "y", "--only", "both"], "--only must be autoencoder or prior, got 'both'"),
        (["export", "none", "--out", "y"], "none/pipeline.json can't be read"),
    ],
)
def test_what_was_asked_wrongly_is_told(arguments: list[str], told: str) -> None:
    with pytest.raises(Exception, match=told):
        run(*arguments)
