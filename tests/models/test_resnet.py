import torch

from pntk.models import ResNet18


def test_parameter_count_at_full_width():
    assert sum(p.numel() for p in ResNet18().parameters()) == 11_173_962


def test_shape_and_resolution_of_each_stage():
    model = ResNet18(num_classes=7, in_channels=1, width=4).eval()
    sizes = []
    for stage in (model.stage1, model.stage2, model.stage3, model.stage4):
        stage.register_forward_hook(lambda module, args, y: sizes.append(tuple(y.shape[1:])))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert sizes == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]
