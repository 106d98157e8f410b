import pytest
import torch

from pntk.errors import ConfigError
from pntk.models import ViT


def test_shape():
    model = ViT(image_size=12, patch_size=4, dim=16, depth=2, heads=2, num_classes=7, in_channels=1)
    assert model(torch.randn(2, 1, 12, 12)).shape == (2, 7)


def test_positions_tell_patches_apart():
    torch.manual_seed(0)
    model = ViT(image_size=8, patch_size=4, dim=16, depth=1, heads=2)
    image = torch.randn(1, 3, 8, 8)
    swapped = torch.cat([image[..., 4:], image[..., :4]], dim=-1)
    assert not torch.allclose(model(image), model(swapped), atol=1e-5)
    torch.nn.init.zeros_(model.positions.weight)
    torch.testing.assert_close(model(image), model(swapped))


def test_positions_are_looked_up_once_for_the_batch():
    model = ViT(image_size=8, patch_size=4, dim=16, depth=1, heads=2)
    seen = []
    model.positions.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    model(torch.randn(3, 3, 8, 8))
    assert seen == [(1, 4)]


def test_refuses_a_patch_size_that_does_not_divide():
    with pytest.raises(ConfigError, match=r"image_size is 32 and patch_size is 5.*resize"):
        ViT(image_size=32, patch_size=5)
