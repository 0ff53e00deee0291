import json
from dataclasses import replace

import pytest

from models.config import ConfigError, PipelineConfig, PriorConfig, Sampling, TokenizerConfig
from workers.catalog import Catalog
from workers.errors import InvalidCodes, InvalidRequest, UnknownPipeline
from workers.messages import DecodeRequest, EncodeRequest, GenerateRequest

CONFIG = PipelineConfig(
    name="tiny",
    class_names=("T-shirt/top", "Sneaker"),
    tokenizer=TokenizerConfig(image_size_px=8, downsample_factor=4, codebook_size=16),
    tokenizer_fingerprint="0123456789abcdef",
    prior=PriorConfig(grid=(2, 2), hidden_size=16, num_heads=2, num_classes=2),
    defaults=Sampling(num_steps=5, sampler="heun", guidance_scale=1.5),
)
PROMPTED = replace(
    CONFIG,
    name="prompted",
    class_names=(),
    style_names=("noto", "fluent-flat"),
    group_names=("food",),
    example_prompt="a smiling cat",
    tokenizer=replace(CONFIG.tokenizer, image_channels=3),
    tokenizer_fingerprint="a" * 16,
    prior=replace(CONFIG.prior, num_classes=0, num_styles=2, num_groups=1, text_tokens=6, text_channels=8),
)
OTHER = replace(CONFIG, name="other", tokenizer_fingerprint="f" * 16)


@pytest.fixture
def catalog(tmp_path):
    for config in (CONFIG, OTHER):
        (tmp_path / config.name).mkdir()
        config.save(tmp_path / config.name / "pipeline.json")
    return Catalog.load(tmp_path, ["tiny", "other"])


def test_pipelines_are_sorted_by_name_unless_named(tmp_path, catalog):
    assert Catalog.load(tmp_path).names == ("other", "tiny")
    assert Catalog.load(tmp_path, ["tiny"]).names == ("tiny",)
    assert [info.name for info in catalog.info()] == ["tiny", "other"]


def test_info_says_what_a_request_gets_that_names_nothing(catalog):
    info = catalog.info()[0]

    assert (info.num_steps, info.sampler, info.guidance_scale) == (5, "heun", 1.5)
    assert (info.image_size_px, info.grid, info.codebook_size) == (8, (2, 2), 16)
    assert catalog.resolve(info.example).class_label == 1


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no pipeline"):
        Catalog.load(tmp_path)


def test_a_name_that_is_not_there_is_refused_with_those_that_are(tmp_path, catalog):
    with pytest.raises(ConfigError, match=r"there is no 'tyni'; known are other, tiny"):
        Catalog.load(tmp_path, ["tyni"])


def test_two_pipelines_of_one_name_are_refused(tmp_path, catalog):
    (tmp_path / "copy").mkdir()
    CONFIG.save(tmp_path / "copy" / "pipeline.json")

    with pytest.raises(ConfigError, match="several pipelines are named 'tiny'"):
        Catalog.load(tmp_path)


def test_a_broken_pipeline_is_refused_by_its_path(tmp_path, catalog):
    raw = json.loads((tmp_path / "tiny" / "pipeline.json").read_text())
    (tmp_path / "tiny" / "pipeline.json").write_text(json.dumps(raw | {"colour": "red"}))

    with pytest.raises(ConfigError, match=r"tiny/pipeline\.json: (.|\n)*colour"):
        Catalog.load(tmp_path)


def test_resolving_makes_every_choice(catalog):
    resolved = catalog.resolve(GenerateRequest(class_label="sneaker"))

    assert resolved == GenerateRequest(
        pipeline="tiny", class_label=1, seed=resolved.seed, num_steps=5, guidance_scale=1.5, sampler="heun"
    )
    assert resolved.seed is not None
    assert catalog.resolve(GenerateRequest()).seed != resolved.seed


def test_resolving_keeps_what_was_asked_for(catalog):
    request = GenerateRequest(
        pipeline="other", class_label=0, seed=0, num_steps=9, guidance_scale=0, sampler="euler"
    )

    assert catalog.resolve(request) == request
    assert catalog.resolve(catalog.resolve(request)) == request


@pytest.mark.parametrize(
    ("label", "number"), [("t-shirt/top", 0), (" SNEAKER ", 1), ("1", 1), (0, 0), (None, None)]
)
def test_a_class_is_found_by_name_or_number(catalog, label, number):
    assert catalog.resolve(GenerateRequest(class_label=label)).class_label == number


def test_an_unknown_class_is_refused_with_the_known_ones(catalog):
    with pytest.raises(
        InvalidRequest, match=r"class_label: tiny has no class 'boot'; known are T-shirt/top, Sneaker"
    ):
        catalog.resolve(GenerateRequest(class_label="boot"))
    with pytest.raises(InvalidRequest, match=r"class_label: tiny has numbers 0 to 1, got 2"):
        catalog.resolve(GenerateRequest(class_label=2))


def test_among_many_classes_the_nearest_are_told(tmp_path):
    names = (*(f"class {letter}" for letter in "abcdefghijklmnopqrstuvwxy"), "tench")
    config = replace(CONFIG, class_names=names, prior=replace(CONFIG.prior, num_classes=26))
    (tmp_path / "many").mkdir()
    config.save(tmp_path / "many" / "pipeline.json")

    with pytest.raises(InvalidRequest, match=r"known are tench and 25 others; see /pipelines"):
        Catalog.load(tmp_path).resolve(GenerateRequest(class_label="tensh"))


@pytest.mark.parametrize(
    "request_", [GenerateRequest(pipeline="no"), EncodeRequest(pipeline="no", image="AAAA")]
)
def test_an_unknown_pipeline_is_refused_with_the_known_ones(catalog, request_):
    with pytest.raises(UnknownPipeline, match=r"pipeline: there is no 'no'; known are tiny, other"):
        catalog.resolve(request_)


def test_codes_find_the_pipeline_of_their_tokenizer(catalog):
    assert catalog.resolve(DecodeRequest(codes=[[[0, 15], [1, 2]]], tokenizer="f" * 16)).pipeline == "other"


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[[0, 1], [2, 3]], [[0, 1], [16, 3]]], r"codes\[1\]\[1\]\[0\]: a code is from 0 to 15, got 16"),
        ([[[0, -1], [2, 3]]], r"codes\[0\]\[0\]\[1\]: a code is from 0 to 15, got -1"),
        ([[[0, 1]]], r"codes\[0\]: tiny has 2 rows of 2 codes, got 1 rows"),
        ([[[0, 1], [2]]], r"codes\[0\]\[1\]: tiny has 2 codes a row, got 1"),
        ([[[0, 1], []]], r"codes\[0\]\[1\]: tiny has 2 codes a row, got 0"),
    ],
)
def test_bad_codes_are_refused_by_index_value_and_limit(catalog, codes, message):
    with pytest.raises(InvalidCodes, match=message):
        catalog.resolve(DecodeRequest(codes=codes, tokenizer=CONFIG.tokenizer_fingerprint))


def test_codes_of_a_foreign_tokenizer_are_refused(catalog):
    foreign = DecodeRequest(codes=[[[0, 1], [2, 3]]], tokenizer="a" * 16)
    with pytest.raises(InvalidCodes, match=r"made by aaaaaaaaaaaaaaaa.*0123456789abcdef \(tiny\)"):
        catalog.resolve(foreign)
    with pytest.raises(InvalidCodes, match="made by f"):
        catalog.resolve(DecodeRequest(codes=[[[0, 1], [2, 3]]], tokenizer="f" * 16, pipeline="tiny"))


@pytest.fixture
def mixed(tmp_path):
    for config in (CONFIG, PROMPTED):
        (tmp_path / config.name).mkdir()
        config.save(tmp_path / config.name / "pipeline.json")
    return Catalog.load(tmp_path, ["tiny", "prompted"])


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({}, "tiny"),
        ({"class_label": "sneaker"}, "tiny"),
        ({"prompt": "a cat"}, "prompted"),
        ({"style": "Noto"}, "prompted"),
        ({"background": "transparent"}, "prompted"),
        ({"pipeline": "prompted"}, "prompted"),
    ],
)
def test_a_request_goes_to_the_first_pipeline_that_can_do_it(mixed, asked, name):
    assert mixed.resolve(GenerateRequest(**asked)).pipeline == name


def test_labels_of_every_kind_become_numbers(mixed):
    resolved = mixed.resolve(GenerateRequest(prompt="a cat", style="FLUENT-FLAT", group="food"))
    assert (resolved.style, resolved.group, resolved.class_label) == (1, 0, None)
    assert mixed.resolve(GenerateRequest(style=1)).style == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"style": "neon"}, r"style: prompted has no style 'neon'; known are noto, fluent-flat"),
        ({"style": 2}, r"style: prompted has numbers 0 to 1, got 2"),
        ({"class_label": "boot"}, r"class_label: tiny has no class 'boot'"),
        ({"pipeline": "tiny", "prompt": "a cat"}, r"prompt: tiny takes no prompt; it takes class_label$"),
        (
            {"pipeline": "prompted", "class_label": 0},
            r"class_label: prompted takes no class; it takes prompt, ",
        ),
        ({"class_label": 0, "background": "transparent"}, r"background: transparent is for colour pipelines"),
        ({"prompt": "x", "background": "transparent", "format": "jpeg"}, r"got prompted as jpeg"),
    ],
)
def test_what_a_pipeline_does_not_know_is_refused_by_name(mixed, asked, said):
    with pytest.raises(InvalidRequest, match=said):
        mixed.resolve(GenerateRequest(**asked))


def test_info_of_a_pipeline_that_takes_prompts(mixed):
    info = mixed.info()[1]
    assert info.takes_prompt
    assert info.style_names == ("noto", "fluent-flat")
    assert (info.example.prompt, info.example.style) == ("a smiling cat", "noto")
    assert mixed.resolve(info.example).pipeline == "prompted"
