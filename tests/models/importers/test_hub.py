"""hf: fetches what an import needs from one commit, with a token that nobody is told."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.importers.base import ImportFailed
from models.importers.hub import fetch
from models.importers.importing import ImportRequest, import_checkpoint
from models.pipeline import Pipeline
from models.registry import IMPORTERS
from tests.models.importers.small_hub import COMMIT, REPOSITORY, TOKEN, SmallHub, serving
from tests.models.importers.toy_format import publish


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    """A hub with a toy autoencoder, and more that isn't needed."""
    from huggingface_hub import constants

    source = publish(tmp_path / "source", "autoencoder")
    files = {each.name: each.read_bytes() for each in source.iterdir()}
    files |= {
        "README.md": b"# theirs",
        "model.fp16.safetensors": b"x",
        "samples/grid.png": b"x",
        "w.bin": b"x",
    }
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(files) as serves:
        monkeypatch.setenv("HF_ENDPOINT", serves.url)
        yield serves


def test_the_files_that_are_needed_come_from_one_commit(tmp_path, hub, monkeypatch) -> None:
    monkeypatch.setitem(IMPORTERS, "toy", "tests.models.importers.toy_format")
    out = tmp_path / "weights" / "own"
    import_checkpoint(ImportRequest(f"hf:{REPOSITORY}@v1", out), lambda _: None)
    assert Pipeline.load(out).spec.name == "own"
    assert hub.fetched == {"model.safetensors", "config.json"}
    card = (out / "README.md").read_text()
    assert f"| source | hf:{REPOSITORY} |" in card
    assert f"| revision | {COMMIT} |" in card
    assert "| licence | mit, as the source tells it |" in card
    assert hub.tokens == {None}


def test_the_token_goes_to_the_hub_and_nowhere_else(tmp_path, hub, monkeypatch, caplog, capfd) -> None:
    hub.wants_token = True
    with pytest.raises(ImportFailed, match=r"the hub answers 401: .*wants a token.* in HF_TOKEN"):
        fetch(f"hf:{REPOSITORY}", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    said: list[str] = []
    with caplog.at_level(logging.DEBUG):
        fetched = fetch(f"hf:{REPOSITORY}", said.append)
        hub.files.clear()
        with pytest.raises(ImportFailed) as failed:
            fetch(f"hf:{REPOSITORY}", said.append)
    assert f"Bearer {TOKEN}" in hub.tokens
    told = [*said, caplog.text, *capfd.readouterr(), str(failed.value), str(fetched)]
    told += [each.read_text(errors="replace") for each in tmp_path.rglob("*") if each.is_file()]
    assert not any(TOKEN in text for text in told)


def test_one_file_of_many_can_be_named(hub) -> None:
    hub.files["more/last.ckpt"] = b"y"
    hub.files["more/last.yaml"] = b"model: {}"
    fetched = fetch(f"hf:{REPOSITORY}/more/last.ckpt", lambda _: None)
    assert fetched.path.read_bytes() == b"y"
    assert hub.fetched == {"more/last.ckpt", "more/last.yaml"}
    assert fetched.origin.name == f"hf:{REPOSITORY}/more/last.ckpt"
    hub.asked.clear()
    assert fetch(f"hf:{REPOSITORY}/more", lambda _: None).path == fetched.path.parent
    assert hub.fetched == set()  # it is on this disk


def test_of_a_pipeline_come_the_parts_that_can_be_imported(hub) -> None:
    hub.files.clear()
    hub.files |= {
        "model_index.json": b'{"vae": ["d", "A"], "scheduler": ["d", "S"], "text_encoder": ["t", "T"]}',
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.bin": b"x",
        "vae/diffusion_pytorch_model.safetensors": b"y",
        "scheduler/scheduler_config.json": b'{"beta": 1}',
        "text_encoder/model.safetensors": b"z",
        "whole.ckpt": b"w",
    }
    fetched = fetch(f"hf:{REPOSITORY}", lambda _: None)
    assert hub.fetched == {
        "model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    }  # fmt: skip
    assert (fetched.path / "vae" / "config.json").is_file()


def test_the_parts_of_sharded_weights_are_fetched(hub) -> None:
    for name in ("model.safetensors", "model.fp16.safetensors"):
        del hub.files[name]
    hub.files["model.safetensors.index.json"] = b'{"weight_map": {"a": "model-1-of-2.safetensors"}}'
    hub.files["model-1-of-2.safetensors"] = b"x"
    fetch(f"hf:{REPOSITORY}", lambda _: None)
    assert hub.fetched == {"model.safetensors.index.json", "model-1-of-2.safetensors", "config.json"}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("hf:one", r"must be hf:OWNER/NAME\[/PATH\]\[@REVISION\], got 'hf:one'"),
        ("hf:a/b/../c@d@e", "must be hf:OWNER/NAME"),
        ("hf:nobody/none", "the hub answers 404"),
        (f"hf:{REPOSITORY}@other", "the hub answers 404"),
        (f"hf:{REPOSITORY}/none.ckpt", "has no none.ckpt; it has"),
        (f"hf:{REPOSITORY}/samples", "has no weights there"),
    ],
)
def test_what_is_not_there_is_told(hub, source: str, told: str) -> None:
    with pytest.raises(ImportFailed, match=told):
        fetch(source, lambda _: None)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/x.safetensors", "a/../../b"])
def test_a_hub_that_names_files_outside_is_refused(hub, name: str) -> None:
    hub.files[name] = b"x"
    with pytest.raises(ImportFailed, match="lists a file outside of it"):
        fetch(f"hf:{REPOSITORY}", lambda _: None)


def test_a_hub_that_does_not_answer_is_told(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ImportFailed, match="can't be fetched: ConnectError"):
        fetch(f"hf:{REPOSITORY}", lambda _: None)
