import json
import math

import pytest
import torch
from torch import nn

from pntk.errors import ConfigError, ModelError
from pntk.nads import directional
from pntk.nads.directional import directional_bias
from pntk.nads.training import Training

FEW = {"num_train": 400, "num_test": 400, "training": Training(epochs=3), "progress": False}


class Blind(nn.Module):
    """A linear classifier that sees the first half of its inputs alone."""

    def __init__(self, classes=2, scale=1.0):
        super().__init__()
        self.linear = nn.Linear(8, classes)
        self.scale = scale

    def forward(self, x):
        return self.linear(x.flatten(1)[:, :8]) * self.scale


def axes(*numbers):
    return torch.eye(16)[list(numbers)].view(-1, 1, 4, 4)


def test_accuracy_follows_what_the_network_sees():
    found = directional_bias(Blind, 2 * axes(0, 5, 9, 15), sigma=0.5, **FEW)
    assert (found.accuracy[:2] > 0.95).all() and (abs(found.accuracy[2:] - 0.5) < 0.1).all()
    torch.testing.assert_close(found.directions, axes(0, 5, 9, 15))


def test_an_accuracy_does_not_depend_on_other_directions():
    many = directional_bias(Blind, axes(3, 4, 7), **FEW).accuracy
    alone = directional_bias(Blind, axes(7), **FEW).accuracy
    assert alone[0] == many[2]
    other = directional_bias(Blind, axes(7), **FEW, seed=1).accuracy
    assert other[0] != alone[0]


def test_goes_on_where_it_stopped(tmp_path, monkeypatch):
    path = tmp_path / "bias.json"
    full = directional_bias(Blind, axes(1, 2, 9, 3), **FEW)
    trained = []
    original = directional.train_classifier

    def train(*args, **kwargs):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(directional, "train_classifier", train)
    with pytest.raises(KeyboardInterrupt):
        directional_bias(Blind, axes(1, 2, 9, 3), **FEW, path=path)
    assert len(json.loads(path.read_text())["values"]) == 2
    trained.clear()
    again = directional_bias(Blind, axes(1, 2, 9, 3), **FEW, path=path)
    assert len(trained) == 2
    assert again.accuracy.tolist() == full.accuracy.tolist()
    # any other directions use what is there
    trained.extend([1, 1])
    directional_bias(Blind, axes(3, 1), **FEW, path=path)
    with pytest.raises(ConfigError, match="measurements with other seed, sigma"):
        directional_bias(Blind, axes(1), **FEW, path=path, sigma=1, seed=3)


def test_training_that_diverges_is_not_a_number(tmp_path):
    path = tmp_path / "bias.json"
    params = {"scale": math.inf}
    found = directional_bias(Blind, axes(0), params, **FEW, path=path)
    again = directional_bias(Blind, axes(0), params, **FEW, path=path)
    assert math.isnan(found.accuracy[0]) and math.isnan(again.accuracy[0])


@pytest.mark.parametrize(
    ("directions", "options", "match"),
    [
        (torch.zeros(2, 1, 4, 4), {}, r"direction 0 of shape \(1, 4, 4\) has length 0.0"),
        (torch.zeros(0, 1, 4, 4), {}, r"directions is \(0, 1, 4, 4\); expected a tensor"),
        ([1], {}, "directions is list"),
        (axes(0), {"num_train": 1}, "num_train is 1; expected an integer of at least 2"),
        (axes(0), {"num_test": 2.0}, "num_test is 2.0"),
        (axes(0), {"sigma": -1}, "sigma is -1"),
        (axes(0), {"epsilon": 0}, "epsilon is 0"),
    ],
)
def test_arguments_that_are_refused(directions, options, match):
    with pytest.raises(ConfigError, match=match):
        directional_bias(Blind, directions, **options)


def test_networks_that_are_refused():
    with pytest.raises(ModelError, match="give it 2 classes, such as model_params"):
        directional_bias(Blind, axes(0), {"classes": 1})


def test_test_samples_are_others_than_train_samples():
    training = Training(epochs=100, lr=1, clip=None, batch_size=8)
    few = {"num_train": 8, "num_test": 8, "training": training, "progress": False}
    found = directional_bias(Blind, axes(9, 11, 13, 15), **few)
    assert found.accuracy.mean() < 0.9  # it knows all 8 that it has seen
