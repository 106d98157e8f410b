"""Directions of random networks: against a plain loop, however they are grouped or stopped."""

import functools
import re

import numpy as np
import pytest
import torch
from torch import nn

from pntk import FeatureStore
from pntk.errors import ConfigError, DataError, NonFiniteError, OutputError, StoreError
from pntk.nads import GradientCovariance
from pntk.nads.drawing import network_seed
from pntk.nads.networks import LeNet


class Small(nn.Module):
    """A convolution, a normalisation and a linear layer; 3 channels, not square."""

    def __init__(self, width=4, outputs=1, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3)))


POINT = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loop(n, seed=0):
    """Return the gradients [n, 72] as a reader of the documentation would compute them."""
    found = []
    for number in range(n):
        torch.manual_seed(network_seed(seed, number))
        model = Small().double().eval()
        x = POINT[None].clone().requires_grad_()
        found.append(torch.autograd.grad(model(x).sum(), x)[0].flatten())
    return torch.stack(found)


@pytest.mark.parametrize("centered", [True, False])
def test_against_a_plain_loop(centered):
    n = 90
    found = GradientCovariance(POINT, Small, centered=centered).nads(n, progress=False)
    rows = loop(n)
    rows = rows - rows.mean(0) if centered else rows
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    assert found.directions.shape == (72, 3, 6, 4)
    assert found.directions.dtype == found.singular_values.dtype == torch.float64
    assert torch.allclose(found.singular_values, values, rtol=0, atol=1e-7)
    cosines = (found[:10].flatten(1) * vectors[:10]).sum(1).abs()
    assert torch.allclose(cosines, torch.ones(10).double(), rtol=0, atol=1e-10)
    assert (found.name, found.centered, found.num_samples) == ("Small", centered, n)


@pytest.mark.parametrize("jacobian", ["autograd", "finite_difference"])
@pytest.mark.parametrize("group_size", [1, 3, 100])
def test_groups_do_not_matter(jacobian, group_size):
    # a network that is linear around the point has equal differences and gradients
    finder = GradientCovariance(
        POINT, Small, jacobian=jacobian, scale=1e-4, group_size=group_size, seed=5
    )
    expected = loop(8, seed=5)
    atol = 1e-12 if jacobian == "autograd" else 1e-6
    assert torch.allclose(finder.gradients(0, 8).flatten(1), expected, rtol=0, atol=atol)
    assert torch.allclose(finder.gradients(5, 7).flatten(1), expected[5:7], rtol=0, atol=atol)


def test_steps_of_100_are_not_gradients():
    finder = functools.partial(GradientCovariance, POINT, Small)
    near = finder(jacobian="finite_difference").gradients(0, 3)
    far = finder(jacobian="finite_difference", scale=50.0).gradients(0, 3)
    exact = finder().gradients(0, 3)
    assert (near - exact).norm() > 0.01 * exact.norm()
    assert not torch.allclose(near, far, rtol=1e-3)


def test_the_random_state_is_left_as_found():
    finder = GradientCovariance(POINT, Small)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    finder.nads(4, progress=False)
    finder.network(1)
    assert torch.equal(torch.rand(2), expected)


def test_a_network_can_be_drawn_again():
    torch.manual_seed(network_seed(0, 7))
    assert torch.equal(
        GradientCovariance(POINT, Small).network(7).head.weight, Small().double().head.weight
    )


class Stopping(Small):
    """Cannot be drawn more than so many times."""

    left = 0

    def __init__(self):
        if Stopping.left == 0:
            raise KeyboardInterrupt
        Stopping.left -= 1
        super().__init__()


def test_a_stopped_run_goes_on(tmp_path):
    path = tmp_path / "rows.h5"
    finder = GradientCovariance(POINT, Stopping, group_size=4)
    Stopping.left = 11  # one to look at, two groups, half of a third
    with pytest.raises(KeyboardInterrupt):
        finder.nads(20, path, progress=False)
    assert FeatureStore(path).num_done == 8
    Stopping.left = 13
    found = finder.nads(20, path, progress=False)
    assert Stopping.left == 0
    expected = GradientCovariance(POINT, Small).nads(20, progress=False)
    assert torch.allclose(found.singular_values, expected.singular_values, rtol=0, atol=1e-10)
    store = FeatureStore(path)
    assert torch.allclose(store.torch(), loop(20), rtol=0, atol=1e-12)
    assert store.verify().ok
    assert finder.nads(20, path, progress=False).num_samples == 20  # draws nothing


def test_another_run_is_refused(tmp_path):
    path = tmp_path / "rows.h5"
    GradientCovariance(POINT, Small).nads(4, path, progress=False)
    for finder, field in [
        (GradientCovariance(POINT, Small, seed=1), "output.seed"),
        (GradientCovariance(POINT + 1, Small), "output.eval_point"),
        (GradientCovariance(POINT, Small, {"width": 5}), "output.model_params"),
        (GradientCovariance(POINT, Small, jacobian="finite_difference"), "output.jacobian"),
    ]:
        with pytest.raises(StoreError, match=re.escape(field)):
            finder.nads(4, path, progress=False)
    # what is done with the rows may differ
    assert not GradientCovariance(POINT, Small, centered=False).nads(4, path).centered


def test_a_sketch_of_many_numbers(tmp_path):
    finder = GradientCovariance(POINT, Small)
    exact = finder.nads(60, progress=False)
    found = finder.nads(60, tmp_path / "rows.h5", progress=False, proj_dim=32)
    assert found.directions.shape == (16, 3, 6, 4)
    assert torch.allclose(found.singular_values[:4], exact.singular_values[:4], rtol=1e-2)


def test_training_mode(tmp_path):
    params = {"dropout": 0.5}
    one = GradientCovariance(POINT, Small, params, force_eval=False, group_size=1)
    many = GradientCovariance(POINT, Small, params, force_eval=False, group_size=7)
    assert torch.equal(one.gradients(0, 5), many.gradients(0, 5))
    with pytest.raises(ConfigError, match=r"in training mode.*force_eval=True"):
        GradientCovariance(POINT, Small, force_eval=False, jacobian="finite_difference").nads(
            3, progress=False
        )


class Broken(Small):
    def forward(self, x):
        return super().forward(x) / 0


class Bias(nn.Module):
    """One number that does not change the input's gradient; or no input at all."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.bias, self.weight = nn.Parameter(torch.randn(())), weight

    def forward(self, x):
        return self.weight * x.sum((1, 2, 3)) + self.bias


BAD = [
    ({"eval_point": [1.0]}, ConfigError, "eval_point is list; expected a float32"),
    ({"eval_point": torch.ones(2, dtype=torch.int64)}, ConfigError, "eval_point is torch.int64"),
    ({"eval_point": torch.tensor(1.0)}, ConfigError, r"eval_point has shape \(\)"),
    ({"eval_point": torch.zeros(0, 3)}, ConfigError, r"eval_point has shape \(0, 3\)"),
    ({"eval_point": POINT / 0}, ConfigError, "eval_point holds NaN"),
    ({"model_cls": Small()}, ConfigError, "model_cls is a Small; expected a class"),
    ({"model_params": {"depth": 3}}, ConfigError, r"Small cannot be built with \{'depth': 3\}.*"),
    ({"model_cls": dict}, ConfigError, "dict made a dict; expected a torch.nn.Module"),
    ({"model_params": {"outputs": 10}}, OutputError, r"Small returns \(1, 10\) for 1 input"),
    ({"model_cls": Broken}, NonFiniteError, "gradient of Broken number 0 holds NaN"),
    ({"model_cls": Bias}, DataError, "all equal, and centered=True"),
    ({"model_cls": Bias, "model_params": {"weight": 0.0}, "centered": False}, DataError, "zero"),
    ({"jacobian": "forward"}, ConfigError, "jacobian is 'forward'; expected one of autograd"),
    ({"scale": 0}, ConfigError, "scale is 0; expected a positive step"),
    ({"scale": float("nan")}, ConfigError, "scale is nan"),
    ({"seed": -1}, ConfigError, "seed is -1; expected an integer of at least 0"),
    ({"group_size": 0}, ConfigError, "group_size is 0"),
]


@pytest.mark.parametrize(("changed", "error", "words"), BAD)
def test_bad_input(changed, error, words):
    given = {"eval_point": POINT, "model_cls": Small, **changed}
    with pytest.raises(error, match=words):
        GradientCovariance(**given).nads(4, progress=False)


@pytest.mark.parametrize("count", [0, -3, 2.5, True, 1])
def test_too_few_networks(count):
    with pytest.raises(ConfigError, match=r"num_samples is .*; expected an integer of at least 2"):
        GradientCovariance(POINT, Small).nads(count)


def test_gradients_that_do_not_fit_into_memory():
    with pytest.raises(ConfigError, match="pass path= to keep them in a file"):
        GradientCovariance(POINT, Small).nads(10**13, progress=False)


def test_lenet_one_by_one_and_together():
    point = torch.randn(1, 32, 32)
    alone = GradientCovariance(point, LeNet, group_size=1).gradients(0, 6)
    together = GradientCovariance(point, LeNet).gradients(0, 6)
    assert np.allclose(alone, together, rtol=0, atol=1e-6 * float(alone.abs().max()))
