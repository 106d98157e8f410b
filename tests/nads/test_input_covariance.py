"""The covariance of projected input gradients against plain loops."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pntk import Featurizer
from pntk.errors import ConfigError, DataError, ModelError, NonFiniteError

X = torch.randn(13, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
Y = torch.arange(13) % 3


def network(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 5, 2), nn.Tanh(), nn.Flatten(), nn.Linear(30, 3)]
    return nn.Sequential(*layers).double().eval()


def gradients(model, outputs=None):
    """Return grad_x of each logit, or of their sum, [n, c, 24]."""
    found = []
    for x in X:
        x = x[None].clone().requires_grad_()
        logits = model(x)[0]
        chosen = [logits.sum()] if outputs is None else [logits[c] for c in outputs]
        found.append(
            torch.stack([torch.autograd.grad(f, x, retain_graph=True)[0].flatten() for f in chosen])
        )
    return torch.stack(found)


def covariance(featurizer, *args, **options):
    return featurizer.nad_covariance(*args, progress=False, **options)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_without_projection(batch_size):
    model = network()
    g = gradients(model)[:, 0]
    found = covariance(Featurizer(model, projection="identity"), (X, Y), batch_size=batch_size)
    assert torch.allclose(found, g.T @ g / 13, rtol=0, atol=1e-12)
    found = covariance(
        Featurizer(model, projection="identity"), (X, Y), batch_size=batch_size, centered=True
    )
    assert torch.allclose(found, torch.cov(g.T, correction=0), rtol=0, atol=1e-12)


def test_checkpoints_are_averaged_and_weights_restored():
    model, states = network(), [network(seed).state_dict() for seed in (1, 2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = covariance(Featurizer(model, projection="identity"), X, iter(states))
    g = torch.cat([gradients(network(seed))[:, 0] for seed in (1, 2)])
    assert torch.allclose(found, g.T @ g / 26, rtol=0, atol=1e-12)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_each_logit_has_a_projection_of_its_own():
    model = network()
    found = covariance(Featurizer(model, "trace", projection="identity"), X)
    g = gradients(model, outputs=(0, 1, 2)).flatten(1)
    assert torch.allclose(found, g.T @ g / 13, rtol=0, atol=1e-12)


def test_projected():
    model = network()
    g = gradients(model)[:, 0]
    found = [covariance(Featurizer(model, proj_dim=16, seed=s), X) for s in range(40)]
    assert found[0].shape == (16, 16)
    assert found[0].dtype == torch.float64
    traces = torch.stack([c.trace() for c in found])
    expected = (g**2).sum() / 13  # E|phi|^2 = |g|^2
    assert abs(traces.mean() - expected) < 4 * traces.std() / 40**0.5
    again = covariance(Featurizer(model, proj_dim=16, seed=0), TensorDataset(X, Y), batch_size=4)
    assert torch.allclose(found[0], again, rtol=0, atol=1e-12)


def test_a_loader():
    model = network()
    loader = DataLoader(TensorDataset(X, Y), batch_size=6)
    featurizer = Featurizer(model, "margin", projection="identity")
    assert torch.allclose(covariance(featurizer, loader), covariance(featurizer, (X, Y)))


class Tokens(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids).sum(1)


def test_bad_input():
    model = network()
    featurizer = Featurizer(model, projection="identity")
    with pytest.raises(DataError, match="token numbers have no gradient"):
        covariance(Featurizer(Tokens(5, 3), projection="identity"), torch.ones(2, 3).long())
    with pytest.raises(NonFiniteError, match="row of sample 1"):
        covariance(featurizer, X * torch.tensor([1.0, float("nan")] + [1.0] * 11).view(-1, 1, 1, 1))
    with pytest.raises(ConfigError, match="no checkpoints"):
        covariance(featurizer, X, [])
    with pytest.raises(ConfigError, match="checkpoint 1 does not fit the model"):
        covariance(featurizer, X, [model.state_dict(), {}])
    with pytest.raises(ConfigError, match=r"rows are 32,768 wide.*smaller proj_dim"):
        covariance(Featurizer(model, proj_dim=2**15), X)
    with pytest.raises(DataError, match="does not depend on the first floating-point"):
        covariance(Featurizer(model, lambda m, b: m(b[1]).sum(1), projection="identity"), (X, X))
    mixing = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(24, 2)).double().eval()
    featurizer = Featurizer(mixing)
    mixing.train()
    with pytest.raises(ModelError, match="training mode"):
        covariance(featurizer, X)


def test_the_package_is_imported_without_directions():
    code = "import sys, pntk; assert not [m for m in sys.modules if m.startswith('pntk.nads')]"
    subprocess.run([sys.executable, "-c", code], check=True)
