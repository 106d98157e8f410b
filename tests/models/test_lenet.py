import pytest
import torch

from pntk.errors import ConfigError
from pntk.models import LeNet


@pytest.mark.parametrize("image_size", [8, 9, 11, 12, 13, 27, 28, 32, 65])
def test_adapts_to_the_image_size(image_size):
    model = LeNet(num_classes=7, in_channels=3, image_size=image_size)
    assert model(torch.randn(2, 3, image_size, image_size)).shape == (2, 7)


def test_default_is_lenet5():
    model = LeNet()
    assert model.fc1.in_features == 16 * 5 * 5
    assert sum(p.numel() for p in model.parameters()) == 61_706


def test_refuses_tiny_images():
    with pytest.raises(ConfigError, match="image_size is 7, but LeNet needs at least 8: enlarge"):
        LeNet(image_size=7)


@pytest.mark.parametrize(("image_size", "padding"), [(11, 2), (12, 0)])
def test_only_tiny_images_are_padded_twice(image_size, padding):
    assert LeNet(image_size=image_size).conv2.padding == (padding, padding)
