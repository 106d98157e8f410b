import doctest
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pntk.errors import ConfigError, DataError
from pntk.representation import MEASURES, distance, similarity
from pntk.representation.cca import cca
from pntk.representation.feature_maps import downsample, matrices
from pntk.representation.neighbours import neighbour_overlap
from pntk.representation.procrustes import procrustes, procrustes_distance
from pntk.representation.rsa import dissimilarities, rsa


def draw(n=15, d=5, e=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x + 2, x[:, :1] + torch.randn(n, e, generator=generator, dtype=torch.float64)


def normalised(x):
    x = x.numpy() - x.numpy().mean(0)
    return x / np.linalg.norm(x)


# ---- orthogonal Procrustes ---------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(15, 4), (5, 30)])
def test_procrustes_is_what_scipy_rotates_to(n, d):
    linalg = pytest.importorskip("scipy.linalg")
    spatial = pytest.importorskip("scipy.spatial")
    x, y = draw(n, d, d)
    a, b = normalised(x), normalised(y)
    turn, scale = linalg.orthogonal_procrustes(a, b)
    assert procrustes(x, y) == pytest.approx(scale, abs=1e-10)
    left = np.linalg.norm(a @ turn - b) ** 2
    assert procrustes_distance(x, y) == pytest.approx(left, abs=1e-9)
    assert procrustes_distance(x, y, "euclidean") == pytest.approx(math.sqrt(left), abs=1e-9)
    assert math.cos(procrustes_distance(x, y, "angular")) == pytest.approx(scale, abs=1e-10)
    disparity = spatial.procrustes(x.numpy(), y.numpy())[2]
    assert 1 - procrustes(x, y) ** 2 == pytest.approx(disparity, abs=1e-9)


def test_procrustes_fills_up_the_narrower_side():
    x, y = draw()
    wide = torch.cat([y, torch.zeros(15, 2)], 1)
    assert procrustes(x, y) == pytest.approx(procrustes(x, wide), abs=1e-12)
    assert distance(x, y, "procrustes") == pytest.approx(procrustes_distance(x, y) / 2, abs=1e-12)


@given(st.integers(0, 10**6))
def test_angular_procrustes_keeps_the_triangle_inequality(seed):
    (x, y), (z, _) = draw(6, 3, 3, seed), draw(6, 3, 3, seed + 1)
    one, two = (procrustes_distance(x, a, "angular") for a in (y, z))
    assert procrustes_distance(y, z, "angular") <= one + two + 1e-9


# ---- neighbours --------------------------------------------------------------------------------


def neighbours_by_loops(x, y, k, metric, jaccard):
    def nearest(rows, i):
        def far(j):
            a, b = rows[i], rows[j]
            if metric == "euclidean":
                return np.linalg.norm(a - b)
            return -(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)

        return set(sorted((j for j in range(len(rows)) if j != i), key=far)[:k])

    x, y, total = x.numpy(), y.numpy(), 0.0
    for i in range(len(x)):
        a, b = nearest(x, i), nearest(y, i)
        total += len(a & b) / (len(a | b) if jaccard else k)
    return total / len(x)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("jaccard", [False, True])
def test_neighbours_by_loops(monkeypatch, metric, jaccard):
    x, y = draw()
    expected = neighbours_by_loops(x, y, 4, metric, jaccard)
    assert 0.1 < expected < 0.9
    found = neighbour_overlap(x, y, k=4, metric=metric, jaccard=jaccard)
    assert found == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr("pntk.representation.neighbours._BLOCK_BYTES", 8 * 15 * 4)
    again = neighbour_overlap(x, y, k=4, metric=metric, jaccard=jaccard)
    assert again == pytest.approx(found, abs=1e-12)


def test_scikit_learn_finds_the_same_neighbours():
    neighbors = pytest.importorskip("sklearn.neighbors")
    x, y = draw(60)
    found = [
        neighbors.NearestNeighbors(n_neighbors=5).fit(z).kneighbors(return_distance=False)
        for z in (x.numpy(), y.numpy())
    ]
    shares = [len(set(a) & set(b)) / 5 for a, b in zip(*found, strict=True)]
    expected = pytest.approx(np.mean(shares), abs=1e-12)
    assert neighbour_overlap(x, y, k=5, metric="euclidean") == expected


def test_independent_neighbours_meet_by_chance():
    values = [neighbour_overlap(torch.randn(50, 8), torch.randn(50, 8), k=7) for _ in range(40)]
    assert np.mean(values) == pytest.approx(7 / 49, rel=0.1)
    assert neighbour_overlap(*draw(), k=14) == 1


# ---- RSA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["correlation", "cosine", "euclidean", "squared_euclidean"])
def test_rsa_equals_scipy(metric):
    spatial = pytest.importorskip("scipy.spatial.distance")
    stats = pytest.importorskip("scipy.stats")
    x, y = draw()
    name = metric.replace("squared_", "sq")
    pair = [spatial.pdist(z.numpy(), name) for z in (x, y)]
    np.testing.assert_allclose(dissimilarities(x, metric), pair[0], atol=1e-10)
    spearman = stats.spearmanr(*pair).statistic
    assert rsa(x, y, metric=metric) == pytest.approx(spearman, abs=1e-10)
    pearson = stats.pearsonr(*pair).statistic
    assert rsa(x, y, metric=metric, compare="pearson") == pytest.approx(pearson, abs=1e-10)


# ---- all measures ------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES)
def test_closed_forms_of_all(measure):
    pytest.importorskip("scipy")
    x, _ = draw(25, 4)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    assert similarity(x, x, measure) == pytest.approx(1, abs=1e-10)
    assert similarity(x, 3 * x, measure) == pytest.approx(1, abs=1e-9)
    assert distance(x.numpy(), x.tolist(), measure) == pytest.approx(0, abs=1e-10)
    centred = x - x.mean(0)  # cosines and correlations of neurons turn with the origin
    options = {"metric": "cosine"} if measure == "rsa" else {}
    assert similarity(centred, centred @ turn, measure, **options) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("measure", [m for m in MEASURES if m != "pwcca"])
@given(seed=st.integers(0, 10**6))
def test_all_are_symmetric_and_at_most_1(measure, seed):
    pytest.importorskip("scipy")
    x, y = draw(seed=seed)
    value = similarity(x, y, measure)
    assert (-1 if measure == "rsa" else 0) <= value <= 1
    assert similarity(y, x, measure) == pytest.approx(value, abs=1e-9)


def test_invertible_maps_keep_cca_and_not_the_others():
    pytest.importorskip("scipy")
    x, _ = draw(25, 4)
    y = x @ torch.diag(torch.tensor([40.0, 1, 1, 0.2]).double())
    assert similarity(x, y, "cca") == pytest.approx(1, abs=1e-9)
    for measure in ("cka", "rbf_cka", "procrustes", "neighbours", "rsa"):
        assert similarity(x, y, measure) < 0.97, measure


# ---- maps --------------------------------------------------------------------------------------


def test_neurons_of_maps():
    x = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    assert matrices(x).shape == (1, 2, 12)
    filters = matrices(x, "filter")
    assert filters.shape == (1, 8, 3)
    assert filters[0, 5].tolist() == x[1, :, 0, 1].tolist()
    samples = matrices(x, "per_sample")
    assert samples.shape == (2, 3, 4)
    assert samples[1, 2].tolist() == x[1, 2].flatten().tolist()
    positions = matrices(x, "per_position")
    assert positions.shape == (4, 2, 3)
    assert positions[3, 1].tolist() == x[1, :, 1, 1].tolist()
    last = matrices(x.permute(0, 2, 3, 1), "filter", channel_axis=-1)
    assert torch.equal(last, filters)
    tokens = torch.randn(2, 5, 7)
    assert torch.equal(matrices(tokens, "filter")[0], tokens.flatten(0, 1))
    assert torch.equal(matrices(tokens[:, 0], "filter"), tokens[None, :, 0])


@pytest.mark.parametrize("neurons", ["per_sample", "per_position"])
def test_several_matrices_are_averaged(neurons):
    x, y = torch.randn(2, 6, 3, 4, 4)
    pairs = zip(matrices(x, neurons), matrices(y, neurons), strict=True)
    expected = np.mean([similarity(a, b) for a, b in pairs])
    assert similarity(x, y, neurons=neurons) == pytest.approx(expected, abs=1e-12)


def test_pooling():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert downsample(x, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert downsample(x, 2, "nearest").flatten().tolist() == [0, 2, 8, 10]
    assert downsample(x, 2, "bilinear").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert downsample(x.long(), (1, 4)).flatten().tolist() == [6, 7, 8, 9]
    assert downsample(x, 4) is x


@pytest.mark.parametrize("size", [3, 4, 5, (4, 6)])
def test_dft_keeps_low_frequencies_and_the_mean(size):
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    found = downsample(x, size, "dft")
    assert found.shape[2:] == ((size, size) if isinstance(size, int) else size)
    torch.testing.assert_close(found.mean((2, 3)), x.mean((2, 3)))

    def wave(points):  # one period each way
        along = 2 * torch.pi * torch.arange(points, dtype=torch.float64) / points
        return 2 + along.cos()

    height, width = found.shape[2:]
    given, expected = wave(8)[:, None] * wave(8), wave(height)[:, None] * wave(width)
    torch.testing.assert_close(downsample(given[None, None], size, "dft")[0, 0], expected)


def test_positions_as_samples_make_cca_possible():
    x, y = torch.randn(2, 6, 5, 8, 8, dtype=torch.float64)
    with pytest.raises(DataError, match="neurons='filter'"):
        similarity(x, y, "cca")
    found = similarity(x, y, "cca", neurons="filter", size=4)
    pooled = [downsample(z, 4).permute(0, 2, 3, 1).reshape(-1, 5) for z in (x, y)]
    assert found == pytest.approx(cca(*pooled), abs=1e-12)


def test_rows_are_thinned_alike():
    x, y = draw(100)
    kept = torch.arange(50) * 2
    expected = cca(x[kept], y[kept])
    assert similarity(x, y, "cca", samples_per_neuron=10) == pytest.approx(expected, abs=1e-12)
    assert similarity(x, y, "cca", max_samples=50) == pytest.approx(expected, abs=1e-12)
    assert similarity(x, y, "cca", max_samples=500) == cca(x, y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"measure": "cca2"}, ConfigError, "measure is 'cca2'; expected one of .*did you mean 'cc"),
        ({"k": 3}, ConfigError, "cka has no option k; expected debiased"),
        ({"measure": "neighbours", "k": 15}, ConfigError, "k is 15 with 15 samples; expected 1 to"),
        ({"measure": "neighbours", "metric": "l1"}, ConfigError, "metric is 'l1'"),
        ({"measure": "rsa", "metric": "l1"}, ConfigError, "metric is 'l1'; expected one of corr"),
        ({"measure": "rsa", "compare": "tau"}, ConfigError, "compare is 'tau'; expected 'spearm"),
        ({"neurons": "maps"}, ConfigError, "neurons is 'maps'; expected one of activation, filt"),
        ({"size": 4}, DataError, "cannot be down-sampled; expected maps"),
        ({"samples_per_neuron": 10}, DataError, "there are 15 rows and 5 neurons;.*needs 50 rows"),
        ({"samples_per_neuron": 0}, ConfigError, "samples_per_neuron is 0; expected more"),
        ({"max_samples": 1}, ConfigError, "max_samples is 1; expected at least 2"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        similarity(*draw(), **options)


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        (
            (9, 2, 4, 6),
            {"size": 5},
            DataError,
            r"4 x 6 pixels .*to 5 x 5; give size=\(4, 5\) or le",
        ),
        ((9, 4, 3), {"size": 2}, DataError, r"shape \(9, 3, 4\) and cannot be down-sampled to 2 x"),
        ((9, 2, 4, 4), {"size": 0}, ConfigError, "size is 0; expected a number of pixels"),
        ((9, 2, 4, 4), {"size": (2, 2, 2)}, ConfigError, "size is .2, 2, 2."),
        ((9, 2, 4, 4), {"size": 2, "pooling": "max"}, ConfigError, "pooling is 'max'; expected on"),
        ((9, 2, 4, 4), {"channel_axis": 0}, ConfigError, "channel_axis is 0.*expected 1 to 3"),
    ],
)
def test_bad_maps(shape, options, error, message):
    x = torch.randn(shape)
    with pytest.raises(error, match=message):
        similarity(x, x, **options)


def test_other_bad_input():
    pytest.importorskip("scipy")
    with pytest.raises(DataError, match=r"x has 36 rows and y 144 .*for both, size=\(h, w\)"):
        similarity(torch.randn(9, 2, 2, 2), torch.randn(9, 2, 4, 4), neurons="filter")
    with pytest.raises(DataError, match=r"x has 9 rows and y 8 .*in the same order$"):
        similarity(torch.randn(9, 2), torch.randn(8, 2))
    with pytest.raises(ConfigError, match="kind is 'l2'; expected one of squared, euclidean, ang"):
        procrustes_distance(*draw(), "l2")
    zero = torch.randn(9, 3)
    zero[4] = 0
    with pytest.raises(DataError, match="row 4 of y is zero and has no direction"):
        neighbour_overlap(zero + 1, zero, k=2)
    with pytest.raises(DataError, match="row 4 of x is constant, so that it has no correlation"):
        rsa(zero, zero)
    with pytest.raises(DataError, match="all samples of y are as far from each other"):
        rsa(torch.randn(3, 5), torch.eye(3), metric="euclidean")


def test_a_measure_of_ones_own():
    x, y = draw()
    assert similarity(x, y, lambda a, b: float(a.shape[1] / b.shape[1])) == pytest.approx(5 / 3)


def test_examples_in_docs():
    page = Path(__file__).parents[2] / "docs" / "similarity.md"
    outcome = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert outcome.attempted > 10 and outcome.failed == 0
