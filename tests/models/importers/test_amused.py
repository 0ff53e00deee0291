"""aMUSEd of diffusers, imported: the same logits, states and codes, and pictures of prompts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UVit2DModel
from safetensors.torch import load_file, save_file

from models.exporters.exporting import export_pipeline
from models.importers import amused
from models.importers.base import ImportFailed
from models.importers.clip_text import read_clip_text, read_words
from models.importers.hub import _fetch_needed
from models.importers.importing import ImportRequest, import_checkpoint
from models.importers.sources import open_source
from models.networks.text_encoder import PromptEncoder
from models.networks.uvit import UVit
from models.options import ConfigError, MaskedOptions
from models.pipeline import Pipeline
from models.stage import Sample, SampleSpec, run_path
from tests.models.importers.amused_folder import NUM_CODES, PROMPTS, publish, transformer
from tests.models.importers.published import small

THEIRS = small("amused")[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("amused") / "theirs")


@pytest.fixture(scope="module")
def imported(source: Path) -> tuple[Path, list[str]]:
    """Return the pipeline's folder, and what was said."""
    said: list[str] = []
    out = source.parent / "weights" / "ours"
    import_checkpoint(ImportRequest(str(source), out), said.append)
    return out, said


@pytest.fixture(scope="module")
def pipeline(imported: tuple[Path, list[str]]) -> Pipeline:
    return Pipeline.load(imported[0], dtype=torch.float32)


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{}, {"downsample": False, "upsample": False, "block_out_channels": 32}])
def test_the_network_computes_what_diffusers_does(source: Path, tmp_path: Path, changes) -> None:
    """Within 1e-5 of logits of about 1, in float32: only the order of sums differs."""
    if changes:
        source = publish(tmp_path / "theirs", **changes)
    theirs = transformer(**changes)
    read = amused.read(open_source(source), {})
    ours = UVit(read.config)
    ours.load_state_dict(read.tensors)
    codes = torch.randint(0, NUM_CODES + 1, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    states, pooled = THEIRS["states"][:3], THEIRS["pooled"][:3]
    conditions = replace(ours.null_conditions(3), text=states, pooled=pooled)
    wanted = theirs(
        codes.masked_fill(codes == NUM_CODES, 39),
        encoder_hidden_states=states,
        pooled_text_emb=pooled,
        micro_conds=torch.tensor([[8.0, 8.0, 0.0, 0.0, 6.0]]).expand(3, -1),
    )
    assert wanted.std() > 0.5
    torch.testing.assert_close(ours(codes, conditions), wanted, atol=1e-5, rtol=1e-5)


def test_prompts_have_the_tokens_and_the_states_of_transformers(pipeline: Pipeline, source: Path) -> None:
    """Within 1e-5 of states of about 1, in float32; also of a blank prompt, and of one that is cut."""
    words = read_words(source / "tokenizer")
    for row, prompt in enumerate(PROMPTS[:3]):
        ids = words.encode(prompt).ids[:11]  # the twelfth place of one that is cut has its end mark
        assert ids == THEIRS["ids"][row, : len(ids)].tolist()
    encoded = [pipeline.prompt_encoder.encode(prompt) for prompt in PROMPTS]
    states = torch.stack([each.states for each in encoded])
    pooled = torch.stack([each.pooled for each in encoded])
    torch.testing.assert_close(states, THEIRS["states"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, THEIRS["pooled"], atol=1e-5, rtol=1e-5)
    assert [each.is_cut for each in encoded] == [True, False, False, True]
    assert encoded[1].not_understood == ("猫",)


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_the_likeliest_codes_and_their_pictures_are_those_of_amused_pipeline(
    pipeline: Pipeline, scale: float
) -> None:
    """Four steps from a prompt to pixels, without noise: codes equal, pixels within 1e-5 of theirs in [0, 1]."""
    options = MaskedOptions(num_steps=4, guidance_scale=scale, temperature=0.0, choice_temperature=0.0)
    null = pipeline.conditions()
    samples = [
        Sample(SampleSpec(0, options, pipeline.conditions(prompt=prompt), null)) for prompt in PROMPTS[:2]
    ]
    run_path(pipeline.make_stages(2).path("generate"), samples)
    assert torch.equal(torch.stack([each.codes for each in samples]), THEIRS[f"codes-{scale:g}"])
    pixels = (torch.stack([each.value for each in samples]) + 1) / 2
    torch.testing.assert_close(pixels, THEIRS[f"images-{scale:g}"], atol=1e-5, rtol=0)


def test_the_folder_is_whole_and_draws_as_its_authors_do(imported: tuple[Path, list[str]]) -> None:
    folder, said = imported
    assert "read as amused and diffusers-vq: prior of kind amused and autoencoder of kind vqgan" in said
    assert not any("Left out" in line for line in said)
    assert sorted(each.name for each in folder.iterdir()) == [
        "README.md", "pipeline.json", "prior.safetensors", "text_encoder.safetensors",
        "text_tokenizer.json", "tokenizer.safetensors",
    ]  # fmt: skip
    for file in ("tokenizer/merges.txt", "text_encoder/model.safetensors", "scheduler/scheduler_config.json"):
        assert file in (folder / "README.md").read_text()
    pipeline = Pipeline.load(folder)
    spec = pipeline.spec
    assert (spec.takes_prompt, spec.edits, spec.codes.grid, spec.medium.width_px) == (True, True, (4, 4), 8)
    assert spec.defaults == MaskedOptions(num_steps=12, guidance_scale=10.0, choice_temperature=2.0)
    pictures = pipeline.generate(pipeline.conditions(prompt="a cat"), seed=3)
    assert torch.equal(pictures, pipeline.generate(pipeline.conditions(prompt="a cat"), seed=3))
    assert not torch.equal(pictures, pipeline.generate(pipeline.conditions(prompt="rain"), seed=3))
    with pytest.raises(ConfigError, match=r"diffusers has no layout for the prior, .* kind 'amused'"):
        export_pipeline(folder, folder.parent / "out")


def test_words_in_one_file_are_the_same(source: Path, tmp_path: Path, pipeline: Pipeline) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text(read_words(source / "tokenizer").to_str())
    (tmp_path / "words" / "special_tokens_map.json").write_text('{"pad_token": {"content": "!"}}')
    parts = open_source(source).parts
    encoder = read_clip_text(parts["text_encoder"], replace(parts["tokenizer"], path=tmp_path / "words"))
    assert torch.equal(encoder.encode("a cat").states, pipeline.prompt_encoder.encode("a cat").states)


def test_a_text_encoder_of_another_kind_is_refused(imported: tuple[Path, list[str]], tmp_path: Path) -> None:
    """One that gives no vector for a whole prompt, as it would be after files were mixed up."""
    from tests.tiny import tiny_prompt_encoder

    folder = tmp_path / "mixed"
    folder.mkdir()
    for file in imported[0].iterdir():
        (folder / file.name).symlink_to(file)
    for name in ("text_encoder.safetensors", "text_tokenizer.json"):
        (folder / name).unlink()
    tiny_prompt_encoder().save(folder)
    with pytest.raises(ConfigError, match=r"wants .* \(12, 16, 10\), the text encoder gives \(6, 8, None\)"):
        Pipeline.load(folder)
    assert isinstance(PromptEncoder.load(imported[0]).config.pooled_size, int)


def test_of_a_repository_the_parts_that_prompts_need_are_fetched_and_no_more(source: Path) -> None:
    names = [str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()]
    fetched: set[str] = set()

    def get(name: str) -> Path:
        fetched.add(name)
        return source / name

    others = ["text_encoder/model.fp16.safetensors", "safety_checker/model.safetensors", "tokenizer/x.py"]
    assert _fetch_needed([*names, *others], "", get) == source
    assert fetched == set(names)


def changed(source: Path, folder: Path, change) -> Path:
    """Return a copy of the pipeline after a change: of a configuration's fields, or of the files."""
    for file in source.rglob("*"):
        if file.is_file():
            (folder / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.relative_to(source)).write_bytes(file.read_bytes())
    change(folder)
    return folder


def says(file: str, **fields):
    """Return a change of a configuration's fields."""

    def change(folder: Path) -> None:
        said = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(said | fields))

    return change


def lacks(file: str, name: str):
    """Return a change that takes a tensor out."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / file)
        del tensors[name]
        save_file(tensors, folder / file)

    return change


TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lacks(TRANSFORMER, "transformer_layers.1.ff.net.2.weight"),
            r"1 missing \(transformer_layers\.1\.ff\.net\.2\.weight \(32, 48\)\)",
        ),
        (
            lacks("text_encoder/model.safetensors", "text_projection.weight"),
            r"1 missing \(text_projection\.w",
        ),
        (says("transformer/config.json", use_bias=True), "use_bias must be False, got 'True'"),
        (says("transformer/config.json", cond_embed_dim=11), "cond_embed_dim must be 10, got '11'"),
        (
            says("scheduler/scheduler_config.json", mask_token_id=3),
            r"mask_token_id must be from codebook_size 32 on and below the 40 vectors of embed\.emb.*, got 3",
        ),
        (
            says("scheduler/scheduler_config.json", masking_schedule="linear"),
            "must be 'cosine', got 'linear'",
        ),
        (says("text_encoder/config.json", hidden_act="relu"), r"activation: .*'quick_gelu' or 'gelu'"),
        (says("tokenizer/tokenizer_config.json", model_max_length=77), "max_position_embeddings 12, got 77"),
        (
            lambda folder: (folder / "tokenizer" / "merges.txt").write_text("x y z\n"),
            "tokenizer: holds no words of CLIP that can be read",
        ),
        (
            lambda folder: (folder / "text_encoder").rename(folder / "gone"),
            "draws nothing without text_encoder: name the folder of the whole pipeline",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(source: Path, tmp_path: Path, change, message: str) -> None:
    folder = changed(source, tmp_path / "theirs", change)
    with pytest.raises(ImportFailed, match=message):
        import_checkpoint(ImportRequest(str(folder), tmp_path / "weights" / "ours"), lambda _: None)
    assert not (tmp_path / "weights" / "ours").exists()


@pytest.mark.parametrize(("side", "is_halved"), [(16, False), (32, True)])
def test_a_full_size_has_every_name_and_shape_of_diffusers(side: int, is_halved: bool) -> None:
    """On the meta device: none missing, none left over."""
    config = {"downsample": is_halved, "upsample": is_halved, "sample_size": side}
    with torch.device("meta"):
        theirs = UVit2DModel(**config).state_dict()
        ours = UVit(replace(amused.UVitConfig(), grid=(side, side), is_halved=is_halved)).state_dict()
    laid_out = amused._laid_out(theirs, 8192, 8255)
    assert {amused.publisher_name(name): each.shape for name, each in ours.items()} == {
        name: each.shape for name, each in laid_out.items()
    }
