"""Small class-conditional priors of diffusers, with random weights, and how its pipeline samples with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from models.conditioning import Conditions
from models.importers.sources import open_source
from models.options import Options
from models.priors.class_prior import ClassPrior
from models.priors.flow import draw_noise
from models.stage import Sample, SampleSpec, run_path

NUM_CLASSES = 10


def transformer(**config: Any) -> DiTTransformer2DModel:
    """Return a small one, whose output is about as large as noise."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=NUM_CLASSES,
        **({"out_channels": 8} | config),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    first, *others = model.transformer_blocks
    for block in others:
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    return model.eval()


def save_pipeline(folder: Path, model: DiTTransformer2DModel, scheduler: Any) -> Path:
    """Write what a pipeline of diffusers has in its folder, but for the autoencoder."""
    model.save_pretrained(folder / "transformer")
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(
        '{"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"],'
        f' "scheduler": ["diffusers", "{type(scheduler).__name__}"]}}'
    )
    return folder


@torch.inference_mode()
def sample_theirs(
    model: DiTTransformer2DModel,
    scheduler: Any,
    labels: Sequence[int],
    *,
    num_steps: int,
    guidance_scale: float,
    seed: int,
) -> Tensor:
    """Sample as ``DiTPipeline`` does, with the noise that we draw."""
    shape = (model.config.in_channels, model.config.sample_size, model.config.sample_size)
    x = torch.stack([draw_noise(shape, seed, index) for index in range(len(labels))])
    classes = torch.tensor([*labels, *[NUM_CLASSES] * len(labels)])
    scheduler.set_timesteps(num_steps)
    for step, timestep in enumerate(scheduler.timesteps):
        output = model(
            torch.cat([x, x]), timestep=timestep.expand(len(classes)), class_labels=classes
        ).sample[:, : shape[0]]
        own, null = output.chunk(2)
        guided = null + guidance_scale * (own - null)
        if type(scheduler).__name__ == "DDPMScheduler":
            noise = torch.stack([draw_noise(shape, seed, index, step + 1) for index in range(len(labels))])
            x = _with_noise(scheduler, guided, timestep, x, noise)
        else:
            x = scheduler.step(guided, timestep, x).prev_sample
    return x


def _with_noise(scheduler: Any, output: Tensor, timestep: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """Return a step of ``DDPMScheduler`` with this noise: it draws its own, by a function of its module."""
    module = __import__("diffusers.schedulers.scheduling_ddpm", fromlist=["randn_tensor"])
    drawn = module.randn_tensor
    module.randn_tensor = lambda *args, **kwargs: noise
    try:
        return scheduler.step(output, timestep, x).prev_sample
    finally:
        module.randn_tensor = drawn


def sample_ours(prior: ClassPrior, labels: Sequence[int], options: Options, seed: int) -> Tensor:
    """Return latents (B, C, h, w), each of a label."""
    null = prior.null_conditions()
    samples = [
        Sample(SampleSpec(seed, options, Conditions(torch.tensor([[label]])), null), index)
        for index, label in enumerate(labels)
    ]
    run_path((prior.make_stage(len(samples)),), samples)
    return torch.stack([sample.value for sample in samples if sample.value is not None])


def load_prior(imported: Any, folder: Path) -> ClassPrior:
    """Return a prior as a pipeline loads it."""
    from models.checkpoint import save_checkpoint

    save_checkpoint(folder / "prior.safetensors", dict(imported.tensors), imported.config)
    prior = ClassPrior.load(folder / "prior.safetensors")
    prior.network.eval().requires_grad_(False)
    return prior


def opened(path: Path) -> Any:
    return open_source(path)
