"""Training on a GPU: it waits for nothing between logged steps, and draws what it drew before."""

from pathlib import Path

import pytest
import torch

from models.autoencoders.vq import TokenizerConfig
from models.conditioning import Conditions
from models.networks.dit import DiT, DiTConfig
from training.compiling import Compiler
from training.examples import Captions, Examples
from training.fit import fit
from training.prior import PriorTrainingConfig, make_loss
from training.run import Processes, Run, generator_for

pytestmark = pytest.mark.gpu
CONFIG = DiTConfig(
    grid=(4, 4), hidden_size=32, depth=2, num_heads=2, label_sizes=(3,), text_tokens=2, text_channels=4
)


def test_no_step_waits_for_the_device_but_those_that_are_logged(tmp_path: Path) -> None:
    processes = Processes.join(None)
    config = PriorTrainingConfig(
        tokenizer=tmp_path / "none",
        folder=tmp_path / "run",
        output=tmp_path / "out",
        batch_size=8,
        num_steps=40,
        log_every=10,
        is_compiled=False,
    )
    examples = Examples(
        targets=torch.randn(64, 4, 4, 4).bfloat16(),
        labels=torch.arange(64)[:, None] % 3,
        captions=Captions(torch.arange(64)[:, None], torch.ones(64).long(), torch.randn(64, 2, 4).bfloat16()),
        preview_conditions=Conditions(torch.zeros(0, 1, dtype=torch.long)),
    ).kept_by(processes.keep)
    assert examples.targets.is_cuda
    network = DiT(CONFIG).to(processes.device)
    compiler = Compiler(is_on=False)
    loss_of = make_loss(config, processes, compiler, network, examples)

    def watched_loss_of(step: int) -> torch.Tensor:
        # From here to the next step's beginning: backward, optimisers, average. A step in 10 is logged.
        torch.cuda.set_sync_debug_mode("error" if 0 < step % 10 < 9 else "default")
        return loss_of(step)

    try:
        with Run(config, processes, resume=False) as run:
            fit(run, compiler, network, config, watched_loss_of, save_preview=lambda *_: None, made_from={})
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_draws_the_same_again_on_the_device() -> None:
    drawn = [
        torch.randn(5, generator=generator_for(0, step, device="cuda"), device="cuda").tolist()
        for step in (3, 4, 3)
    ]
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_tokenizers_images_are_kept_on_the_device() -> None:
    images = torch.zeros(4, 1, *[TokenizerConfig().image_size_px] * 2, dtype=torch.uint8)
    assert Processes.join(None).keep(images).is_cuda
