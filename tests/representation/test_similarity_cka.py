import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pntk.errors import ConfigError, DataError
from pntk.ntk.alignment import centered_alignment
from pntk.representation.cka import MinibatchCKA, linear_cka, rbf_cka, unbiased_hsic


def draw(n=12, d=5, e=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x + 2, x[:, :1] + torch.randn(n, e, generator=generator, dtype=torch.float64)


def biased(k, m):
    """HSIC_0 by the definition with matrices: tr(K H M H)."""
    n = len(k)
    h = np.eye(n) - 1 / n
    return np.trace(k @ h @ m @ h)


def song(k, m):
    """HSIC_1 by the formula of Song et al. (2012)."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def cosine(product, k, m):
    return product(k, m) / math.sqrt(product(k, k) * product(m, m))


def gaussian(x, sigma):
    x = np.asarray(x)
    n = len(x)
    distances = [np.linalg.norm(x[i] - x[j]) for i in range(n) for j in range(i)]
    scale = sigma * np.median(distances)
    return np.array([[np.exp(-((a - b) ** 2).sum() / (2 * scale**2)) for b in x] for a in x])


@pytest.mark.parametrize(("n", "d", "e"), [(12, 5, 3), (5, 30, 40), (6, 2, 40)])
def test_linear_equals_its_definition(n, d, e):
    x, y = draw(n, d, e)
    k, m = (z.numpy() @ z.numpy().T for z in (x, y))
    assert linear_cka(x, y) == pytest.approx(cosine(biased, k, m), abs=1e-10)
    assert linear_cka(x, y, debiased=True) == pytest.approx(cosine(song, k, m), abs=1e-8)
    assert linear_cka(x, y) == pytest.approx(centered_alignment(x @ x.T, y @ y.T), abs=1e-10)


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_rbf_equals_its_definition(sigma):
    x, y = draw()
    k, m = gaussian(x, sigma), gaussian(y, sigma)
    assert rbf_cka(x, y, sigma=sigma) == pytest.approx(cosine(biased, k, m), abs=1e-10)
    unbiased = rbf_cka(x, y, sigma=sigma, debiased=True)
    assert unbiased == pytest.approx(cosine(song, k, m), abs=1e-10)


def test_hsic_equals_the_formula_of_song():
    x, y = draw(9)
    k, m = x @ x.T, (y @ y.T).exp() / 100
    assert unbiased_hsic(k, m) == pytest.approx(song(k.numpy(), m.numpy()), rel=1e-10)
    for few in (k[:3, :3], m[:8, :8]):
        with pytest.raises(DataError, match=r"expected both \[n, n\] of at least 4 samples"):
            unbiased_hsic(few, k[:3, :3])


@pytest.mark.parametrize("measure", [linear_cka, rbf_cka])
@pytest.mark.parametrize("debiased", [False, True])
def test_closed_forms(measure, debiased):
    x, y = draw(20, 4, 4)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    assert measure(x, x, debiased=debiased) == pytest.approx(1, abs=1e-12)
    assert measure(x, 7 - 2 * x @ turn, debiased=debiased) == pytest.approx(1, abs=1e-9)
    stretched = x * torch.tensor([30.0, 1, 1, 1])
    assert measure(x, stretched, debiased=debiased) < 0.95
    before = measure(x, y, debiased=debiased)
    assert measure(2 * x - 1, y @ turn, debiased=debiased) == pytest.approx(before, abs=1e-9)


def test_one_neuron_each_is_the_squared_correlation():
    x, y = draw(d=1, e=1)
    expected = np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-12)


def test_independent_representations():
    pairs = [(torch.randn(20, 60), torch.randn(20, 60)) for _ in range(100)]
    plain = np.mean([linear_cka(x, y) for x, y in pairs])
    unbiased = [linear_cka(x, y, debiased=True) for x, y in pairs]
    assert plain > 0.6
    assert abs(np.mean(unbiased)) < 4 * np.std(unbiased) / 10
    assert min(unbiased) < 0


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6))
def test_symmetric_and_within_bounds(seed, d, e):
    x, y = draw(8, d, e, seed)
    for measure in (linear_cka, rbf_cka):
        for debiased in (False, True):
            value = measure(x, y, debiased=debiased)
            assert -1 <= value <= 1
            assert debiased or value >= 0
            assert measure(y, x, debiased=debiased) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_minibatches_average_the_unbiased_formula(kernel):
    sums = MinibatchCKA(kernel)
    layers = [draw(21, 5, 3, seed) for seed in (1, 2)]
    xs, ys = [layers[0][0], layers[1][0], layers[0][1]], [layers[0][1], layers[1][1]]
    cuts = [slice(0, 8), slice(8, 16), slice(16, 21)]
    for cut in cuts:
        sums.update([x[cut] for x in xs], [y[cut] for y in ys])

    def kernels(z):
        if kernel == "linear":
            return [z[cut].numpy() @ z[cut].numpy().T for cut in cuts]
        z = z.numpy()
        first = z[cuts[0]]
        scale = np.median([np.linalg.norm(a - b) for i, a in enumerate(first) for b in first[:i]])
        return [np.exp(-((z[cut][:, None] - z[cut]) ** 2).sum(2) / (2 * scale**2)) for cut in cuts]

    def mean(a, b):
        each = [len(k) * song(k, m) for k, m in zip(kernels(a), kernels(b), strict=True)]
        return sum(each) / 21

    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            expected = mean(x, y) / math.sqrt(mean(x, x) * mean(y, y))
            assert float(sums.matrix()[i, j]) == pytest.approx(expected, abs=1e-10)


def test_one_minibatch_is_the_whole_and_layers_have_names():
    x, y = draw(30)
    sums = MinibatchCKA()
    sums.update({"x": x}, {"y": y})
    assert float(sums.matrix()) == pytest.approx(linear_cka(x, y, debiased=True), abs=1e-10)
    with pytest.raises(DataError, match="layer 'dead' of y has a kernel of which centring leaves"):
        dead = MinibatchCKA()
        dead.update({"x": x}, {"dead": y * 0 + 5})
        dead.matrix()


def test_minibatches_come_near_all_samples_where_plain_cka_does_not():
    x = torch.randn(2048, 40)
    y = x @ torch.randn(40, 50) + 4 * torch.randn(2048, 50)
    sums = MinibatchCKA()
    for start in range(0, 2048, 32):
        sums.update([x[start : start + 32]], [y[start : start + 32]])
    whole = linear_cka(x, y, debiased=True)
    assert float(sums.matrix()) == pytest.approx(whole, abs=0.02)
    assert linear_cka(x[:32], y[:32]) > whole + 0.1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: linear_cka(x[:3], x[:3], debiased=True), DataError, "3 rows; expected at least"),
        (lambda x: linear_cka(x, x * 0), DataError, "the rows of y are all equal"),
        (lambda x: linear_cka(torch.eye(9), x[:9], debiased=True), DataError, "a kernel of x of"),
        (lambda x: rbf_cka(x, x, sigma=0), ConfigError, "sigma is 0; expected a positive multiple"),
        (lambda x: rbf_cka(x, _equal(x)), DataError, "the median distance of two samples of y is"),
        (lambda x: MinibatchCKA("poly"), ConfigError, "kernel is 'poly'; expected 'linear' or"),
        (lambda x: MinibatchCKA("rbf", sigma=-1), ConfigError, "sigma is -1"),
        (lambda x: MinibatchCKA().matrix(), DataError, "no minibatch has been added"),
        (lambda x: MinibatchCKA().update([x[:3]], [x[:3]]), DataError, "has 3 samples; expected m"),
        (lambda x: MinibatchCKA().update([x], [x[:9]]), DataError, "x and y have 20 and 9 samples"),
        (lambda x: MinibatchCKA().update([x, x[:9]], [x]), DataError, "'1' of x has 9 samples; ex"),
        (lambda x: MinibatchCKA().update([], [x]), DataError, "x has 0 layers; expected at least"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(20, 3))


def _equal(x):
    x = x.clone()
    x[1:] = 1
    return x


def test_the_number_of_layers_stays():
    x = torch.randn(20, 3)
    sums = MinibatchCKA()
    sums.update([x], [x])
    with pytest.raises(DataError, match=r"has 2 and 1 layers; expected \(1, 1\), as before"):
        sums.update([x, x], [x])
