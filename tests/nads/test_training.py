import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from pntk.errors import ConfigError, DataError, ModelError
from pntk.nads.training import (
    Training,
    accuracy,
    as_classes,
    make_classifier,
    train_classifier,
)

CPU = torch.device("cpu")


def linear(classes=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, classes))


def test_rate_falls_linearly_and_gradients_are_clipped():
    x, y = torch.randn(5, 6), torch.tensor([0, 1, 0, 1, 1])
    training = Training(epochs=2, lr=0.3, clip=0.1, batch_size=3)
    expected = linear()
    model = copy.deepcopy(expected)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        batches = [batch for _ in range(2) for batch in torch.randperm(5).split(3)]
    for number, batch in enumerate(batches):
        expected.zero_grad()
        F.cross_entropy(expected(x[batch]), y[batch]).backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in expected.parameters()))
        assert norm > 0.1
        with torch.no_grad():
            for p in expected.parameters():
                p -= 0.3 * (1 - (number + 1) / 4) * p.grad * 0.1 / norm
    train_classifier(model, x, y, training, seed=3)
    torch.testing.assert_close(model[1].weight, expected[1].weight, atol=1e-6, rtol=0)
    assert not model.training


def test_generators_stay_as_they_were():
    state = torch.random.get_rng_state()
    x, y = torch.randn(4, 6, generator=torch.Generator()), torch.tensor([0, 1, 0, 1])
    model = make_classifier(linear, None, x[:1], 2, seed=5, device=CPU)
    train_classifier(model, x, y, Training(epochs=1), seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    again = make_classifier(linear, {"classes": 2}, x[:1], 2, seed=5, device=CPU)
    other = make_classifier(linear, None, x[:1], 2, seed=6, device=CPU)
    assert not torch.equal(again[1].weight, other[1].weight)


def test_accuracy():
    x, y = torch.eye(4), torch.tensor([0, 1, 2, 0])
    assert accuracy(nn.Identity(), x, y, batch_size=3) == 0.75
    assert math.isnan(accuracy(nn.Identity(), x * math.inf, y))


@pytest.mark.parametrize(
    ("model_cls", "params", "match"),
    [
        (linear, {"classes": 1}, r"returned \(1, 1\) for 1 input; expected \[1, c\] .* least 2"),
        (linear, {"wide": 1}, r"linear\(\*\*{'wide': 1}\) raised TypeError"),
        (lambda: 3, {}, "returned int; expected a torch.nn.Module"),
        (lambda: nn.Linear(7, 2), {}, r"cannot take inputs of shape \(6,\)"),
    ],
)
def test_networks_that_are_refused(model_cls, params, match):
    with pytest.raises(ModelError, match=match):
        make_classifier(model_cls, params, torch.zeros(1, 6), 2, seed=0, device=CPU)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "epochs is 0; expected an integer of at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"lr": 0}, "lr is 0; expected a finite number above 0"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
        ({"clip": 0}, "clip is 0"),
    ],
)
def test_settings_that_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        Training(**options)


def test_data_of_several_kinds():
    x, y = torch.rand(3, 1, 2, 2).double(), torch.tensor([2, 0, 1], dtype=torch.int32)
    for data in ((x, y), [x, [2, 0, 1]], TensorDataset(x, y)):
        found_x, found_y = as_classes("train", data)
        torch.testing.assert_close(found_x, x.float())
        assert found_y.tolist() == [2, 0, 1] and found_y.dtype == torch.int64


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (3, r"train is int \(.*\); expected tensors \(x \[n, ...\], y \[n\]\), or a data set"),
        ([(torch.ones(2), 0), (torch.ones(3), 1)], "whose tensors have one shape"),
        ((torch.ones(2, 3).byte(), [0, 1]), "scale bytes with x.float"),
        ((torch.ones(0, 3), []), "at least one"),
        ((torch.ones(2, 3), [0]), r"labels torch.int64 \(1,\) for 2 inputs"),
        ((torch.ones(2, 3), [0.5, 1]), "labels torch.float32"),
        ((torch.ones(2, 3), [-1, 1]), "an integer of at least 0 for each"),
        ((torch.full((2, 3), math.nan), [0, 1]), "inputs that are NaN or infinite"),
    ],
)
def test_data_that_is_refused(data, match):
    with pytest.raises(DataError, match=match):
        as_classes("train", data)
