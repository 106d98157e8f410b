"""Models whose rows would depend on the batch or on chance, and what one is told about them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pntk import Featurizer
from pntk.errors import DataError, ModelError, OutputError


def net(layer, after=None):
    return nn.Sequential(nn.Linear(5, 6), layer, after or nn.Linear(6, 2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (net(nn.BatchNorm1d(6)), r"BatchNorm1d '1' is in training mode.*call model.eval\(\)"),
        (
            net(nn.BatchNorm1d(6, track_running_stats=False)).eval(),
            "BatchNorm1d '1' has no running statistics.*set track_running_stats=True",
        ),
        (net(nn.Dropout(0.1)), r"Dropout '1' is active.*call model.eval\(\)"),
        (net(nn.AlphaDropout(0.1)), r"AlphaDropout '1' is active"),
        (
            nn.Sequential(nn.Conv1d(1, 2, 3), nn.InstanceNorm1d(2, track_running_stats=True)),
            "InstanceNorm1d '1' is in training mode and would change its running statistics",
        ),
        (nn.Embedding(4, 2, max_norm=1.0), r"Embedding has max_norm=1.0.*set max_norm=None"),
        (
            nn.Embedding(4, 2, scale_grad_by_freq=True),
            "Embedding has scale_grad_by_freq=True, which mixes",
        ),
    ],
)
def test_refused_before_any_work(model, message):
    with pytest.raises(ModelError, match=message):
        Featurizer(model, proj_dim=64)


def test_inactive_dropout_is_no_trouble():
    rows = Featurizer(net(nn.Dropout(0.0)), proj_dim=64)(torch.randn(3, 5))
    assert rows.shape == (3, 64)


@pytest.mark.parametrize("prepared", [False, True])
def test_training_mode_is_refused_whenever_it_is_turned_on(prepared):
    model = net(nn.BatchNorm1d(6)).eval()
    featurizer = Featurizer(model, proj_dim=64)
    if prepared:
        featurizer(torch.randn(3, 5))
    model.train()
    with pytest.raises(ModelError, match="is in training mode"):
        featurizer(torch.randn(3, 5))


def test_functional_dropout():
    class Random(nn.Linear):
        def forward(self, x):
            return F.dropout(super().forward(x), training=self.training)

    model = Random(5, 3)
    with pytest.raises(ModelError, match="the forward pass of Random draws random numbers"):
        Featurizer(model, proj_dim=64)(torch.randn(3, 5))
    assert Featurizer(model.eval(), proj_dim=64)(torch.randn(3, 5)).shape == (3, 64)


def test_power_iteration_of_a_spectral_norm():
    """In training mode every forward pass changes its buffers, and with them the weight."""
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(40, 30)))
    with pytest.raises(ModelError, match=r"call model.eval\(\)"):
        Featurizer(model, proj_dim=64)(torch.randn(3, 40))


class AddsInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 5)
        self.b = nn.Linear(5, 5)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        y = self.b(h)
        h.add_(1)
        return y + h.detach()


def test_input_changed_in_place_after_its_use():
    with pytest.raises(ModelError, match="the input of b was changed in place after the layer"):
        Featurizer(AddsInPlace(), proj_dim=64)(torch.randn(3, 5))


def test_no_gradient_path():
    model = nn.Linear(5, 3)
    with pytest.raises(OutputError, match="the output has no gradient path to the selected"):
        Featurizer(model, lambda m, x: m(x).detach().sum(1), proj_dim=64)(torch.randn(3, 5))


def test_number_of_outputs_changes():
    columns = [2, 2, 2, 2, 2, 2]
    featurizer = Featurizer(
        nn.Linear(5, 3), lambda m, x: m(x)[:, : columns[0]], proj_dim=64, check=False
    )
    featurizer(torch.randn(3, 5))
    columns[0] = 3
    with pytest.raises(OutputError, match="the output has 3 columns and had 2 on the first batch"):
        featurizer(torch.randn(3, 5))


def test_layer_whose_input_stops_being_a_multiple_of_the_batch():
    extra = [0]

    class Odd(nn.Linear):
        pass

    model = nn.Sequential(Odd(5, 3))

    def output(model, x):
        x = torch.cat([x, x[: extra[0]]]) if extra[0] else x
        return model(x)[: len(x) - extra[0]].sum(1)

    featurizer = Featurizer(model, output, proj_dim=64, check=False)
    featurizer(torch.randn(3, 5))
    extra[0] = 1
    with pytest.raises(ModelError, match=r"0 got an input of shape \(4, 5\) for a batch of 3"):
        featurizer(torch.randn(3, 5))


def test_unknown_fallback_glob():
    with pytest.raises(ValueError, match=r"fallback glob 'no.such' matches no selected parameter"):
        Featurizer(nn.Linear(5, 3), fallback=["no.such"])


def test_batch_size_must_be_clear():
    featurizer = Featurizer(nn.Linear(5, 3), proj_dim=64)
    with pytest.raises(DataError, match=r"have \[3, 2\] as first dimensions"):
        featurizer((torch.randn(3, 5), torch.zeros(2)))
