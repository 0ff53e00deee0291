"""Measure imported models against diffusers: the same weights, steps and precision, taking turns.

    python benchmarks/imported.py [--steps 20] [--batch-sizes 1,8] [--rounds 5] [--threads 1]

prior  a DiT-S/2 for pictures of 256 px (latents 4×32×32), bfloat16, DDIM, guided: images a second, sampled
       alone, against the loop of DiTPipeline without its decoder
vq     decoding codes to 256 px by the tokenizer VQ f8 of latent-diffusion, float32: images a second

Weights are random: speed doesn't depend on them. One line of JSON for each row, and a table at the end.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, VQModel
from torch import Tensor

from models.autoencoders.vq import channels_last
from models.autoencoders.vqgan import Vqgan
from models.conditioning import Conditions
from models.importers import diffusers_dit, diffusers_vq
from models.importers.base import Source
from models.networks.class_dit import ClassDiT
from models.noise import draw_noise
from models.options import DiffusionOptions
from models.priors.class_prior import ClassPrior
from models.stage import Sample, SampleSpec, run_path

GUIDANCE_SCALE = 4.0
DIT_S_2 = {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12, "sample_size": 32}
DIT_TINY = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 8}
VQ_F8 = {
    "block_out_channels": [128, 256, 256, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "num_vq_embeddings": 16384,
    "sample_size": 256,
}
VQ_TINY = {"block_out_channels": [32, 32], "num_vq_embeddings": 64, "sample_size": 64}


@dataclass(frozen=True)
class Row:
    """What one comparison found; medians."""

    part: str
    batch_size: int
    ours_per_s: float
    diffusers_per_s: float

    @property
    def ratio(self) -> float:
        return self.ours_per_s / self.diffusers_per_s


def compare_priors(
    config: dict[str, Any], steps: int, batch_sizes: Sequence[int], rounds: int
) -> Iterator[Row]:
    """Yield a row for each batch size."""
    theirs = random_dit(config)
    scheduler = DDIMScheduler(clip_sample=False)
    parts = {"scheduler": Source(Path("scheduler"), {}, dict(scheduler.config))}
    said = {**theirs.config, "_class_name": "DiTTransformer2DModel"}
    imported = diffusers_dit.read(Source(Path("dit"), theirs.state_dict(), said, parts=parts), {})
    network = ClassDiT(imported.config.network)
    network.load_state_dict(dict(imported.tensors))
    prior = ClassPrior(network.to(torch.bfloat16).eval().requires_grad_(False), imported.config)
    theirs = theirs.to(torch.bfloat16)
    options = DiffusionOptions(num_steps=steps, guidance_scale=GUIDANCE_SCALE)
    for size in batch_sizes:
        labels = [number % 1000 for number in range(size)]
        stage = prior.make_stage(size)
        null = prior.null_conditions()

        def ours(labels: list[int] = labels, stage: Any = stage, null: Conditions = null) -> Tensor:
            specs = [SampleSpec(0, options, Conditions(torch.tensor([[label]])), null) for label in labels]
            samples = [Sample(spec, index) for index, spec in enumerate(specs)]
            run_path((stage,), samples)
            return torch.stack([each.value for each in samples if each.value is not None])

        def loop(labels: list[int] = labels) -> Tensor:
            return sample_with_diffusers(theirs, scheduler, labels, steps)

        yield Row("prior", size, *taking_turns(ours, loop, size, rounds))


def random_dit(config: dict[str, Any]) -> DiTTransformer2DModel:
    """Return a transformer of diffusers with random weights."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(out_channels=8, **config).eval()
    for parameter in transformer.parameters():  # those of the output are zero at first
        torch.nn.init.normal_(parameter, std=0.02)
    for block in transformer.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(transformer.transformer_blocks[0].norm1.emb.state_dict())
    return transformer


@torch.inference_mode()
def sample_with_diffusers(
    model: DiTTransformer2DModel, scheduler: DDIMScheduler, labels: list[int], steps: int
) -> Tensor:
    """Return latents as ``DiTPipeline`` makes them, before its decoder."""
    side, channels = model.config.sample_size, model.config.in_channels
    noise = [draw_noise((channels, side, side), 0, index) for index in range(len(labels))]
    x = torch.stack(noise).to(model.dtype)
    classes = torch.tensor([*labels, *[1000] * len(labels)])
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        output = model(torch.cat([x, x]), timestep=timestep.expand(len(classes)), class_labels=classes).sample
        own, null = output[:, :channels].chunk(2)
        x = scheduler.step(null + GUIDANCE_SCALE * (own - null), timestep, x).prev_sample
    return x


@torch.inference_mode()
def compare_decoders(config: dict[str, Any], batch_sizes: Sequence[int], rounds: int) -> Iterator[Row]:
    """Yield a row for each batch size; the images agree, or it is an error."""
    torch.manual_seed(0)
    levels = len(config["block_out_channels"])
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    theirs = VQModel(**blocks, **config).eval()
    said = {**theirs.config, "_class_name": "VQModel"}
    imported = diffusers_vq.read(
        Source(Path("vq"), theirs.state_dict(), said), {"image_size_px": str(config["sample_size"])}
    )
    ours = Vqgan(imported.config).eval()
    ours.load_state_dict(dict(imported.tensors))
    channels_last(ours).requires_grad_(False)
    for size in batch_sizes:
        codes = torch.randint(0, config["num_vq_embeddings"], (size, *ours.latent_shape[1:]))
        latents = theirs.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, ours.latent_shape[0]))

        def decode(codes: Tensor = codes) -> Tensor:
            return ours.decode(ours.lookup(codes))

        def decode_theirs(latents: Tensor = latents) -> Tensor:
            return theirs.decode(latents, force_not_quantize=True).sample

        torch.testing.assert_close(decode(), decode_theirs().clamp(-1, 1), atol=1e-3, rtol=1e-3)
        yield Row("vq", size, *taking_turns(decode, decode_theirs, size, rounds))


def taking_turns(
    ours: Callable[[], Tensor], theirs: Callable[[], Tensor], size: int, rounds: int
) -> tuple[float, float]:
    """Return images a second of both, the medians of as many rounds; one goes before, uncounted."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for call, into in zip((ours, theirs), times, strict=True):
            began_s = time.perf_counter()
            call()
            if number:
                into.append(time.perf_counter() - began_s)
    return size / statistics.median(times[0]), size / statistics.median(times[1])


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="prior,vq", help="parts, with commas between")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="small models, to see that it works")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    sizes = [int(size) for size in asked.batch_sizes.split(",")]
    dit, vq = (DIT_TINY, VQ_TINY) if asked.tiny else (DIT_S_2, VQ_F8)
    parts = {
        "prior": lambda: compare_priors(dit, asked.steps, sizes, asked.rounds),
        "vq": lambda: compare_decoders(vq, sizes, asked.rounds),
    }
    rows = []
    for part in asked.only.split(","):
        for row in parts[part]():
            print(json.dumps(asdict(row)), file=sys.stderr, flush=True)
            rows.append(row)
    print("| part | images at once | ours, images/s | diffusers, images/s | ratio |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.part} | {row.batch_size} | {row.ours_per_s:.3g} | {row.diffusers_per_s:.3g}"
            f" | {row.ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
