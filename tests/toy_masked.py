"""A toy masked prior: all that a new family of priors takes. A handful of codes a call, the surest first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn

from models.checkpoint import load_checkpoint, load_into
from models.conditioning import Conditions
from models.options import CHECKED, Options
from models.stage import Run, Sample

KIND = "toy_masked"


@checked_dataclass(frozen=True, config=CHECKED)
class ToyMaskedOptions(Options):
    """How many calls write the grid."""

    requestable: ClassVar[tuple[str, ...]] = ("num_steps",)

    num_steps: Annotated[int, Field(ge=1, le=200)] = 4


@checked_dataclass(frozen=True, config=CHECKED)
class ToyMaskedConfig:
    latent_channels: int = 4
    grid: tuple[int, ...] = (6, 6)
    codebook_size: int = 32
    num_labels: int = 3
    hidden_size: int = 16


class ToyMaskedNetwork(nn.Module):
    """Codes (B, N), −1 where masked, and labels (B,) → logits (B, N, codebook)."""

    def __init__(self, config: ToyMaskedConfig) -> None:
        super().__init__()
        self.config = config
        num_codes = torch.Size(config.grid).numel()
        self.embed_codes = nn.Embedding(config.codebook_size + 1, config.hidden_size)
        self.embed_labels = nn.Embedding(config.num_labels + 1, config.hidden_size)
        self.embed_places = nn.Parameter(torch.randn(num_codes, config.hidden_size))
        self.out = nn.Linear(config.hidden_size, config.codebook_size)

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        x = self.embed_codes(codes + 1) + self.embed_places + self.embed_labels(labels)[:, None]
        return self.out(torch.tanh(x + x.mean(1, keepdim=True))).float()


@dataclass
class _Canvas:
    codes: Tensor  # (N,) int64, −1 where masked
    generator: torch.Generator


class ToyMaskedStage:
    """Nothing → codes (*grid)."""

    fixed_rows: Sequence[int] | None = None
    reports_progress = True

    def __init__(self, network: ToyMaskedNetwork, num_slots: int) -> None:
        self._network = network
        self.max_samples = num_slots

    def start(self, sample: Sample) -> None:
        generator = torch.Generator().manual_seed(1000 * sample.spec.seed + sample.index)
        num_codes = len(self._network.embed_places)
        sample.state = _Canvas(torch.full((num_codes,), -1), generator)

    def num_calls(self, sample: Sample) -> int:
        assert isinstance(sample.spec.options, ToyMaskedOptions)
        return sample.spec.options.num_steps

    def step(self, samples: Sequence[Sample], run: Run) -> None:
        canvases: list[_Canvas] = [sample.state for sample in samples]
        codes = torch.stack([canvas.codes for canvas in canvases])
        labels = torch.cat([sample.spec.conditions.labels[:, 0] for sample in samples])
        results = run(lambda rows: self._network(codes[rows], labels[rows]), len(samples), self.fixed_rows)
        for row, (sample, canvas) in enumerate(zip(samples, canvases, strict=True)):
            if row in results.failures:
                sample.error = results.failures[row]
                continue
            self._write(sample, canvas, results.values[row])
            sample.calls_done += 1
            if sample.calls_done == self.num_calls(sample):
                sample.value = canvas.codes.view(self._network.config.grid)

    def preview(self, samples: Sequence[Sample]) -> Tensor:
        codes = torch.stack([sample.state.codes for sample in samples]).clamp(min=0)
        return codes.unflatten(1, self._network.config.grid)

    def release(self, sample: Sample) -> None:
        sample.state = None

    def _write(self, sample: Sample, canvas: _Canvas, logits: Tensor) -> None:
        """Draw all masked codes, and keep the surest."""
        num_left = self.num_calls(sample) - sample.calls_done
        masked = canvas.codes < 0
        num_kept = -(-int(masked.sum()) // num_left)
        shares = logits.softmax(-1)
        drawn = torch.multinomial(shares, 1, generator=canvas.generator)
        sureness = shares.gather(1, drawn)[:, 0].masked_fill(~masked, -1)
        places = sureness.topk(num_kept).indices
        canvas.codes[places] = drawn[places, 0]


class ToyMaskedPrior:
    """The family, as a pipeline has it."""

    def __init__(self, network: ToyMaskedNetwork) -> None:
        self.network = network

    @classmethod
    def load(cls, path: Path) -> "ToyMaskedPrior":
        tensors, config = load_checkpoint(path, ToyMaskedConfig)
        network = ToyMaskedNetwork(config)
        load_into(network, tensors, path)
        return cls(network)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.network.config.latent_channels, *self.network.config.grid)

    @property
    def label_sizes(self) -> tuple[int, ...]:
        return (self.network.config.num_labels,)

    @property
    def text_shape(self) -> None:
        return None

    def null_conditions(self, num_rows: int = 1) -> Conditions:
        return Conditions(torch.full((num_rows, 1), self.network.config.num_labels))

    def make_stage(self, num_slots: int) -> ToyMaskedStage:
        return ToyMaskedStage(self.network, num_slots)
