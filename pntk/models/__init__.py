"""Small reference networks for tests, examples and benchmarks.

Plain PyTorch, no dropout, every parameter in a standard layer. They are not needed to use the
library, which takes any ``torch.nn.Module``.
"""

from pntk.models.gpt import GPT
from pntk.models.lenet import LeNet
from pntk.models.mlp import MLP
from pntk.models.resnet import ResNet18
from pntk.models.vit import ViT

__all__ = ["GPT", "MLP", "LeNet", "ResNet18", "ViT"]
