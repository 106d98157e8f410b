"""Vision transformer with mean pooling."""

import torch
from torch import Tensor, nn

from pntk.errors import ConfigError
from pntk.models.transformer import Block


class ViT(nn.Module):
    """Vision transformer whose every parameter sits in a standard layer.

    Patches come from a strided convolution, positions from an ``nn.Embedding``, and the mean
    over patches takes the place of a class token.

    Args:
        image_size: Height and width of the image, a multiple of ``patch_size``.
        patch_size: Height and width of a patch.
        dim: Width of the residual stream, a multiple of ``heads``.
        depth: Number of blocks.
        heads: Attention heads of each block.
        num_classes: Number of logits.
        in_channels: Channels of the image.

    Raises:
        ConfigError: ``image_size`` is no multiple of ``patch_size``, or ``dim`` of ``heads``.

    Source:
        Dosovitskiy et al. (2021), "An image is worth 16x16 words". Mean pooling: Beyer, Zhai
        and Kolesnikov (2022), "Better plain ViT baselines for ImageNet-1k".

    Example:
        >>> import torch
        >>> ViT(image_size=8, patch_size=4, dim=16, depth=1, heads=2)(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 4,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ConfigError(
                f"image_size is {image_size} and patch_size is {patch_size}, but image_size must "
                "be a multiple of patch_size: resize the images or change patch_size"
            )
        self.patches = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.positions = nn.Embedding((image_size // patch_size) ** 2, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [b, in_channels, image_size, image_size] to logits [b, num_classes]."""
        x = self.patches(x).flatten(2).transpose(1, 2)  # [b, t, dim]
        ids = torch.arange(x.shape[1], device=x.device)[None]  # [1, t]
        x = self.blocks(x + self.positions(ids))
        logits: Tensor = self.head(self.norm(x).mean(dim=1))
        return logits
