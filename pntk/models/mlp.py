"""Multilayer perceptron."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected network on flattened inputs.

    Args:
        in_features: Numbers per sample after flattening.
        hidden: Width of each hidden layer; empty for a linear classifier.
        num_classes: Number of logits.
        activation: Makes the module between two layers, for example ``nn.ReLU``.

    Example:
        >>> import torch
        >>> MLP(64, [32, 16], 10)(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (128,),
        num_classes: int = 10,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_features
        for next_width in hidden:
            layers += [nn.Linear(width, next_width), activation()]
            width = next_width
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [b, ...] to logits [b, num_classes]."""
        logits: Tensor = self.layers(x.flatten(1))
        return logits
