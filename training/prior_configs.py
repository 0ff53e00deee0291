"""The settings of a prior's training, for each family of priors."""

from dataclasses import field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from models.options import AutoregressiveOptions, Count, FlowOptions, MaskedOptions, Options, UnitTime
from models.spec import FolderName
from training.data.bad_files import MAX_BAD_SHARE
from training.fit import FitConfig
from training.network import NetworkSettings


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PriorConfig(FitConfig):
    """What ``smalti train prior`` reads from its TOML file, whatever the family.

    ``data`` may be ``codes:DIR``, a folder of codes that this tokenizer made (``docs/codes.md``).
    ``tokenizer`` is a ``tokenizer.safetensors``, with ``pipeline.json`` beside it where it has no codes
    (``training/latents.py``); ``output`` is the finished pipeline's folder, named as it.
    Where ``data`` is a folder with captions, the prior takes prompts, and ``text_encoder`` is a folder with
    ``text_encoder.safetensors``; without it, all-MiniLM-L6-v2 comes from its package. A share of
    ``condition_dropout`` of the samples is trained without conditions. ``start_from`` is a
    ``prior.safetensors`` whose weights the run starts with, instead of random ones. With
    ``horizontal_flips`` each image is also learnt from flipped; not in a folder with captions, where what is
    said of an image may not hold of its mirror image, nor in one of codes, which has its own (``--flips``).
    ``shares_with`` names the pipeline beside ``output`` whose tokenizer it is, which is not copied then.
    """

    family: ClassVar[str]

    tokenizer: Path
    output: Path
    prior: NetworkSettings = field(default_factory=NetworkSettings)
    defaults: Options = field(default_factory=Options)
    data: str = "fashion-mnist"
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = MAX_BAD_SHARE
    text_encoder: Path | None = None
    start_from: Path | None = None
    example_prompt: str | None = None
    shares_with: FolderName | None = None
    batch_size: Count = 256
    num_steps: Count = 4000
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    muon_learning_rate: Annotated[float, Field(gt=0)] = 2e-2
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    decay_fraction: UnitTime = 0.4
    ema_decay: UnitTime = 0.999
    condition_dropout: UnitTime = 0.1
    horizontal_flips: bool = True
    log_every: Count = 50
    samples_every: Count = 1000


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PriorTrainingConfig(PriorConfig):
    """Of a flow prior. ``time_mean`` and ``time_std``: of the logits of its times.

    With ``source_size_px``, it learns to draw pictures of so many pixels a side larger, whose latents, once
    they are enlarged, it is given; a share of ``source_dropout`` of the samples is trained without them.
    Then ``start_from`` may be a prior that takes no such pictures.
    """

    family: ClassVar[str] = "flow"

    defaults: FlowOptions = field(default_factory=FlowOptions)
    time_mean: float = 0.0
    time_std: Annotated[float, Field(gt=0)] = 1.0
    source_size_px: Count | None = None
    source_dropout: UnitTime = 0.1


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AutoregressiveTrainingConfig(PriorConfig):
    """Of a prior that draws codes one after another."""

    family: ClassVar[str] = "autoregressive"

    defaults: AutoregressiveOptions = field(default_factory=AutoregressiveOptions)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MaskedTrainingConfig(PriorConfig):
    """Of a prior that fills in masked codes. ``likelihood_weight``: see ``masked_loss``."""

    family: ClassVar[str] = "masked"

    defaults: MaskedOptions = field(default_factory=MaskedOptions)
    likelihood_weight: UnitTime = 1.0


PRIOR_CONFIGS: dict[str, type[PriorConfig]] = {
    each.family: each for each in (PriorTrainingConfig, AutoregressiveTrainingConfig, MaskedTrainingConfig)
}
