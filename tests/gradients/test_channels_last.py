import pytest
import torch
from torch import nn

from pntk import Featurizer
from pntk.models import LeNet, ResNet18


class Strict(torch.autograd.Function):
    """Takes no gradient in channels-last order."""

    @staticmethod
    def forward(ctx, x):
        return x.relu()

    @staticmethod
    def backward(ctx, grad):
        return grad.view(len(grad), -1).view(grad.shape)


class Net(nn.Module):
    """Two convolutions of many channels."""

    def __init__(self, between=torch.relu, flatten=lambda x: x.flatten(1)):
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 5, 3, stride=2)
        self.head = nn.Linear(5 * 4, 3)
        self.between, self.flatten = between, flatten
        self.seen = []

    def forward(self, x):
        self.seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return self.head(self.flatten(self.second(self.between(self.first(x)))))


@pytest.mark.parametrize(
    ("ways", "used"),
    [
        ({}, True),
        ({"flatten": lambda x: x.view(len(x), -1)}, False),
        ({"flatten": lambda x: torch.as_strided(x, (len(x), 20), (20, 1))}, False),
        ({"between": Strict.apply}, False),
    ],
    ids=["any order", "view", "other values", "view of a gradient"],
)
def test_images_go_in_channels_last_order_where_the_model_takes_it(ways, used):
    net, x = Net(**ways).eval(), torch.randn(4, 16, 7, 7)
    rows = Featurizer(net, proj_dim=64, check=False)(x)
    assert net.seen[-1] is used
    assert x.is_contiguous() and not x.requires_grad
    expected = Featurizer(net, proj_dim=64, impl="torch", check=False)(x)
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)


def test_images_of_another_size_may_need_the_ordinary_order():
    net = Net(flatten=lambda x: x.view(len(x), -1)[:, :5]).eval()
    net.head = nn.Linear(5, 3)
    f = Featurizer(net, proj_dim=64)
    f(torch.randn(4, 16, 5, 5))
    assert net.seen[-1]
    large = torch.randn(4, 16, 7, 7)
    rows = f(large)
    assert not net.seen[-1]
    expected = Featurizer(net, proj_dim=64, impl="torch", check=False)(large)
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)


def test_few_channels_stay_as_they_are():
    f = Featurizer(LeNet(image_size=8).eval(), proj_dim=64)
    f(torch.randn(3, 1, 8, 8))
    assert not f._plan.channels_last


def test_images_already_in_that_order_are_not_touched():
    x = torch.randn(3, 3, 8, 8).to(memory_format=torch.channels_last)
    f = Featurizer(ResNet18(width=16).eval(), proj_dim=64)
    f(x)
    assert f._plan.channels_last
    assert not x.requires_grad and x.grad is None
