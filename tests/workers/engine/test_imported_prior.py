"""An imported diffusion prior in the engine: every sampler in one batch, under the seed promise."""

from pathlib import Path

import pytest
import torch

from models.autoencoders.vq import Tokenizer, TokenizerConfig
from models.checkpoint import save_checkpoint
from models.media.image import ImageSpec
from models.networks.class_dit import ClassDiT, ClassDiTConfig
from models.options import DiffusionOptions
from models.pipeline import AUTOENCODER_FILE, PRIOR_FILE, Pipeline
from models.priors.class_prior import ClassPriorConfig
from models.priors.schedules import DiffusionSchedule
from models.spec import SPEC_FILE, CodesSpec, PipelineSpec
from tests.workers.engine.engine_runs import Jobs, digest, run
from workers.engine.engine import Engine
from workers.engine.lanes import Lanes
from workers.engine.seed_promise import SeedPromise
from workers.errors import InvalidRequest

NETWORK = ClassDiTConfig(grid=(8, 8), hidden_size=32, depth=1, num_heads=2, mlp_size=128, num_labels=3)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "imported"
    tokenizer = Tokenizer(
        TokenizerConfig(
            image_channels=3, image_size_px=16, downsample_factor=2, hidden_channels=8, num_blocks=1
        )
    )
    tokenizer.quantizer.codebook.normal_()
    tokenizer.latent_std.fill_(0.01)  # an untrained prior's latents are as large as hundreds
    network = ClassDiT(NETWORK)
    config = ClassPriorConfig(NETWORK, DiffusionSchedule(), guided_channels=3)
    save_checkpoint(folder / AUTOENCODER_FILE, tokenizer.exported(), tokenizer.config)
    save_checkpoint(folder / PRIOR_FILE, network.state_dict(), config)
    PipelineSpec(
        name="imported",
        makes=(ImageSpec(width_px=16, height_px=16, channels=3),),
        latents=tokenizer.latent_shape,
        codes=CodesSpec(tokenizer.config.grid, tokenizer.config.codebook_size, tokenizer.fingerprint()),
        labels={"class": ("cat", "dog", "owl")},
        autoencoders={"image": "vq"},
        prior="dit",
        defaults=DiffusionOptions(num_steps=6, guidance_scale=2.0),
    ).save(folder / SPEC_FILE)
    return tmp_path


def test_samplers_that_share_a_batch_give_the_bytes_that_they_give_alone(weights: Path) -> None:
    jobs = Jobs(weights)
    work = [
        jobs.generate(
            job_id=f"{sampler}{scale}", sampler=sampler, guidance_scale=scale, class_label="owl", seed=4
        )
        for sampler in ("ddim", "ddpm", "dpmpp_2m", "heun")
        for scale in (1.0, 3.0)
    ]

    def engine() -> Engine:
        promise = SeedPromise("on", num_probes=32, candidates=(1, 4, 16))
        made = Engine({"imported": Pipeline.load(weights / "imported")}, 8, promise=promise, lanes=Lanes(1))
        while made.needs_check:
            made.check_seeds(0.05)
        assert made.seed_verdicts()["imported"].is_kept
        return made

    together = run(engine(), work, admit_chance=0.6)
    one_by_one = engine()
    alone = {each.job_id: run(one_by_one, [each])[each.job_id] for each in work}
    assert {job: digest(each) for job, each in together.items()} == {
        job: digest(each) for job, each in alone.items()
    }
    assert len({digest(each) for each in alone.values()}) == len(work)


def test_a_sampler_that_a_pipeline_can_not_do_is_refused_with_those_it_can(weights: Path) -> None:
    jobs = Jobs(weights)
    with pytest.raises(
        InvalidRequest, match="sampler: this pipeline has ddim, ddpm, dpmpp_2m, heun, got 'euler'"
    ):
        jobs.generate(sampler="euler")
    known = jobs.catalog.info()[0].options["sampler"].json_schema["anyOf"][0]["enum"]
    assert known == ["ddim", "ddpm", "dpmpp_2m", "heun"]
