"""The published networks: sizes, other images, and how their weights are drawn."""

import math

import pytest
import torch

from pntk.errors import ConfigError
from pntk.nads.networks import NETWORKS, VGG11, DenseNet121, LeNet, LogReg, ResNet18

PARAMETERS = {  # of one channel of 32 x 32 pixels and one logit
    LogReg: 1024 + 1,
    LeNet: 156 + 2416 + 48120 + 10164 + 85,
    VGG11: 9219328 + 5504 + 2 * 262656 + 513,
    ResNet18: 11173962 - 2 * 576 - 9 * 513,  # of three channels and ten logits
    DenseNet121: 6956298 - 2 * 576 - 9 * 1025,
}


def test_sizes():
    assert list(NETWORKS.values()) == list(PARAMETERS)
    for network, count in PARAMETERS.items():
        assert sum(p.numel() for p in network().parameters()) == count


@pytest.mark.parametrize("network", [LogReg, LeNet, VGG11, ResNet18])
def test_other_images(network):
    model = network(num_channels=3, num_classes=4, image_size=(32, 64)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 64)).shape == (2, 4)


@pytest.mark.parametrize("network", NETWORKS.values())
def test_images_that_are_too_small(network):
    with pytest.raises(ConfigError, match=f"{network.__name__} needs at least"):
        network(image_size=0)


def test_vgg_draws_convolutions_for_their_outputs():
    weight = VGG11().features[15].weight  # 256 to 512 channels
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)
    assert not VGG11().features[0].bias.any()
