"""The independent classifier that generated images are judged by.

It is trained on the real training images alone and never takes part in training a pipeline.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from models.checkpoint import load_checkpoint, load_into, save_checkpoint
from training.data.dataset import ImageDataset, scale_to_unit
from training.evaluation.verdict import Verdict, chance_of
from training.precision import autocast

logger = logging.getLogger(__name__)

Architecture = Literal["residual", "plain"]

_FINAL_GRID = 4


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of a classifier; the width doubles each time the grid halves, down to 4x4."""

    architecture: Architecture
    num_classes: int
    channels: int
    image_size_px: int
    width: int

    def __post_init__(self) -> None:
        if self.architecture not in ("residual", "plain"):
            raise ValueError(f"architecture must be residual or plain, got {self.architecture!r}")
        for name in ("num_classes", "channels", "image_size_px", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def num_stages(self) -> int:
        num_stages, grid = 1, (self.image_size_px + 1) // 2
        while grid > _FINAL_GRID:
            num_stages, grid = num_stages + 1, (grid + 1) // 2
        return num_stages


@dataclass(frozen=True)
class ClassifierTraining:
    """How a classifier is trained: SGD with Nesterov momentum and one cycle of learning rate."""

    architecture: Architecture
    seed: int
    width: int = 32
    num_epochs: int = 15
    batch_size: int = 256
    max_learning_rate: float = 0.2
    weight_decay: float = 5e-4
    crop_padding_px: int = 2
    is_flipped: bool = True


DEFAULT_TRAININGS = (ClassifierTraining(architecture="residual", seed=1),)


@dataclass(frozen=True)
class Classification:
    """logits: (B, num_classes). features: (B, num_features), the averaged last feature map."""

    logits: torch.Tensor
    features: torch.Tensor


@dataclass(frozen=True)
class TrainedClassifier:
    """A frozen classifier, and how good it is on the real test images."""

    name: str
    model: "Classifier"
    verdict: Verdict

    @property
    def test_accuracy(self) -> float:
        """The share of real test images that are put into their own class."""
        return self.verdict.accuracy


class Classifier(nn.Module):
    """A small convolutional network, residual (He et al. 2016, arXiv:1512.03385) or plain."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        layers: list[nn.Module] = [*convolution(config.channels, width // 2)]
        layers += convolution(width // 2, width, stride=2)
        block = ResidualBlock if config.architecture == "residual" else _PlainBlock
        for stage in range(config.num_stages):
            out_channels = config.width * 2**stage
            layers.append(block(width, out_channels, stride=1 if stage == 0 else 2))
            width = out_channels
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(width, config.num_classes)

    def forward(self, images: torch.Tensor) -> Classification:
        """images: (B, C, H, W) float in [-1, 1]."""
        features = self.trunk(images).mean(dim=(2, 3))  # (B, D)
        return Classification(logits=self.head(features), features=features)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(in_channels, out_channels, stride)
        self.second = convolution(out_channels, out_channels)[:2]
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class _PlainBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *convolution(in_channels, out_channels), *convolution(out_channels, out_channels)
        )
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride > 1:
            x = F.max_pool2d(x, self.stride, ceil_mode=True)
        features: torch.Tensor = self.convolutions(x)
        return features


def convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def train_classifier(
    train: ImageDataset,
    config: ClassifierConfig,
    training: ClassifierTraining,
    *,
    device: str | torch.device = "cpu",
) -> Classifier:
    """Train a classifier on real images, with random crops and flips."""
    device = torch.device(device)
    generator = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng(devices=[]):  # nn.Module initialisers take no generator
        torch.manual_seed(training.seed)
        model = Classifier(config)
    model.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=training.max_learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=training.weight_decay,
    )
    num_steps = training.num_epochs * len(batches(len(train), training.batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=training.max_learning_rate, total_steps=max(num_steps, 2)
    )
    with tqdm(total=num_steps, desc=f"train {config.architecture} classifier") as progress:
        for _ in range(training.num_epochs):
            order = torch.randperm(len(train), generator=generator)
            for batch in batches(len(train), training.batch_size):
                rows = order[batch]
                images = augment(
                    train.images[rows],
                    generator,
                    padding_px=training.crop_padding_px,
                    is_flipped=training.is_flipped,
                ).to(device, memory_format=torch.channels_last)
                labels = train.labels[rows].to(device)
                with autocast(device):
                    logits = model(images).logits
                loss = F.cross_entropy(logits.float(), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
                if progress.n % 20 == 0:
                    progress.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def classify(model: Classifier, images: torch.Tensor, *, batch_size: int = 500) -> Classification:
    """Classify any number of images, in fp32; the results are on the CPU.

    images: (N, C, H, W), uint8 or float in [-1, 1].
    """
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(images), batch_size):
        chunk = scale_to_unit(images[start : start + batch_size])
        parts.append(model(chunk.to(device, memory_format=torch.channels_last)))
    return Classification(
        logits=torch.cat([part.logits for part in parts]).cpu(),
        features=torch.cat([part.features for part in parts]).cpu(),
    )


def measure_accuracy(classification: Classification, labels: torch.Tensor) -> float:
    """Share in [0, 1] of images that are put into their own class. labels: (N,) int64."""
    return (classification.logits.argmax(dim=1) == labels).double().mean().item()


@dataclass(frozen=True)
class _Origin:
    """All that a cached classifier depends on."""

    config: ClassifierConfig
    training: ClassifierTraining
    data_digest: str


def load_or_train_classifiers(
    name: str,
    train: ImageDataset,
    test: ImageDataset,
    trainings: Sequence[ClassifierTraining],
    *,
    folder: Path,
    device: str | torch.device = "cpu",
) -> tuple[TrainedClassifier, ...]:
    """Load ``folder/<name>-<architecture>-<seed>.safetensors`` for each, training what is missing.

    A file that was made from other data or with other settings is trained anew.
    """
    data_digest = _digest(train)
    classifiers = []
    for training in trainings:
        config = ClassifierConfig(
            architecture=training.architecture,
            num_classes=len(train.class_names),
            channels=train.images.shape[1],
            image_size_px=train.images.shape[-1],
            width=training.width,
        )
        origin = _Origin(config, training, data_digest)
        classifier_name = f"{training.architecture}-{training.seed}"
        path = folder / f"{name}-{classifier_name}.safetensors"
        model = _load(path, origin) if path.is_file() else None
        if model is None:
            model = train_classifier(train, config, training, device=device)
            save_checkpoint(path, model.state_dict(), origin)
        model.to(device)
        accuracy = measure_accuracy(classify(model, test.images), test.labels)
        verdict = Verdict.of(accuracy, chance_of(test.labels), len(test))
        logger.info("classifier=%s test_accuracy=%.4f", classifier_name, accuracy)
        verdict.warn(f"Classifier {name}-{classifier_name}")
        classifiers.append(TrainedClassifier(classifier_name, model, verdict))
    return tuple(classifiers)


def _load(path: Path, origin: _Origin) -> Classifier | None:
    tensors, found = load_checkpoint(path, _Origin)
    if found != origin:
        logger.info("classifier file %s was made from other data or settings", path.name)
        return None
    model = Classifier(origin.config)
    load_into(model, tensors, path)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False)


def _digest(dataset: ImageDataset) -> str:
    digest = hashlib.sha256(repr((dataset.images.shape, dataset.class_names)).encode())
    digest.update(dataset.images.contiguous().numpy().data)
    digest.update(dataset.labels.contiguous().numpy().data)
    return digest.hexdigest()


def batches(num_images: int, batch_size: int) -> list[slice]:
    """Return the whole batches of an epoch, or a single short one where there are too few images."""
    if num_images < batch_size:
        return [slice(0, num_images)]
    last_start = num_images - batch_size
    return [slice(start, start + batch_size) for start in range(0, last_start + 1, batch_size)]


def augment(
    images: torch.Tensor, generator: torch.Generator, *, padding_px: int, is_flipped: bool
) -> torch.Tensor:
    """Shift each image at random by up to ``padding_px`` and, if so asked, flip every second one.

    images: (B, C, H, W) uint8. Returns floats in [-1, 1].
    """
    num_images, _, height, width = images.shape
    shifts = torch.randint(-padding_px, padding_px + 1, (2, num_images, 1), generator=generator)
    top, left = shifts
    rows = (top + torch.arange(height)).clamp(0, height - 1)  # (B, H), edges repeated
    columns = (left + torch.arange(width)).clamp(0, width - 1)  # (B, W)
    if is_flipped:
        flipped = torch.rand(num_images, 1, generator=generator) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    index = torch.arange(num_images)[:, None, None]
    cut = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return scale_to_unit(cut.permute(0, 3, 1, 2))
