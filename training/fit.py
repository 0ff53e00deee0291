"""The loop that fits a prior: schedule, optimisers, average of weights, checkpoints, pictures."""

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.networks.code_transformer import CodeTransformer
from models.networks.dit import DiT
from models.options import Count, UnitTime
from training.checkpoints import State
from training.compiling import Compiler
from training.ema import WeightAverage
from training.muon import BatchedMuon
from training.run import Run, learning_rate_factor

PriorNetwork = DiT | CodeTransformer
AnyNetwork = TypeVar("AnyNetwork", bound=PriorNetwork)


class Stateful(Protocol):
    """What a checkpoint keeps besides network and optimisers, as torch's own classes offer it."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FitConfig:
    """How a prior is fitted, whatever to.

    Matrices inside the blocks are trained with Muon at ``muon_learning_rate``, everything else with AdamW at
    ``learning_rate``. ``folder`` keeps checkpoints and logs. ``in_eight_bits`` halves the file of weights.
    """

    folder: Path
    num_steps: Count
    batch_size: Count
    learning_rate: Annotated[float, Field(gt=0)]
    muon_learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_steps: Annotated[int, Field(ge=0)]
    decay_fraction: UnitTime
    ema_decay: UnitTime
    log_every: Count
    samples_every: Count
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    seed: int = 0
    num_threads: Count | None = None
    is_compiled: bool = True
    in_eight_bits: bool = False
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 120.0


def fit(
    run: Run,
    compiler: Compiler,
    network: AnyNetwork,
    config: FitConfig,
    loss_of: Callable[[int], Tensor],
    *,
    save_preview: Callable[[AnyNetwork, int], None],
    made_from: Mapping[str, str],
    also_saved: Mapping[str, Stateful] | None = None,
) -> None:
    """Take the steps that are left, after which ``network`` has the average of its weights.

    loss_of: the loss of a step, by its number, and the same however often it is asked. made_from: see
    ``Run.load``. save_preview: draws a picture with the average after so many
    steps. also_saved: what else a checkpoint keeps, by name.
    """
    also_saved = also_saved or {}
    device = next(network.parameters()).device
    optimizers = make_optimizers(network, config)
    average = WeightAverage(network, config.ema_decay)
    first_step = 0
    if state := run.load(made_from):
        network.load_state_dict(state["prior"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average.tensors = {name: t.to(device) for name, t in state["average"].items()}
        first_step = state["step"]
        for name, kept in also_saved.items():
            kept.load_state_dict(state[name])

    averaged = copy.deepcopy(network)
    parameters = list(network.parameters())
    loss_sum, num_summed = torch.zeros((), device=device), 0  # read where it is logged: a read waits
    for step in run.steps(first_step):
        factor = learning_rate_factor(step, config.num_steps, config.warmup_steps, config.decay_fraction)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        loss = compiler.run(functools.partial(_backward, loss_of, step, optimizers))
        nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        for optimizer in optimizers:
            optimizer.step()
        average.update(step)

        loss_sum, num_summed = loss_sum + loss, num_summed + 1
        if run.is_logged(step):
            run.log(step, loss=loss_sum.item() / num_summed)
            loss_sum, num_summed = torch.zeros_like(loss_sum), 0
        run.end_step(
            step,
            network,
            lambda: {
                "prior": network.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "average": average.tensors,
                **{name: kept.state_dict() for name, kept in also_saved.items()},
            },
        )
        if run.processes.is_main and (step + 1) % config.samples_every == 0:
            average.copy_to(averaged)
            save_preview(averaged, step + 1)
    run.draw_losses()
    average.copy_to(network)


def _backward(loss_of: Callable[[int], Tensor], step: int, optimizers: list[torch.optim.Optimizer]) -> Tensor:
    """Give the parameters the gradients of a step; return its loss."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss = loss_of(step)
    loss.backward()
    return loss.detach()


def make_optimizers(network: PriorNetwork, config: FitConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks and AdamW for the rest (Jordan et al. 2024)."""
    matrices = [p for p in network.blocks.parameters() if p.ndim == 2 and min(p.shape) > 6]
    known = {id(p) for p in matrices}
    others = [p for p in network.parameters() if id(p) not in known]
    muon = BatchedMuon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    adamw = torch.optim.AdamW(
        others, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=others[0].is_cuda
    )
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return [muon, adamw]
