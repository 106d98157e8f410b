"""LeNet-5, with ReLU and max pooling in place of the original's tanh and subsampling."""

import torch.nn.functional as F
from torch import Tensor, nn

from pntk.errors import ConfigError


class LeNet(nn.Module):
    """Two 5x5 convolutions and three fully connected layers; 61,706 parameters by default.

    The first convolution keeps the image size (padding 2). The second has no padding, as in the
    original, unless the image is smaller than 12 pixels and would vanish.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the image.
        image_size: Height and width of the image, at least 8.

    Raises:
        ConfigError: ``image_size`` is below 8.

    Source:
        LeCun, Bottou, Bengio and Haffner (1998), "Gradient-based learning applied to document
        recognition".

    Example:
        >>> import torch
        >>> LeNet(image_size=8)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        if image_size < 8:
            raise ConfigError(
                f"image_size is {image_size}, but LeNet needs at least 8: enlarge the images"
            )
        padding = 0 if image_size >= 12 else 2
        final_size = (image_size // 2 - 4 + 2 * padding) // 2
        self.conv1 = nn.Conv2d(in_channels, 6, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5, padding=padding)
        self.fc1 = nn.Linear(16 * final_size**2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [b, in_channels, image_size, image_size] to logits [b, num_classes]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits
