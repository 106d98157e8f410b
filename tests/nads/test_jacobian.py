"""Gradients of groups, and differences, against plain loops."""

import pytest
import torch
from torch import nn

from pntk.errors import OutputError
from pntk.nads import networks
from pntk.nads.jacobian import FiniteDifference, autograd_gradients


def plain_gradient(model, point):
    x = point[None].clone().requires_grad_()
    return torch.autograd.grad(model(x).sum(), x)[0][0]


def plain_difference(model, point, scale):
    found = torch.zeros(point.numel(), dtype=point.dtype)
    with torch.no_grad():
        for i in range(point.numel()):
            step = torch.zeros(point.numel(), dtype=point.dtype)
            step[i] = scale
            up, down = (model((point + s * step.view_as(point))[None]) for s in (1, -1))
            found[i] = (up - down).sum() / (2 * scale)
    return found.view_as(point)


class Residual(nn.Module):
    """Convolutions, a shortcut, pooling, concatenation, and a view that needs whole images."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        x = torch.relu_(self.norm(self.first(x)))
        x = torch.max_pool2d(torch.relu(self.second(x) + x), 2)
        x = torch.cat([x, -x], 1)
        return self.head(x.view(x.size(0), 8, -1).mean(2))


class Rude(nn.Module):
    """Changes its input in place in a way that is not known."""

    def forward(self, x):
        return x.clone().clamp_(-1.5, 1.5).pow(2).sum((1, 2, 3))


class Aliasing(nn.Module):
    """Changes a view and reads what it is a view of, which LocalImages cannot see."""

    def forward(self, x):
        x = x * 1
        x.view(-1).mul_(2)
        return x.sum((1, 2, 3))


def draw(make, count=5):
    return [make().double().eval() for _ in range(count)]


def test_stacked_gradients_are_those_of_a_loop():
    point = torch.randn(2, 8, 6, dtype=torch.float64)
    models = draw(Residual)
    expected = torch.stack([plain_gradient(model, point) for model in models])
    assert torch.allclose(autograd_gradients(models, point), expected, rtol=0, atol=1e-12)
    assert torch.allclose(autograd_gradients(models[:1], point), expected[:1], rtol=0, atol=1e-12)


class NoGroups(nn.Linear):
    def forward(self, x):
        y = super().forward(x.flatten(1))
        return y * (1 if y.item() > 0 else -1)


def test_what_cannot_be_grouped_is_differentiated_one_by_one():
    point = torch.randn(1, 2, 3, dtype=torch.float64)
    models = draw(lambda: NoGroups(6, 1))
    expected = torch.stack([plain_gradient(model, point) for model in models])
    assert torch.equal(autograd_gradients(models, point), expected)


@pytest.mark.parametrize("scale", [0.5, 100.0])
@pytest.mark.parametrize("batch_size", [None, 1, 20])
@pytest.mark.parametrize("make", [Residual, Rude, Aliasing])
def test_differences_are_those_of_a_loop(make, scale, batch_size):
    point = torch.randn(2, 6, 8, dtype=torch.float64)
    (model,) = draw(make, 1)
    difference = FiniteDifference(point, scale, batch_size)
    expected = plain_difference(model, point, scale)
    for _ in range(2):  # the first call checks itself, the second relies on it
        assert torch.allclose(difference(model), expected, rtol=0, atol=1e-12)
    if batch_size is not None:  # otherwise the image is one part, whatever is done to it
        assert difference._local is (make is Residual)


def test_differences_of_a_vector():
    point = torch.randn(7, dtype=torch.float64)
    (model,) = draw(lambda: nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1)), 1)
    found = FiniteDifference(point, 0.1, 4)(model)
    assert torch.allclose(found, plain_difference(model, point, 0.1), rtol=0, atol=1e-12)


def test_differences_of_lenet_at_odd_sizes():
    point = torch.randn(3, 17, 20, dtype=torch.float64)
    (model,) = draw(lambda: networks.LeNet(3, image_size=(17, 20)), 1)
    difference = FiniteDifference(point, 100.0)
    found = difference(model)
    assert difference._local
    some = (slice(0, 1), slice(10, 12), slice(0, 20))  # a loop over all would take long
    expected = torch.zeros(1, 2, 20, dtype=torch.float64)
    with torch.no_grad():
        for r in range(2):
            for c in range(20):
                step = torch.zeros_like(point)
                step[0, 10 + r, c] = 100
                up, down = model((point + step)[None]), model((point - step)[None])
                expected[0, r, c] = ((up - down) / 200).sum()
    assert torch.allclose(found[some], expected, rtol=0, atol=1e-12)


def test_an_output_that_is_no_number():
    point = torch.randn(1, 2, 2)
    for outputs in (2, 10):
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, outputs))
        with pytest.raises(OutputError, match=rf"returns \(1, {outputs}\).*num_classes=1"):
            autograd_gradients([model], point)
        with pytest.raises(OutputError, match="expected one number an input"):
            FiniteDifference(point, 1.0)(model)


def test_an_output_without_a_gradient():
    class Constant(nn.Module):
        def forward(self, x):
            return x.detach().sum((1, 2, 3))

    with pytest.raises(OutputError, match="no gradient with respect to its input"):
        autograd_gradients([Constant()], torch.randn(1, 2, 2))
