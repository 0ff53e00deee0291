"""How fast the shipped prior is trained."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from compute import flops_per_row
from figures import ROOT, SHIPPED, Bench, Figure
from torch import Tensor
from untrained import SMALL_PRIOR

from models.conditioning import Conditions
from models.networks.dit import DiT
from models.priors.flow import FlowPrior
from training.compiling import Compiler
from training.config_file import load_config
from training.examples import Examples
from training.fit import fit
from training.prior import PriorTrainingConfig, make_loss
from training.run import Processes, Run


class _Enough(Exception):
    """So many steps are taken."""


def training(bench: Bench) -> Iterator[Figure]:
    """Random examples in the number and shape of fashion-mnist's, and its settings."""
    settings = load_config(ROOT / "training" / "configs" / "fashion-mnist-prior.toml", PriorTrainingConfig)
    shape = SMALL_PRIOR if bench.is_small else DiT.load(SHIPPED / "prior.safetensors").config
    num_warm, seconds = (2, 0.2) if bench.is_small else (60, 15.0)
    labels = torch.arange(60_000)[:, None] % 10
    latents = torch.randn(len(labels), shape.latent_channels, *shape.grid).bfloat16()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            settings,
            folder=Path(folder) / "run",
            is_compiled=not bench.is_small,
            checkpoint_every_s=1e6,
            samples_every=10**9,
        )
        processes = replace(Processes.join(None), device=bench.device)
        network = DiT(shape).to(bench.device)
        compiler = Compiler(is_on=config.is_compiled)
        examples = Examples(latents, labels, None, Conditions(labels[:1])).kept_by(processes.keep)
        loss_of = make_loss(config, processes, compiler, network, examples)
        marks: list[tuple[int, float]] = []  # a step before which the device had nothing to do, and when

        def timed_loss_of(step: int) -> Tensor:
            if step == num_warm or (marks and time.perf_counter() - marks[0][1] > seconds):
                bench.wait()
                marks.append((step, time.perf_counter()))
                if len(marks) == 2:
                    raise _Enough
            return loss_of(step)

        began_at = time.perf_counter()
        try:
            with Run(config, processes, resume=False) as run:
                fit(run, compiler, network, config, timed_loss_of, save_preview=_draw_nothing, made_from={})
        except _Enough:
            pass
    (first_step, first_at), (last_step, last_at) = marks
    rate = (last_step - first_step) / (last_at - first_at)
    yield Figure(f"training: the first {num_warm} steps", first_at - began_at, "s")
    share = 3 * flops_per_row(FlowPrior(network)) * config.batch_size * rate / bench.matrix_rate
    yield Figure(f"training: batches of {config.batch_size}", rate, "steps/s", 150, share)


def _draw_nothing(network: DiT, step: int) -> None:
    """Draw no picture."""
