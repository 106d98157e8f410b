import pytest
import torch
from torch import nn

from pntk.nads import GradientCovariance
from pntk.nads.drawing import Redraw, own_random_state
from pntk.nads.networks import LeNet, LogReg

CPU = torch.device("cpu")


class Rescaled(nn.Module):
    """Draws more than reset_parameters does."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 1)
        nn.init.normal_(self.fc.weight)

    def forward(self, x):
        return self.fc(x.flatten(1)).tanh()


class Shifted(nn.Module):
    """Keeps a random number where no parameter is."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 1)
        self.register_buffer("shift", torch.randn(1), persistent=False)

    def forward(self, x):
        return (self.fc(x.flatten(1)) + self.shift).tanh()


class Backwards(nn.Module):
    """Registers its layers in another order than it draws them in."""

    def __init__(self):
        super().__init__()
        last = nn.Linear(8, 1)
        self.first = nn.Linear(16, 8)
        self.last = last

    def forward(self, x):
        return self.last(self.first(x.flatten(1)).tanh())


def redraw(model_cls, seed=0):
    finder = GradientCovariance(torch.randn(1, 4, 4), model_cls, seed=seed)
    with own_random_state(CPU):
        return finder, Redraw(finder._build(0), finder._build, seed, CPU)


def test_drawn_again_is_drawn_anew():
    finder, drawn = redraw(LeNet, 3)
    assert drawn.works
    with own_random_state(CPU):
        params, buffers = drawn.stacked([5, 9])
    for place, number in enumerate((5, 9)):
        for name, value in finder.network(number).named_parameters():
            assert torch.equal(params[name][place], value)
    assert not buffers


@pytest.mark.parametrize("model_cls", [Rescaled, Shifted, Backwards])
def test_networks_drawn_otherwise_are_built(model_cls):
    finder, drawn = redraw(model_cls)
    assert not drawn.works
    found = finder.gradients(0, 8)
    for number in range(8):
        x = finder.eval_point[None].clone().requires_grad_()
        (expected,) = torch.autograd.grad(finder.network(number)(x).sum(), x)
        assert torch.allclose(found[number], expected[0], rtol=1e-5, atol=1e-7)


def test_groups_drawn_again_are_the_networks_one_by_one():
    point = torch.randn(1, 8, 8)
    options = {"model_params": {"image_size": 8}, "seed": 2}
    together = GradientCovariance(point, LogReg, **options, group_size=8)
    apart = GradientCovariance(point, LogReg, **options, group_size=1)
    assert torch.allclose(together.gradients(0, 8), apart.gradients(0, 8), rtol=1e-6, atol=0)
    assert together._redraw and apart._redraw is None
