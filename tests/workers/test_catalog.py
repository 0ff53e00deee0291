import json
from dataclasses import replace

import pytest

from models.media.image import ImageSpec
from models.options import ConfigError, FlowOptions, Options
from models.spec import CodesSpec, PipelineSpec
from workers.catalog import Catalog
from workers.errors import InvalidCodes, InvalidRequest, UnknownPipeline
from workers.messages import (
    BlobReference,
    CodesInfo,
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    Resolved,
)

SPEC = PipelineSpec(
    name="tiny",
    makes=(ImageSpec(width_px=8, height_px=8, channels=1),),
    latents=(4, 2, 2),
    codes=CodesSpec(grid=(2, 2), size=16, fingerprint="0123456789abcdef"),
    labels={"class": ("T-shirt/top", "Sneaker")},
    autoencoders={"image": "vq"},
    prior="flow",
    defaults=FlowOptions(num_steps=5, sampler="heun", guidance_scale=1.5),
)
PROMPTED = replace(
    SPEC,
    name="prompted",
    makes=(ImageSpec(width_px=8, height_px=8, channels=3),),
    codes=CodesSpec(grid=(2, 2), size=16, fingerprint="a" * 16),
    labels={"style": ("noto", "fluent-flat"), "group": ("food",), "mood": ("glad", "sad")},
    takes_prompt=True,
    example_prompt="a smiling cat",
)
BLOB = BlobReference(sha256="0" * 64, media_type="image/png")
OTHER = replace(SPEC, name="other", codes=CodesSpec(grid=(2, 2), size=16, fingerprint="f" * 16))
CODER = replace(OTHER, name="coder", prior=None, labels={}, defaults=Options())


@pytest.fixture
def catalog(tmp_path):
    for spec in (SPEC, OTHER):
        (tmp_path / spec.name).mkdir()
        spec.save(tmp_path / spec.name / "pipeline.json")
    return Catalog.load(tmp_path, ["tiny", "other"])


def test_pipelines_are_sorted_by_name_unless_named(tmp_path, catalog):
    assert Catalog.load(tmp_path).names == ("other", "tiny")
    assert Catalog.load(tmp_path, ["tiny"]).names == ("tiny",)
    assert [info.name for info in catalog.info()] == ["tiny", "other"]


def test_info_says_what_a_request_gets_that_names_nothing(catalog):
    info = catalog.info()[0]

    defaults = {name: option.default for name, option in info.options.items()}
    assert defaults == {"num_steps": 5, "sampler": "heun", "guidance_scale": 1.5, "strength": 0.6}
    assert "250" in str(info.options["num_steps"].json_schema)
    assert info.makes[0].sizes == {"width_px": 8, "height_px": 8, "channels": 1}
    assert info.makes[0].formats == ("png", "webp", "jpeg")
    assert (info.grid, info.codebook_size) == ((2, 2), 16)
    assert catalog.resolve(info.example).labels == {"class": 1}


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no pipeline"):
        Catalog.load(tmp_path)


def test_a_name_that_is_not_there_is_refused_with_those_that_are(tmp_path, catalog):
    with pytest.raises(ConfigError, match=r"there is no 'tyni'; known are other, tiny"):
        Catalog.load(tmp_path, ["tyni"])


def test_two_pipelines_of_one_name_are_refused(tmp_path, catalog):
    (tmp_path / "copy").mkdir()
    SPEC.save(tmp_path / "copy" / "pipeline.json")

    with pytest.raises(ConfigError, match="several pipelines are named 'tiny'"):
        Catalog.load(tmp_path)


def test_a_broken_pipeline_is_refused_by_its_path(tmp_path, catalog):
    raw = json.loads((tmp_path / "tiny" / "pipeline.json").read_text())
    (tmp_path / "tiny" / "pipeline.json").write_text(json.dumps(raw | {"colour": "red"}))

    with pytest.raises(ConfigError, match=r"tiny/pipeline\.json: colour: there is no such field$"):
        Catalog.load(tmp_path)


def test_resolving_makes_every_choice(catalog):
    resolved = catalog.resolve(GenerateRequest(class_label="sneaker"))

    assert resolved == Resolved(
        operation="generate",
        pipeline="tiny",
        num_samples=1,
        seed=resolved.seed,
        options={"num_steps": 5, "guidance_scale": 1.5, "sampler": "heun"},
        labels={"class": 1},
        format="png",
    )
    assert resolved.seed is not None
    assert catalog.resolve(GenerateRequest()).seed != resolved.seed


def test_resolving_keeps_what_was_asked_for(catalog):
    asked = {"num_steps": 9, "guidance_scale": 0, "sampler": "euler"}
    resolved = catalog.resolve(GenerateRequest(pipeline="other", seed=0, num_outputs=3, **asked))
    assert (resolved.pipeline, resolved.seed, resolved.num_samples, resolved.options) == (
        "other",
        0,
        3,
        asked,
    )


@pytest.mark.parametrize(("label", "number"), [("t-shirt/top", 0), (" SNEAKER ", 1), ("1", 1), (0, 0)])
def test_a_class_is_found_by_name_or_number(catalog, label, number):
    assert catalog.resolve(GenerateRequest(class_label=label)).labels == {"class": number}
    assert catalog.resolve(GenerateRequest(labels={"class": label})).labels == {"class": number}


def test_an_unknown_class_is_refused_with_the_known_ones(catalog):
    with pytest.raises(
        InvalidRequest, match=r"class_label: tiny has no class 'boot'; known are T-shirt/top, Sneaker"
    ):
        catalog.resolve(GenerateRequest(class_label="boot"))
    with pytest.raises(InvalidRequest, match=r"class_label: tiny has numbers 0 to 1, got 2"):
        catalog.resolve(GenerateRequest(class_label=2))


def test_among_many_classes_the_nearest_are_told(tmp_path):
    names = (*(f"class {letter}" for letter in "abcdefghijklmnopqrstuvwxy"), "tench")
    (tmp_path / "many").mkdir()
    replace(SPEC, labels={"class": names}).save(tmp_path / "many" / "pipeline.json")

    with pytest.raises(InvalidRequest, match=r"known are tench and 25 others; see /pipelines"):
        Catalog.load(tmp_path).resolve(GenerateRequest(class_label="tensh"))


@pytest.mark.parametrize(
    "request_", [GenerateRequest(pipeline="no"), EncodeRequest(pipeline="no", source="AAAA")]
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
        ([[[0, 1]]], r"codes\[0\]: tiny has 2 x 2 codes, so 2 here; got 1 of them"),
        ([[[0, 1], [2]]], r"codes\[0\]\[1\]: tiny has 2 x 2 codes, so 2 here; got 1 of them"),
        ([[[0, 1], [True, 0]]], r"codes\[0\]\[1\]\[0\]: a code is from 0 to 15, got true"),
        ([[0, 1], [2, 3]], r"codes\[0\]\[0\]: tiny has 2 x 2 codes, so 2 here; got no list"),
        ([[[0, 1], []]], r"codes\[0\]\[1\]: tiny has 2 x 2 codes, so 2 here; got 0 of them"),
    ],
)
def test_bad_codes_are_refused_by_index_value_and_limit(catalog, codes, message):
    with pytest.raises(InvalidCodes, match=message):
        catalog.resolve(DecodeRequest(codes=codes, tokenizer=SPEC.codes.fingerprint))


def test_codes_of_a_foreign_tokenizer_are_refused(catalog):
    foreign = DecodeRequest(codes=[[[0, 1], [2, 3]]], tokenizer="a" * 16)
    with pytest.raises(InvalidCodes, match=r"made by aaaaaaaaaaaaaaaa.*0123456789abcdef \(tiny\)"):
        catalog.resolve(foreign)
    with pytest.raises(InvalidCodes, match="made by f"):
        catalog.resolve(DecodeRequest(codes=[[[0, 1], [2, 3]]], tokenizer="f" * 16, pipeline="tiny"))


@pytest.fixture
def mixed(tmp_path):
    for spec in (SPEC, PROMPTED):
        (tmp_path / spec.name).mkdir()
        spec.save(tmp_path / spec.name / "pipeline.json")
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
    assert resolved.labels == {"style": 1, "group": 0}
    assert mixed.resolve(GenerateRequest(style=1)).labels == {"style": 1}
    assert mixed.resolve(GenerateRequest(labels={"mood": "sad", "style": 0})).labels == {
        "mood": 1,
        "style": 0,
    }


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"style": "neon"}, r"style: prompted has no style 'neon'; known are noto, fluent-flat"),
        ({"style": 2}, r"style: prompted has numbers 0 to 1, got 2"),
        ({"class_label": "boot"}, r"class_label: tiny has no class 'boot'"),
        ({"pipeline": "tiny", "prompt": "a cat"}, r"prompt: tiny takes no prompt; it takes class_label$"),
        (
            {"pipeline": "prompted", "class_label": 0},
            r"class_label: prompted takes no class; it takes style, group, labels.mood, prompt, ",
        ),
        ({"class_label": 0, "background": "transparent"}, r"background: transparent is for colour pipelines"),
        ({"labels": {"mood": "cross"}}, r"labels.mood: prompted has no mood 'cross'; known are glad, sad"),
        ({"labels": {"style": 0}, "style": 1}, r"style: is short for labels.style; send one of the two"),
        ({"labels": {"hue": 0}}, r"labels.hue: tiny takes no labels.hue; it takes class_label"),
        ({"num_images": 1, "num_outputs": 1}, r"num_images: is the older name of num_outputs"),
        ({"width_px": 128}, r"width_px: tiny makes 8 only, got 128"),
        ({"format": "gif"}, r"format: image files are png, webp, jpeg, got 'gif'"),
        ({"prompt": "x", "background": "transparent", "format": "jpeg"}, r"got prompted as jpeg"),
    ],
)
def test_what_a_pipeline_does_not_know_is_refused_by_name(mixed, asked, said):
    with pytest.raises(InvalidRequest, match=said):
        mixed.resolve(GenerateRequest(**asked))


def test_info_of_a_pipeline_that_takes_prompts(mixed):
    info = mixed.info()[1]
    assert info.takes_prompt
    assert info.labels["style"] == ("noto", "fluent-flat")
    assert (info.example.prompt, info.example.style) == ("a smiling cat", "noto")
    assert mixed.resolve(info.example).pipeline == "prompted"


def test_a_pipeline_without_a_prior_encodes_and_decodes_only(tmp_path):
    (tmp_path / "coder").mkdir()
    CODER.save(tmp_path / "coder" / "pipeline.json")
    catalog = Catalog.load(tmp_path)
    assert catalog.info()[0].example is None
    with pytest.raises(InvalidRequest, match="coder has no prior: it encodes and decodes only"):
        catalog.resolve(GenerateRequest())


def test_the_codes_object_of_a_result_is_decoded_as_it_is(catalog):
    codes = CodesInfo(codes=[[[0, 15], [1, 2]]], grid=(2, 2), codebook_size=16, tokenizer="f" * 16)
    resolved = catalog.resolve(DecodeRequest(codes=codes))
    assert (resolved.pipeline, resolved.codes) == ("other", [[[0, 15], [1, 2]]])
    with pytest.raises(InvalidCodes, match="tokenizer: is required beside codes"):
        catalog.resolve(DecodeRequest(codes=[[[0, 15], [1, 2]]]))


@pytest.mark.parametrize(
    ("grids", "tokenizer", "said"),
    [
        (65, None, "codes: 1 to 64 grids, got 65"),
        (0, None, "codes: 1 to 64 grids, got 0"),
        (1, "a" * 16, "tokenizer: got aaaaaaaaaaaaaaaa, but the codes were made by ffffffffffffffff"),
    ],
)
def test_a_codes_object_is_held_to_the_same_limits(catalog, grids, tokenizer, said):
    codes = CodesInfo(codes=[[[0, 15], [1, 2]]] * grids, grid=(2, 2), codebook_size=16, tokenizer="f" * 16)
    with pytest.raises(InvalidCodes, match=said):
        catalog.resolve(DecodeRequest(codes=codes, tokenizer=tokenizer))


def test_the_codes_of_a_failed_sample_are_refused_by_index(catalog):
    codes = CodesInfo(codes=[[[0, 1], [2, 3]], None], grid=(2, 2), codebook_size=16, tokenizer="f" * 16)
    with pytest.raises(InvalidCodes, match=r"codes\[1\]: is null, as its sample failed; leave it out"):
        catalog.resolve(DecodeRequest(codes=codes))


@pytest.mark.parametrize("names", [("cat", "Cat "), ("cat", "")])
def test_labels_that_no_request_could_tell_apart_are_refused(names):
    with pytest.raises((ConfigError, ValueError), match="the names of class must differ and not be empty"):
        replace(SPEC, labels={"class": names})


def test_a_tokenizer_that_no_client_chose_is_told(catalog):
    (warning,) = catalog.resolve(EncodeRequest(source="AAAA"), [BLOB]).warnings
    assert warning.startswith("pipeline: none was named, so tiny encodes, at 8 x 8 px: ")
    assert "return_psnr" in warning
    assert catalog.resolve(EncodeRequest(source="AAAA", pipeline="tiny"), [BLOB]).warnings == ()
    assert catalog.resolve(GenerateRequest(class_label=0)).warnings == ()
