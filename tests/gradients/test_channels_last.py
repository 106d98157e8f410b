import pytest
import torch
from torch import nn

from pntk import Featurizer
from pntk.errors import OutOfMemoryError
from pntk.gradients.probe import _gains_by_channels_last
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


@pytest.mark.parametrize(
    ("device", "computes_in", "expected"),
    [
        ("cpu", "fp32", True),
        ("cpu", "half", True),
        ("cuda", "half", True),
        ("cuda", "tf32", True),
        ("cuda", "fp32", False),
        ("cuda", "fp64", False),
        ("mps", "half", False),
    ],
)
def test_where_convolutions_gain(device, computes_in, expected):
    net = Net()
    assert _gains_by_channels_last(net, torch.device(device), computes_in) is expected
    few = LeNet(image_size=8)
    assert not _gains_by_channels_last(few, torch.device(device), computes_in)
    assert not _gains_by_channels_last(net.head, torch.device(device), computes_in)


def test_no_memory_is_no_reason_for_the_ordinary_order():
    calls = []

    def full(x):
        if len(x) > 3:
            calls.append(len(x))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    f = Featurizer(Net(between=full).eval(), proj_dim=64, check=False)
    f(torch.randn(3, 16, 7, 7))
    with pytest.raises(OutOfMemoryError, match="a batch of 4"):
        f(torch.randn(4, 16, 7, 7))
    assert calls == [4] and f._plan.channels_last


@pytest.mark.parametrize("order", ["plain", "channels last"])
def test_no_memory_for_the_first_look_is_said_too(order):
    """That in channels-last order takes a backward pass."""

    def full(x):
        if order == "plain" or x.requires_grad:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    f = Featurizer(Net(between=full).eval(), proj_dim=64)
    with pytest.raises(OutOfMemoryError, match="a batch of 4"):
        f(torch.randn(4, 16, 7, 7))
    assert f._projector is None


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "used"), [("bf16", True), ("fp64", False)])
def test_a_gpu_gets_channels_last_for_its_tensor_cores(precision, used):
    net, x = Net().eval(), torch.randn(4, 16, 7, 7)
    if precision == "fp64":
        net, x = net.double(), x.double()
    expected = Featurizer(net, proj_dim=64)(x)
    net, x = net.cuda(), x.cuda()
    found = Featurizer(net, proj_dim=64, precision=precision)(x)
    assert net.seen[-1] is used
    torch.testing.assert_close(found.cpu(), expected, rtol=0.1, atol=0.1 * float(expected.std()))
