"""The independent image encoder that generated emoji are judged by.

It is trained on the real training images alone and never takes part in training a pipeline. It learns to
tell which emoji an image shows, whatever its style. A second head learns the style, so that the features,
which Fréchet distances are measured in, know it as well; to name a style, a classifier of its own is better.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from models.checkpoint import load_checkpoint, load_into, save_checkpoint
from training.data.dataset import scale_to_unit
from training.emoji.dataset import EmojiDataset
from training.evaluation.classifier import ResidualBlock, augment, batches, convolution
from training.precision import autocast

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgeTraining:
    """How a judge is made: SGD with Nesterov momentum and one cycle of learning rate.

    scale: what cosines are multiplied by before the softmax over the emoji.
    """

    width: int = 32
    embedding_size: int = 128
    num_epochs: int = 16
    batch_size: int = 128
    max_learning_rate: float = 0.1
    weight_decay: float = 5e-4
    scale: float = 16.0
    shift_px: int = 4
    seed: int = 1


@dataclass(frozen=True)
class Judgement:
    """embeddings: (N, E) of length 1, alike for one emoji in all styles. features: (N, D)."""

    embeddings: Tensor
    features: Tensor


@dataclass(frozen=True)
class _Origin:
    """All that a cached judge depends on."""

    training: JudgeTraining
    num_emoji: int
    num_styles: int
    data_digest: str


class Judge(nn.Module):
    """A residual network of 64×64 images, with a head that embeds and one that names the style."""

    def __init__(self, training: JudgeTraining, num_emoji: int, num_styles: int) -> None:
        super().__init__()
        width = training.width
        self.scale = training.scale
        self.trunk = nn.Sequential(
            convolution(3, width // 2),
            convolution(width // 2, width, stride=2),
            ResidualBlock(width, width, stride=1),
            *(ResidualBlock(width * 2**i, width * 2 ** (i + 1), stride=2) for i in range(3)),
        )
        self.embed = nn.Linear(8 * width, training.embedding_size)
        self.emoji = nn.Parameter(torch.randn(num_emoji, training.embedding_size))
        self.style = nn.Linear(8 * width, num_styles)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings (B, E), features (B, D) and logits of the style for images (B, 3, H, W)."""
        features = self.trunk(images).mean(dim=(2, 3))  # (B, D)
        return F.normalize(self.embed(features).float(), dim=1), features, self.style(features)

    def emoji_logits(self, embeddings: Tensor) -> Tensor:
        """Return scaled cosines (B, num_emoji), as in NormFace (Wang et al. 2017, arXiv:1704.06369)."""
        return self.scale * embeddings @ F.normalize(self.emoji, dim=1).T


def load_or_train_judge(
    train: EmojiDataset, training: JudgeTraining, *, folder: Path, device: str = "cpu"
) -> Judge:
    """Load ``folder/emoji-judge.safetensors``, or train one if it was made from other data or settings."""
    origin = _Origin(training, len(_emoji_of(train)), len(train.style_names), _digest(train))
    path = folder / "emoji-judge.safetensors"
    with torch.random.fork_rng(devices=[]):  # nn.Module initialisers take no generator
        torch.manual_seed(training.seed)
        judge = Judge(training, origin.num_emoji, origin.num_styles)
    judge.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if path.is_file():
        tensors, found = load_checkpoint(path, _Origin)
        if found == origin:
            load_into(judge, tensors, path)
            return judge.eval().requires_grad_(False)
        logger.info("judge %s was made from other data or settings", path.name)
    _train(judge, train, training, device)
    save_checkpoint(path, judge.state_dict(), origin)
    return judge.eval().requires_grad_(False)


@torch.inference_mode()
def judge_images(judge: Judge, images: Tensor, *, batch_size: int = 250) -> Judgement:
    """Judge any number of images (N, 3, H, W), uint8 or float in [-1, 1]; the results are on the CPU."""
    device = judge.emoji.device
    parts = []
    for batch in images.split(batch_size):
        pixels = scale_to_unit(batch).to(device, memory_format=torch.channels_last)
        embeddings, features, _ = judge(pixels)
        parts.append((embeddings.cpu(), features.cpu()))
    embeddings, features = (torch.cat(each) for each in zip(*parts, strict=True))
    return Judgement(embeddings, features)


def _train(judge: Judge, train: EmojiDataset, training: JudgeTraining, device: str) -> None:
    generator = torch.Generator().manual_seed(training.seed)
    number_of = {code_point: number for number, code_point in enumerate(_emoji_of(train))}
    emoji = torch.tensor([number_of[code_point] for code_point in train.code_points])
    styles = train.styles
    optimizer = torch.optim.SGD(
        judge.parameters(),
        lr=training.max_learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=training.weight_decay,
    )
    per_epoch = batches(len(train), training.batch_size)
    num_steps = training.num_epochs * len(per_epoch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=training.max_learning_rate, total_steps=max(num_steps, 2)
    )
    judge.train()
    with tqdm(total=num_steps, desc="train judge") as progress:
        for _ in range(training.num_epochs):
            order = torch.randperm(len(train), generator=generator)
            for batch in per_epoch:
                rows = order[batch]
                images = _augment(train.images[rows], training, generator)
                images = images.to(device, memory_format=torch.channels_last)
                with autocast(torch.device(device)):
                    embeddings, _, style_logits = judge(images)
                emoji_loss = F.cross_entropy(judge.emoji_logits(embeddings), emoji[rows].to(device))
                style_loss = F.cross_entropy(style_logits.float(), styles[rows].to(device))
                optimizer.zero_grad(set_to_none=True)
                (emoji_loss + style_loss).backward()
                optimizer.step()
                schedule.step()
                progress.update()
                if progress.n % 20 == 0:
                    progress.set_postfix(emoji=f"{emoji_loss.item():.3f}", style=f"{style_loss.item():.3f}")


def _augment(images: Tensor, training: JudgeTraining, generator: torch.Generator) -> Tensor:
    """Shift images and change their brightness, contrast and a little of their hue."""
    shifted = augment(images, generator, padding_px=training.shift_px, is_flipped=False)
    gains = 1 + 0.15 * torch.randn(len(images), 3, 1, 1, generator=generator)
    darker = (shifted - 1) * gains.clamp(0.5, 1.5) + 1  # white stays white
    return darker.clamp(-1, 1)


def _emoji_of(dataset: EmojiDataset) -> list[str]:
    return sorted(set(dataset.code_points))


def _digest(dataset: EmojiDataset) -> str:
    digest = hashlib.sha256(repr((dataset.code_points, dataset.styles.tolist())).encode())
    digest.update(dataset.images.contiguous().numpy().data)
    return digest.hexdigest()
