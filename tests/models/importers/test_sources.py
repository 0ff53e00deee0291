"""A checkpoint is read from a file or a folder, whichever way its publisher saved it, or refused."""

import json
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.checkpoint import CheckpointError
from models.importers.base import ImportFailed
from models.importers.pickles import Limits, check_torch, read_pickle
from models.importers.sources import choose_config, choose_weights, open_source

LIGHTNING = Path(__file__).parent / "files" / "lightning.ckpt"
ONE = {"first": torch.ones(2)}
TWO = {"second": torch.zeros(3)}


def write(folder: Path, files: dict[str, object]) -> Path:
    """Write tensors as safetensors, text as it is, and all else as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(content, path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_folder_gives_tensors_and_configuration(tmp_path: Path) -> None:
    source = open_source(
        write(tmp_path, {"config.json": {"_class_name": "VQModel"}, "model.safetensors": ONE})
    )
    assert source.config == {"_class_name": "VQModel"}
    assert torch.equal(source.tensors["first"], ONE["first"])
    assert source.path == tmp_path


def test_the_parts_of_sharded_weights_come_together(tmp_path: Path) -> None:
    shards = {"first": "model-00001-of-00002.safetensors", "second": "model-00002-of-00002.safetensors"}
    index = {"weight_map": shards}
    write(tmp_path, {"model.safetensors.index.json": index, shards["first"]: ONE, shards["second"]: TWO})
    assert open_source(tmp_path).tensors.keys() == {"first", "second"}
    assert open_source(tmp_path).config == {}
    write(tmp_path, {"config.json": {"a": 1}})
    assert open_source(tmp_path).config == {"a": 1}

    (tmp_path / shards["second"]).unlink()
    with pytest.raises(ImportFailed, match=r"lists model-00002-of-00002\.safetensors, which isn't there"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({"weight_map": {"first": "../x.safetensors"}}, "outside of its folder"),
        ({"weight_map": {"first": "/etc/passwd"}}, "outside of its folder"),
        ({"weight_map": {"first": 3}}, "no weight_map"),
        ({}, "no weight_map"),
        ({"weight_map": {}}, "lists 0 files"),
        ({"weight_map": {"first": "a.safetensors", "more": "a.safetensors"}}, "no file has, such as more"),
        ({"weight_map": {"first": "a.safetensors", "x": "b.safetensors"}}, "is in an earlier file, too"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, index: object, told: str) -> None:
    write(tmp_path, {"model.safetensors.index.json": index, "a.safetensors": ONE, "b.safetensors": ONE})
    with pytest.raises(ImportFailed, match=told):
        open_source(tmp_path / "model.safetensors.index.json")


def test_a_pipeline_of_diffusers_is_read_by_its_parts(tmp_path: Path) -> None:
    named = {
        "_class_name": "DiTPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "X"],
    }
    files = {
        "model_index.json": named
        | {"transformer": ["diffusers", "Y"], "text_encoder": ["transformers", "Z"]},
        "vae/config.json": {"a": 1},
        "vae/diffusion_pytorch_model.safetensors": ONE,
        "transformer/config.json": {},
        "transformer/diffusion_pytorch_model.safetensors": TWO,
        "scheduler/scheduler_config.json": {"beta_start": 0.1},
        "text_encoder/config.json": {},
    }
    source = open_source(write(tmp_path, files))
    assert source.config["_class_name"] == "DiTPipeline"
    assert source.parts.keys() == {"vae", "transformer", "scheduler"}
    assert source.parts["scheduler"].config == {"beta_start": 0.1}
    assert source.parts["vae"].config == {"a": 1}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"], "diffusion_pytorch_model.safetensors"),
        (["model.fp16.safetensors", "model.safetensors"], "model.safetensors"),
        (["model.fp16.safetensors"], "model.fp16.safetensors"),
        (["a-00001-of-00002.bin", "a-00002-of-00002.bin", "a.bin.index.json"], "a.bin.index.json"),
        (["last.ckpt", "notes.txt"], "last.ckpt"),
        (["config.json"], None),
    ],
)  # fmt: skip
def test_safetensors_and_whole_files_go_first(names: list[str], chosen: str | None) -> None:
    assert choose_weights(names) == chosen


def test_one_of_several_files_has_to_be_named() -> None:
    with pytest.raises(ImportFailed, match=r"name one: a\.ckpt, b\.ckpt"):
        choose_weights(["b.ckpt", "a.ckpt"])


def test_an_encoder_and_a_decoder_are_the_halves_of_one(tmp_path: Path) -> None:
    for half in ("encoder", "decoder"):
        torch.save({"0.weight": torch.full((2,), float(len(half)))}, tmp_path / f"taesd_{half}.pth")
    source = open_source(tmp_path)
    assert not source.tensors
    assert list(source.parts) == ["encoder", "decoder"]
    assert [file.name for file in source.files] == ["taesd_encoder.pth", "taesd_decoder.pth"]
    assert all(part.tensors["0.weight"].tolist() == [7.0, 7.0] for part in source.parts.values())
    (tmp_path / "taesdxl_encoder.pth").write_bytes(b"")
    with pytest.raises(ImportFailed, match="several files of weights"):
        open_source(tmp_path)


def test_a_configuration_is_found_beside_its_weights() -> None:
    assert choose_config(["last.ckpt", "last.yaml", "config.json"], "last.ckpt") == "last.yaml"
    assert choose_config(["last.ckpt", "model.yaml"], "last.ckpt") == "model.yaml"
    assert choose_config(["last.ckpt", "a.yaml", "b.yaml"], "last.ckpt") is None


def test_yaml_is_read_as_data_alone(tmp_path: Path) -> None:
    write(tmp_path, {"w.safetensors": ONE, "w.yaml": "model:\n  params: {embed_dim: 4}\n"})
    assert open_source(tmp_path / "w.safetensors").config == {"model": {"params": {"embed_dim": 4}}}
    (tmp_path / "w.yaml").write_text("a: !!python/object/apply:os.system ['false']\n")
    with pytest.raises(ImportFailed, match="not a valid configuration"):
        open_source(tmp_path / "w.safetensors")
    given = tmp_path / "given.json"
    given.write_text('{"a": 2}')
    assert open_source(tmp_path / "w.safetensors", config=given).config == {"a": 2}


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, "\xff", ""])
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"w.safetensors": ONE})
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ImportFailed, match=r"config\.json"):
        open_source(tmp_path)


def _cut(path: Path) -> None:
    save_file(ONE, path)
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_cut, "is truncated"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid 1"), "Git LFS pointer"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"GGUF and more"), "is not a safetensors file"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_told(tmp_path: Path, make: Callable[[Path], object], told: str) -> None:
    make(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=told):
        open_source(tmp_path / "w.safetensors")


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ImportFailed, match="no such file or folder"):
        open_source(tmp_path / "none")
    with pytest.raises(ImportFailed, match="holds no weights"):
        open_source(tmp_path)
    write(tmp_path, {"model_index.json": {"unet": ["diffusers", "U"]}, "unet/x": "1"})
    with pytest.raises(ImportFailed, match="none of the parts"):
        open_source(tmp_path)


def test_a_pickle_is_opened_in_a_process_of_its_own_that_leaves_nothing(tmp_path: Path) -> None:
    source = open_source(LIGHTNING, scratch=tmp_path)
    assert source.wrapper == "state_dict"
    assert source.tensors["count"] == 7
    assert list(tmp_path.iterdir()) == []


def test_pickles_need_a_torch_that_opens_them_safely() -> None:
    for version in ("2.10.0", "2.13.0+cpu", "3.0"):
        check_torch(version)
    for version in ("2.9.1", "2.10.0a0", "1.13"):
        with pytest.raises(ImportFailed, match=r"2\.10 or newer.*CVE-2026-24747"):
            check_torch(version)


GROWS = b"]" * 40_000_000 + b"."  # lists, each of more bytes than its byte
HASHES = b"}K\x01" + b"2\x86" * 60 + b"Ns."  # a key of pairs of pairs, whose hash looks at 2**60


@pytest.mark.ci
@pytest.mark.parametrize(
    ("data", "told"),
    [(GROWS, "far more memory than its size says"), (HASHES, "took more than 1 s of CPU time")],
    ids=["grows", "hashes"],
)
@pytest.mark.parametrize("start", [b"", b"cos\nsystem\n0"], ids=["weights_only", "inert"])
def test_a_file_that_takes_too_much_costs_its_own_process_alone(
    tmp_path: Path, data: bytes, told: str, start: bytes
) -> None:
    path = tmp_path / "big.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + start + data)
        archive.writestr("archive/version", b"3\n")
    with pytest.raises(ImportFailed, match=told):
        read_pickle(
            path, tmp_path, limits=Limits(memory_bytes=2**28, copies=0, cpu_s=1 if "CPU" in told else 60)
        )
    assert [each.name for each in tmp_path.iterdir()] == ["big.pt"]


@pytest.mark.ci
def test_a_disk_without_room_for_the_tensors_is_told(tmp_path: Path) -> None:
    """A limit of the size of files, which the process that opens it inherits, stands for the disk."""
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "w.pt")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"w\.pt can't be written: .*File too large"):
            read_pickle(tmp_path / "w.pt", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [each.name for each in tmp_path.iterdir()] == ["w.pt"]
