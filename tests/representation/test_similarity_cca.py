import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pntk.errors import ConfigError, DataError, PntkWarning
from pntk.representation.cca import cca, cca_by_qr, cca_by_svd, pwcca, svcca

METHODS = {"svd": cca_by_svd, "qr": cca_by_qr}


def draw(n=40, d=5, e=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    mixed = x[:, :1] @ torch.ones(1, e, dtype=torch.float64)
    return x + 3, mixed + torch.randn(n, e, generator=generator, dtype=torch.float64)


def by_eigenvalues(x, y, ridge=0.0):
    """Definition: rho^2 are the eigenvalues of Sxx^-1 Sxy Syy^-1 Syx."""
    x, y = x.numpy() - x.numpy().mean(0), y.numpy() - y.numpy().mean(0)
    n = len(x)
    sxx = x.T @ x / n + ridge * np.eye(x.shape[1])
    syy = y.T @ y / n + ridge * np.eye(y.shape[1])
    sxy = x.T @ y / n
    values = np.linalg.eigvals(np.linalg.solve(sxx, sxy) @ np.linalg.solve(syy, sxy.T)).real
    return np.sqrt(np.sort(values)[::-1][: min(sxy.shape)].clip(0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize(("d", "e"), [(5, 3), (3, 5), (1, 1), (4, 4)])
def test_correlations_are_those_of_the_definition(method, ridge, d, e):
    x, y = draw(d=d, e=e)
    found = METHODS[method](x, y, ridge=ridge)
    expected = by_eigenvalues(x, y, ridge)
    np.testing.assert_allclose(found.correlations, expected, atol=1e-8)
    assert cca(x, y, method=method, ridge=ridge) == pytest.approx(expected.mean(), abs=1e-8)
    squared = cca(x, y, method=method, ridge=ridge, average="squared")
    assert squared == pytest.approx((expected**2).mean(), abs=1e-8)


@pytest.mark.parametrize("method", METHODS.values())
def test_directions_are_canonical(method):
    x, y = draw()
    found = method(x, y)
    p, q = (x - x.mean(0)) @ found.x_weights, (y - y.mean(0)) @ found.y_weights
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(p.T @ p, eye, atol=1e-10, rtol=0)
    torch.testing.assert_close(q.T @ q, eye, atol=1e-10, rtol=0)
    torch.testing.assert_close(p.T @ q, found.correlations.diag(), atol=1e-10, rtol=0)


def test_scikit_learn_agrees():
    cross = pytest.importorskip("sklearn.cross_decomposition")
    x, y = draw()
    fitted = cross.CCA(n_components=3, max_iter=10000, tol=1e-12).fit(x.numpy(), y.numpy())
    p, q = fitted.transform(x.numpy(), y.numpy())
    theirs = sorted((np.corrcoef(p[:, i], q[:, i])[0, 1] for i in range(3)), reverse=True)
    np.testing.assert_allclose(cca_by_svd(x, y).correlations, theirs, atol=1e-5)


@pytest.mark.parametrize("measure", [cca, svcca, pwcca])
def test_closed_forms(measure):
    x, y = draw(d=4, e=4)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    assert measure(x, x) == pytest.approx(1, abs=1e-12)
    assert measure(x, 7 - 2 * x @ turn) == pytest.approx(1, abs=1e-10)
    assert measure(x, y) < 0.9
    # orthogonal designs: every correlation is 0
    one = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    other = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert measure(one, other) == pytest.approx(0, abs=1e-12)


def test_invertible_maps_change_neither_cca_nor_pwcca_of_the_other_side():
    x, y = draw(d=4, e=3)
    mixing = torch.randn(3, 3, dtype=torch.float64)
    assert cca(x, x @ torch.randn(4, 4, dtype=torch.float64)) == pytest.approx(1, abs=1e-8)
    assert cca(x, y @ mixing) == pytest.approx(cca(x, y), abs=1e-10)
    assert pwcca(x, y @ mixing) == pytest.approx(pwcca(x, y), abs=1e-10)
    assert pwcca(x @ torch.diag(torch.tensor([9.0, 1, 1, 1]).double()), y) != pytest.approx(
        pwcca(x, y), abs=1e-3
    )


def test_independent_correlations_have_the_known_mean_square():
    n, d, e = 60, 6, 4  # E[sum of rho^2] = d e / (n - 1), of Pillai's trace
    values = [
        cca(torch.randn(n, d), torch.randn(n, e), average="squared") * min(d, e) for _ in range(300)
    ]
    assert np.mean(values) == pytest.approx(d * e / (n - 1), rel=0.05)


@pytest.mark.parametrize("side", ["x", "y", "fewer"])
def test_pwcca_by_loops(side):
    x, y = draw()
    found = cca_by_svd(x, y)
    neurons, weights = (x, found.x_weights) if side == "x" else (y, found.y_weights)
    neurons = neurons - neurons.mean(0)
    alpha = []
    for i in range(3):
        h = neurons @ weights[:, i]
        alpha.append(sum(abs(float(h @ neurons[:, j])) for j in range(neurons.shape[1])))
    rho = found.correlations.tolist()
    expected = sum(a * r for a, r in zip(alpha, rho, strict=True)) / sum(alpha)
    assert pwcca(x, y, weights_from=side) == pytest.approx(expected, abs=1e-10)


def test_pwcca_is_not_symmetric_but_its_sides_swap():
    x, y = draw()
    assert pwcca(x, y) != pytest.approx(pwcca(y, x), abs=1e-3)
    assert pwcca(x, y) == pytest.approx(pwcca(y, x, weights_from="y"), abs=1e-10)


@pytest.mark.parametrize(("threshold", "kept"), [(0.5, 1), (0.8, 2), (0.95, 3), (1.0, 4)])
def test_svcca_keeps_the_fewest_directions_that_hold_the_share(threshold, kept):
    # variances 64, 25, 10, 1 in a hundred
    base = torch.linalg.qr(torch.randn(50, 4, dtype=torch.float64) - 0)[0]
    base = torch.linalg.qr(base - base.mean(0))[0]
    x = base * torch.tensor([8.0, 5, 10**0.5, 1]) + 100  # far from 0: centred first
    assert torch.allclose((x - x.mean(0)).square().sum(0), torch.tensor([64.0, 25, 10, 1]).double())
    y = torch.randn(50, 4, dtype=torch.float64)
    expected = cca(base[:, :kept], y)
    assert svcca(x, y, threshold=threshold) == pytest.approx(
        _mean_with_all(base[:, :kept], y, threshold), abs=1e-9
    )
    assert svcca(x, y, dims=2) == pytest.approx(_mean_with_all(base[:, :2], y, dims=2), abs=1e-9)
    if threshold == 1:
        assert svcca(x, y, threshold=1.0) == pytest.approx(expected, abs=1e-9)


def _mean_with_all(kept, y, threshold=1.0, dims=None):
    """SVCCA by definition: PCA of y by NumPy, then plain CCA."""
    centred = y.numpy() - y.numpy().mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values, vectors = values[::-1], vectors[:, ::-1]
    count = dims
    if count is None:
        shares = np.cumsum(values) / values.sum()
        count = next(i + 1 for i, share in enumerate(shares) if share >= threshold - 1e-12)
    return cca(kept, torch.from_numpy((centred @ vectors[:, :count]).copy()))


def test_svcca_takes_more_neurons_than_samples():
    x = torch.randn(30, 4) @ torch.randn(4, 200)
    assert svcca(x, 5 - 3 * x) == pytest.approx(1, abs=1e-6)
    dead = torch.cat([torch.randn(30, 3), torch.zeros(30, 2)], 1)
    assert svcca(dead, dead, threshold=1.0) == pytest.approx(1)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_symmetric_and_within_0_and_1(seed, d, e):
    x, y = draw(n=12, d=d, e=e, seed=seed)
    for measure in (cca, svcca):
        value = measure(x, y)
        assert 0 <= value <= 1
        assert measure(y, x) == pytest.approx(value, abs=1e-10)


def test_too_few_samples_are_refused_with_the_number_needed():
    x = torch.randn(20, 30)
    message = "x has 20 samples of 30 neurons; CCA needs at least 31 samples .*svcca.*cka.*ridge"
    with pytest.raises(DataError, match=message):
        cca(x, torch.randn(20, 3))
    with pytest.raises(DataError, match=r"y has 20 samples of 20 neurons.*at least 21 samples"):
        pwcca(torch.randn(20, 3), torch.randn(20, 20))
    assert 0 < cca(x, torch.randn(20, 3), ridge=0.1) < 1


@pytest.mark.parametrize("method", METHODS)
def test_neurons_that_are_combinations_are_refused(method):
    x = torch.randn(40, 5)
    dead = torch.cat([x, torch.zeros(40, 2)], 1)
    with pytest.raises(DataError, match="7 neurons of rank 5 \\(2 are constant\\)"):
        cca(dead, x, method=method)
    twice = torch.cat([x, x[:, :1] + x[:, 1:2]], 1)
    with pytest.raises(DataError, match="y has 6 neurons of rank 5 \\(some are combinations"):
        cca(x, twice, method=method)  # but for the rounding of float32


def test_a_warning_where_correlations_are_1_whatever_the_data():
    x, y = torch.randn(10, 6), torch.randn(10, 5)
    with pytest.warns(PntkWarning, match="at least 2 of 5 canonical correlations are 1 whatever"):
        rho = cca_by_svd(x, y).correlations
    assert int((rho > 1 - 1e-9).sum()) == 2
    cca(torch.randn(12, 6), y.repeat(2, 1)[:12] + torch.randn(12, 5))  # one more: none


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: cca(x, x, method="eig"), ConfigError, "method is 'eig'; expected 'svd' or 'qr'"),
        (lambda x: cca(x, x, average="max"), ConfigError, "average is 'max'"),
        (lambda x: cca(x, x, ridge=-1.0), ConfigError, "ridge is -1.0; expected a variance"),
        (lambda x: svcca(x, x, threshold=0), ConfigError, "threshold is 0; expected a share"),
        (lambda x: svcca(x, x, dims=9), ConfigError, "dims is 9; expected 1 to 3, the rank of x"),
        (lambda x: pwcca(x, x, weights_from="z"), ConfigError, "weights_from is 'z'"),
        (lambda x: cca(x, x[:-1]), DataError, "x has 20 rows and y 19; expected the same samples"),
        (lambda x: cca(x, x[..., None]), DataError, r"y has shape \(20, 3, 1\)"),
        (lambda x: cca(x, x * 0 + 3), DataError, "the rows of y are all equal"),
        (lambda x: cca(x, x / 0), DataError, "y holds NaN or infinity, first in row 0"),
        (lambda x: cca(x[:1], x[:1]), DataError, "x and y have 1 rows; expected at least 2"),
        (lambda x: cca(x, "rows"), DataError, "y is a str; expected a tensor or array"),
        (lambda x: cca(x[:, 0], x), DataError, r"x is torch.float32 of shape \(20,\)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(20, 3))
