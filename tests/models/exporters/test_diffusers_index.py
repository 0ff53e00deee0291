"""The parts of an exported pipeline are loaded at once by diffusers, with the names of the classes."""

import warnings

import torch

from models.exporters.diffusers_index import write_index
from models.importers.sources import open_source
from models.media.image import ImageSpec
from models.spec import PipelineSpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

SPEC = PipelineSpec(
    name="own",
    makes=(ImageSpec(width_px=16, height_px=16, channels=3),),
    latents=(4, 8, 8),
    autoencoders={"image": "kl"},
    labels={"class": ("cat", "dog")},
)


def test_diffusers_loads_the_whole_pipeline_and_finds_its_classes(tmp_path):
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        num_embeds_ada_norm=2,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    write_index(SPEC, tmp_path)
    assert not (tmp_path / "model_index.json").exists()  # it isn't a pipeline yet

    transformer.save_pretrained(tmp_path / "transformer")
    DDIMScheduler(clip_sample=False).save_pretrained(tmp_path / "scheduler")
    write_index(SPEC, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = DiTPipeline.from_pretrained(tmp_path)
    assert loaded.get_label_ids(["dog", "cat"]) == [1, 0]
    assert torch.equal(loaded.transformer.proj_out_2.weight, transformer.proj_out_2.weight)
    assert open_source(tmp_path).parts.keys() == {"vae", "transformer", "scheduler"}
