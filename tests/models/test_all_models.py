"""What every reference network promises."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pntk.models import GPT, MLP, LeNet, ResNet18, ViT

IMAGES = (4, 3, 8, 8)
CASES = {
    "mlp": (lambda: MLP(192, [16], 10), IMAGES),
    "lenet": (lambda: LeNet(in_channels=3, image_size=8), IMAGES),
    "resnet": (lambda: ResNet18(width=4), IMAGES),
    "vit": (lambda: ViT(image_size=8, patch_size=4, dim=16, depth=2, heads=2), IMAGES),
    "gpt tied": (lambda: GPT(10, context=6, dim=16, depth=2, heads=2), None),
    "gpt untied": (lambda: GPT(10, context=6, dim=16, depth=2, heads=2, tie_weights=False), None),
}
STANDARD = (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.BatchNorm2d)


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    build, shape = CASES[request.param]
    return build().eval(), torch.randn(shape) if shape else torch.randint(10, (4, 6))


def test_gradient_reaches_every_parameter(case):
    model, x = case
    logits = model(x).flatten(0, -2)
    F.cross_entropy(logits, torch.arange(len(logits)) % 10).backward()
    for name, param in model.named_parameters():
        assert param.grad is not None and param.grad.abs().sum() > 0, name


def test_every_parameter_sits_in_a_standard_layer(case):
    model, _ = case
    for name, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            assert isinstance(module, STANDARD), name


def test_samples_do_not_mix_and_nothing_is_random(case):
    model, x = case
    rows = torch.cat([model(x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(model(x), rows)
