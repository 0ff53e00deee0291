import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from models.autoencoders.vqgan import Vqgan
from models.importers.base import ImportFailed, Source
from models.registry import IMPORTERS
from tests.models.importers.published import full_size, small, weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import VQModel

DDCONFIG = {
    "double_z": False,
    "z_channels": 8,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [16],
    "dropout": 0.0,
}
TAMING = {
    "model": {
        "target": "taming.models.vqgan.VQModel",
        "params": {"embed_dim": 4, "n_embed": 64, "ddconfig": DDCONFIG},
    }
}
IBQ = {"model": {"class_path": "src.IBQ.models.ibqgan.IBQ", "init_args": TAMING["model"]["params"]}}
NOATTN = {
    "model": {
        "params": {
            "ddconfig": {"tanh_out": True, "attn_type": "none", "resolution": 32, "attn_resolutions": []}
        }
    }
}
SIZE = {"image_size_px": "32"}


def imported(source, settings=()):
    """Return what the importer makes of a source that recognises it; exactly one does."""
    found = [module for module in map(import_module, IMPORTERS.values()) if module.recognises(source)]
    assert len(found) == 1
    return found[0].read(source, dict(settings))


def source_of(tensors, config=None, parts=None):
    return Source(Path("model.ckpt"), tensors, config or {}, parts=parts or {})


def loaded(made):
    vqgan = Vqgan(made.config)
    vqgan.load_state_dict(made.tensors)
    return vqgan.eval().requires_grad_(False)


def assert_same_results(vqgan, results):
    """Compare with what the authors' code made: codes equal, numbers within 1e-5, pixels in [-1, 1]."""

    def in_house_range(images):
        return images * 2 - 1 if vqgan.config.is_from_zero else images

    latents = vqgan.encode(in_house_range(results["images"]))
    assert torch.allclose(latents, results["latents"], atol=1e-5)
    codes = vqgan.quantize(latents).codes
    assert torch.equal(codes, results["codes"].long())
    decoded = vqgan.decode(vqgan.lookup(codes))
    assert torch.allclose(decoded, in_house_range(results["decoded"]), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "config", "settings", "lookup"),
    [
        ("taming", TAMING, {}, "euclidean"),
        ("gumbel", None, SIZE, "scores"),
        ("ldm-noattn", NOATTN, {}, "euclidean"),
        ("ibq", IBQ, {}, "dot_product"),
        ("ibq", None, SIZE | {"lookup": "dot_product"}, "dot_product"),
        ("llamagen", None, SIZE, "cosine"),
        ("open-magvit2", None, SIZE, "signs"),
        ("simvq", None, SIZE, "euclidean"),
        ("maskgit", None, SIZE, "euclidean"),
    ],
)
def test_imported_model_computes_what_its_authors_code_does(name, config, settings, lookup):
    tensors, results = small(name)
    made = imported(source_of(tensors, config), settings)
    assert (made.role, made.kind, made.config.lookup, made.config.image_size_px) == (
        "autoencoder",
        "vqgan",
        lookup,
        32,
    )
    assert_same_results(loaded(made), results)


def test_autoencoder_inside_a_whole_diffusion_model_is_the_same():
    tensors, results = small("taming")
    whole = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    whole |= {"model.diffusion_model.out.2.weight": torch.zeros(2), "model_ema.decay": torch.zeros(())}
    stage = {"target": "ldm.models.autoencoder.VQModelInterface", "params": TAMING["model"]["params"]}
    made = imported(source_of(whole, {"model": {"params": {"first_stage_config": stage}}}))
    assert_same_results(loaded(made), results)
    assert any("whole diffusion model" in note for note in made.notes)


def test_moving_averages_are_taken_where_authors_evaluate_with_them():
    tensors, results = small("ibq")
    trained = {name: tensor + 1 for name, tensor in tensors.items()}
    averages = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in tensors.items()}
    others = {"model_ema.decay": torch.tensor(0.999), "loss.discriminator.main.0.weight": torch.zeros(3)}
    made = imported(source_of({**trained, **averages, **others}, IBQ))
    assert_same_results(loaded(made), results)
    assert [note for note in made.notes if "averages of its training were taken" in note]
    del averages["model_ema.encoderconv_inbias"]
    with pytest.raises(ImportFailed, match=r"1 of \d+ tensors have no moving average.*encoder.conv_in.bias"):
        imported(source_of({**trained, **averages}, IBQ))


def test_moving_averages_and_losses_of_others_are_left_out():
    tensors, results = small("taming")
    others = {"model_ema.encoderconv_inbias": torch.ones(32), "loss.logvar": torch.zeros(())}
    made = imported(source_of({**tensors, **others}, TAMING))
    assert_same_results(loaded(made), results)
    assert [note for note in made.notes if "weights=ema takes them" in note]


def test_half_precision_weights_are_served_in_float32():
    tensors, _ = small("maskgit")
    made = imported(source_of({name: tensor.half() for name, tensor in tensors.items()}), SIZE)
    assert {tensor.dtype for tensor in made.tensors.values()} == {torch.float32}


def test_weights_that_are_whole_numbers_are_refused():
    tensors, _ = small("maskgit")
    tensors["encoder.conv_in.weight"] = tensors["encoder.conv_in.weight"].char()
    with pytest.raises(ImportFailed, match=r"encoder.conv_in.weight is torch.int8, expected floating point"):
        imported(source_of(tensors), SIZE)


@pytest.mark.parametrize(
    ("name", "downsample_factor", "codebook", "lookup"),
    [
        ("taming-imagenet-f16-1024", 16, (1024, 256), "euclidean"),
        ("taming-imagenet-f16-16384", 16, (16384, 256), "euclidean"),
        ("taming-openimages-gumbel-f8", 8, (8192, 256), "scores"),
        ("ldm-vq-f4", 4, (8192, 3), "euclidean"),
        ("ldm-vq-f4-noattn", 4, (8192, 3), "euclidean"),
        ("ldm-vq-f8", 8, (16384, 4), "euclidean"),
        ("ldm-vq-f16", 16, (16384, 8), "euclidean"),
        ("llamagen-vq-ds16-c2i", 16, (16384, 8), "cosine"),
        ("llamagen-vq-ds8-c2i", 8, (16384, 8), "cosine"),
        ("ibq-imagenet-262144", 16, (262144, 256), "dot_product"),
        ("open-magvit2-256", 16, (262144, 18), "signs"),
        ("simvq-128", 8, (1024, 128), "euclidean"),
        ("maskgit-imagenet-f16", 16, (1024, 256), "euclidean"),
    ],
)
def test_every_tensor_of_the_full_size_has_its_place(name, downsample_factor, codebook, lookup):
    settings = {"lookup": "dot_product"} if name.startswith("ibq") else {}
    made = imported(source_of(full_size(name)), settings)
    config = made.config
    assert config.network.downsample_factor == downsample_factor
    assert (config.codebook_size, config.code_channels) == codebook
    assert config.lookup == lookup
    with torch.device("meta"):
        expected = Vqgan(config).state_dict()
    assert {n: t.shape for n, t in made.tensors.items()} == {n: t.shape for n, t in expected.items()}


def diffusers_model(**fields):
    torch.manual_seed(0)
    given = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "latent_channels": 3,
        "vq_embed_dim": 4,
        "num_vq_embeddings": 40,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    model = VQModel(**given | fields).eval().requires_grad_(False)
    model.load_state_dict(weights({name: tensor.shape for name, tensor in model.state_dict().items()}))
    return model


def diffusers_results(model):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = model.encode(images).latents
    codes = model.quantize(latents)[2][2].view(2, 8, 8)
    return {
        "images": images,
        "latents": latents,
        "codes": codes,
        "decoded": model.decode(latents).sample.clamp(-1, 1),
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mid_block_add_attention": False, "layers_per_block": 2},
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "vq_embed_dim": None,
        },
    ],
)
def test_vqmodel_that_diffusers_saved_computes_what_diffusers_does(tmp_path, fields):
    from safetensors.torch import load_file

    model = diffusers_model(**fields)
    model.save_pretrained(tmp_path)
    config = VQModel.load_config(tmp_path)
    made = imported(Source(tmp_path, load_file(tmp_path / "diffusion_pytorch_model.safetensors"), config))
    assert made.config.image_size_px == 16
    assert_same_results(loaded(made), diffusers_results(model))


def test_vqmodel_with_the_names_of_former_versions_is_the_same():
    model = diffusers_model()
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    former = model.state_dict()
    for now, then in names.items():
        former = {name.replace(now, then): tensor for name, tensor in former.items()}
    assert any("proj_attn" in name for name in former)
    made = imported(source_of(former, dict(model.config) | {"_class_name": "VQModel"}))
    assert_same_results(loaded(made), diffusers_results(model))


@pytest.mark.parametrize(
    "fields",
    [
        {"block_out_channels": (128, 256, 512), "num_vq_embeddings": 8192},  # latent diffusion's f4
        {  # aMUSEd's
            "block_out_channels": (128, 256, 256, 512, 768),
            "latent_channels": 64,
            "num_vq_embeddings": 8192,
            "mid_block_add_attention": False,
            "lookup_from_codebook": True,
        },
    ],
)
def test_every_tensor_of_a_full_size_vqmodel_has_its_place(fields):
    levels = len(fields["block_out_channels"])
    with torch.device("meta"):
        model = VQModel(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=2,
            **fields,
        )
    made = imported(source_of(model.state_dict(), dict(model.config) | {"_class_name": "VQModel"}))
    assert made.config.network.downsample_factor == 2 ** (levels - 1)
    assert made.config.image_size_px == 256  # the class's own sample_size of 32 says nothing
    assert "--set image_size_px=" in made.notes[0]


def diffusers_source(**fields):
    model = diffusers_model()
    return source_of(model.state_dict(), dict(model.config) | {"_class_name": "VQModel"} | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"act_fn": "relu"}, "act_fn must be 'silu', got 'relu'"),
        ({"norm_type": "spatial"}, "norm_type must be 'group', got 'spatial'"),
        ({"out_channels": 1}, "must be the same, got 3 and 1"),
        ({"down_block_types": ["DownBlock2D"]}, "down_block_types must be a list of DownEncoderBlock2D and"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 2}, "must have attention at the same levels"),
        ({"block_out_channels": [8]}, "as many as block_out_channels"),
        ({"norm_num_groups": 0}, "this shape of a LdmConfig is not known: num_groups"),
        ({"num_vq_embeddings": 41}, r"1 of another shape \(quantize.embedding.weight \(40, 4\), expected"),
        ({"layers_per_block": 2}, "missing"),
    ],
)
def test_vqmodel_whose_configuration_does_not_fit_is_refused(fields, message):
    with pytest.raises(ImportFailed, match=message):
        imported(diffusers_source(**fields))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embed": 65}, "says n_embed 65, but the tensors are those of 64"),
        ({"embed_dim": 8}, "says embed_dim 8, but the tensors are those of 4"),
        ({"ddconfig": DDCONFIG | {"ch_mult": [1, 1]}}, r"ddconfig.ch_mult \[1, 1\], but .* \[1, 2\]"),
        ({"ddconfig": DDCONFIG | {"num_res_blocks": 2}}, "ddconfig.num_res_blocks 2, but .* 1"),
        ({"ddconfig": DDCONFIG | {"attn_resolutions": [32]}}, r"ddconfig.attn_resolutions: levels \[0\]"),
        ({"l2_normalize": True}, "says l2_normalize: no published"),
    ],
)
def test_yaml_that_contradicts_the_weights_is_refused(change, message):
    tensors, _ = small("taming")
    config = {"model": {"params": TAMING["model"]["params"] | change}}
    with pytest.raises(ImportFailed, match=message):
        imported(source_of(tensors, config))


@pytest.mark.parametrize("name", ["taming", "llamagen", "maskgit", "open-magvit2", "simvq"])
def test_missing_and_left_over_tensors_are_named(name):
    tensors, _ = small(name)
    gone = next(each for each in tensors if each.startswith("decoder.") and each.endswith("norm_out.weight"))
    source = source_of({each: tensor for each, tensor in tensors.items() if each != gone})
    with pytest.raises(ImportFailed, match=f"1 missing .{gone}"):
        imported(source, SIZE)
    with pytest.raises(ImportFailed, match=r"1 left over \(quantize.used"):
        imported(replace(source, tensors={**tensors, "quantize.used": torch.zeros(64)}), SIZE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size_px": "big"}, "image_size_px must be a whole number, got 'big'"),
        ({"image_size_px": "33"}, "image_size_px must be a multiple of 2"),
        ({"lookup": "cosine"}, "lookup must be euclidean or dot_product, got 'cosine'"),
    ],
)
def test_settings_that_can_not_be_are_refused(settings, message):
    tensors, _ = small("taming")
    with pytest.raises(ImportFailed, match=message):
        imported(source_of(tensors), settings)


def test_lookup_of_weights_without_their_yaml_is_asked_for_where_it_can_not_be_told():
    with pytest.raises(
        ImportFailed, match="put the file there, or give --set lookup=euclidean or dot_product"
    ):
        imported(source_of(full_size("ibq-imagenet-262144")))


def test_pictures_are_as_large_as_those_of_the_training():
    tensors, _ = small("open-magvit2")
    config = {"data": {"init_args": {"train": {"params": {"config": {"size": 64}}}}}}
    assert imported(source_of(tensors, config)).config.image_size_px == 64
    made = imported(source_of(tensors))
    assert made.config.image_size_px == 256
    assert "--set image_size_px=" in made.notes[0]
