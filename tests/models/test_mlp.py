import torch
from torch import nn

from pntk.models import MLP


def test_shape_and_parameter_count():
    model = MLP(64, [32, 16], 10)
    assert model(torch.randn(3, 8, 8)).shape == (3, 10)
    expected = (64 + 1) * 32 + (32 + 1) * 16 + (16 + 1) * 10
    assert sum(p.numel() for p in model.parameters()) == expected


def test_without_hidden_layers_it_is_linear():
    model = MLP(6, [], 4)
    x, y = torch.randn(2, 3, 6)
    torch.testing.assert_close(model(x) + model(y) - model(x * 0), model(x + y))


def test_activation_stands_between_the_layers_only():
    model = MLP(6, [5, 4], 3, activation=nn.Tanh)
    kinds = [type(layer) for layer in model.layers]
    assert kinds == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
