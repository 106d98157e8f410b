"""The networks whose anisotropy was published, with one logit of a one-channel image by default.

Layers, their order and their initialisation are those of the published runs, so that the same seed
draws the same weights. Shapes: b images; h, w pixels, 32 x 32 by default.

Source:
    Ortiz-Jimenez, Modas, Moosavi-Dezfooli, Frossard (2020), Neural anisotropy directions,
    https://arxiv.org/abs/2006.09717; code at LTS4/neural-anisotropy-directions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pntk import models
from pntk.errors import ConfigError

Size = int | tuple[int, int]


class LogReg(nn.Module):
    """One linear layer on the pixels.

    Example:
        >>> LogReg(num_channels=3, image_size=(4, 6))(torch.zeros(5, 3, 4, 6)).shape
        torch.Size([5, 1])
    """

    def __init__(self, num_channels: int = 1, num_classes: int = 1, image_size: Size = 32) -> None:
        super().__init__()
        height, width = _checked_size("LogReg", image_size, 1)
        self.fc = nn.Linear(num_channels * height * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [b, num_channels, h, w] to logits [b, num_classes]."""
        logits: Tensor = self.fc(x.flatten(1))
        return logits


class LeNet(nn.Module):
    """Two 5x5 convolutions without padding and three linear layers, with ReLU and max pooling.

    Example:
        >>> LeNet()(torch.zeros(5, 1, 32, 32)).shape
        torch.Size([5, 1])
    """

    def __init__(self, num_channels: int = 1, num_classes: int = 1, image_size: Size = 32) -> None:
        super().__init__()
        height, width = (((s - 4) // 2 - 4) // 2 for s in _checked_size("LeNet", image_size, 16))
        self.conv1 = nn.Conv2d(num_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [b, num_channels, h, w] to logits [b, num_classes]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc3(F.relu(self.fc2(x)))
        return logits


class VGG11(nn.Module):
    """VGG-11 with batch normalisation and a head of 512 units; dropout as in the original.

    Convolutions are drawn from a normal distribution of variance 2 / (outputs x kernel area).

    Example:
        >>> VGG11().eval()(torch.zeros(5, 1, 32, 32)).shape
        torch.Size([5, 1])
    """

    def __init__(self, num_channels: int = 1, num_classes: int = 1, image_size: Size = 32) -> None:
        super().__init__()
        height, width = _checked_size("VGG11", image_size, 32)
        layers: list[nn.Module] = []
        channels = num_channels
        for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
            for out in stage:
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * (height // 32) * (width // 32), 512), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(512, 512), nn.ReLU(), nn.Dropout()),
            nn.Linear(512, num_classes),
        )
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.normal_(module.weight, 0, math.sqrt(2 / (9 * module.out_channels)))
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [b, num_channels, h, w] to logits [b, num_classes]."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class ResNet18(models.ResNet18):
    """ResNet-18 with the stem for small images: :class:`pntk.models.ResNet18`.

    Example:
        >>> ResNet18()(torch.zeros(5, 1, 32, 32)).shape
        torch.Size([5, 1])
    """

    def __init__(self, num_channels: int = 1, num_classes: int = 1, image_size: Size = 32) -> None:
        _checked_size("ResNet18", image_size, 1)  # of any size, and the same weights
        super().__init__(num_classes, num_channels)


class _DenseLayer(nn.Module):
    """Normalise, mix channels, normalise, convolve 3x3; the result is put before the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, channels, h, w] to [b, growth + channels, h, w]."""
        y = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([self.conv2(F.relu(self.bn2(y))), x], 1)


class _Transition(nn.Module):
    """Normalise, halve the channels, halve the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, channels, h, w] to [b, channels / 2, h / 2, w / 2]."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet121(nn.Module):
    """DenseNet-121 with a stem for small images: growth 32, a 3x3 convolution and no pooling.

    Example:
        >>> DenseNet121().eval()(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 1])
    """

    def __init__(self, num_channels: int = 1, num_classes: int = 1, image_size: Size = 32) -> None:
        super().__init__()
        _checked_size("DenseNet121", image_size, 8)
        growth, channels = 32, 64
        layers: list[nn.Module] = [nn.Conv2d(num_channels, channels, 3, padding=1, bias=False)]
        for count in (6, 12, 24, 16):
            if len(layers) > 1:
                layers.append(_Transition(channels))
                channels //= 2
            for _ in range(count):
                layers.append(_DenseLayer(channels, growth))
                channels += growth
        self.features = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [b, num_channels, h, w] to logits [b, num_classes]."""
        x = F.relu(self.bn(self.features(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


NETWORKS: dict[str, type[nn.Module]] = {
    network.__name__: network for network in (LogReg, LeNet, VGG11, ResNet18, DenseNet121)
}


def _checked_size(network: str, size: Size, least: int) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < least:
        raise ConfigError(
            f"image_size is {size!r}, but {network} needs at least {least} pixels on a side: "
            "enlarge the images"
        )
    return height, width
