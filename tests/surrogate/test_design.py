import numpy as np
import pytest
import torch
from torch import nn

from pntk import Featurizer
from pntk.errors import ConfigError
from pntk.rows import as_rows
from pntk.store import FeatureStore
from pntk.surrogate import KernelSurrogate
from pntk.surrogate.design import Design, deviation
from pntk.surrogate.logistic import precondition


@pytest.fixture
def stores(tmp_path):
    """train.h5 with 40 rows and test.h5 with 10, of 16 numbers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    for seed in (0, 1):
        featurizer = Featurizer(net, proj_dim=16, seed=seed)
        for name, n in ((f"train{seed}.h5", 40), (f"test{seed}.h5", 10)):
            data = torch.randn(n, 5), torch.arange(n) % 3
            featurizer.featurize(data, tmp_path / name, progress=False).close()
    return {path.stem: FeatureStore(path) for path in tmp_path.glob("*.h5")}


@pytest.mark.parametrize("kind", ["glm", "ridge", "gp"])
def test_stores_larger_than_memory_give_the_same(stores, kind, monkeypatch):
    train, test = stores["train0"], stores["test0"]
    expected = KernelSurrogate(kind, alpha=0.01, tol=1e-4).fit(train)
    monkeypatch.setattr("pntk.surrogate.design.available_memory", lambda: 1000)
    model = KernelSurrogate(kind, alpha=0.01, tol=1e-4).fit(train)
    assert model._design.on_disk and not expected._design.on_disk
    np.testing.assert_allclose(model.predict_proba(test), expected.predict_proba(test), atol=1e-6)
    of_tensor = KernelSurrogate(kind, alpha=0.01, tol=1e-4).fit(train.torch(), train.labels)
    np.testing.assert_allclose(of_tensor.predict_proba(test), expected.predict_proba(test))
    terms = model.contributions(test)
    torch.testing.assert_close(terms.values, expected.contributions(test).values, atol=1e-5, rtol=0)


def test_stores_of_another_map_are_refused(stores):
    model = KernelSurrogate("ridge", alpha=0.1).fit(stores["train0"])
    with pytest.raises(ConfigError, match=r"differ in projection .* rows are comparable only"):
        model.predict(stores["test1"])
    model.predict(stores["test0"])


@pytest.fixture
def design():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    return Design(as_rows(rows), torch.rand(50, generator=generator, dtype=torch.float64))


def test_products(design):
    whole = design.dense()
    right = torch.randn(7, 2, dtype=torch.float64)
    left, weights = torch.randn(50, 2, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    close = torch.testing.assert_close
    close(whole, design.rows.source * design.scale[:, None])
    close(design.times(right), whole @ right)
    close(design.transposed_times(left), whole.T @ left)
    close(
        design.both(right, lambda part, f: f.tanh() * left[part]),
        whole.T @ ((whole @ right).tanh() * left),
    )
    close(design.gram(weights), whole.T @ (weights[:, None] * whole))
    close(design.kernel(), whole @ whole.T)
    assert design.squared_norms() == pytest.approx(float(whole.square().sum()))
    assert deviation(design) == pytest.approx(float((whole @ whole.T).std(correction=0)))


def test_samples_repeat_and_hold_no_example_twice(design):
    one, two = design.sample(20, 3), design.sample(20, 3)
    assert torch.equal(one.dense(), two.dense())
    assert not torch.equal(one.dense(), design.sample(20, 4).dense())
    assert len(one.dense().unique(dim=0)) == 20
    assert design.sample(50, 0) is design


@pytest.mark.parametrize("whole", [1024, 8])
def test_preconditioner_is_near_the_second_moment(whole, monkeypatch):
    monkeypatch.setattr("pntk.surrogate.logistic._WHOLE", whole)
    monkeypatch.setattr("pntk.surrogate.logistic._RANK", 10)
    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -3, 30, dtype=torch.float64)
    rows = 0.3 + torch.randn(60, 30, generator=generator, dtype=torch.float64) * decay
    design = Design(as_rows(rows), torch.ones(60, dtype=torch.float64))
    found = precondition(design, 0)
    torch.testing.assert_close(found.mean, rows.mean(0))
    moment = torch.cov(rows.T, correction=0) + 1e-3 * torch.eye(30, dtype=torch.float64)
    product = found.solve(moment, torch.ones(30, dtype=torch.float64), 1e-3)
    eigenvalues = torch.linalg.eigvals(product).real
    assert eigenvalues.max() / eigenvalues.min() < (1.001 if whole > 30 else 10)
    assert torch.linalg.cond(moment) > 200
