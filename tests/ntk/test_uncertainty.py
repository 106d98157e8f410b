import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import norm
from torch import nn

from pntk import Featurizer, ntk, topk
from pntk.errors import ConfigError, DataError, OutOfMemoryError
from pntk.models import MLP, LeNet
from pntk.ntk import pilot, proj_dim, uncertainty, variance
from pntk.ntk.pilot import gradients, like
from pntk.ntk.proj_dim import suggest_proj_dim
from pntk.ntk.uncertainty import interval, kernel_std, order_probability
from pntk.ntk.variance import TileTransform, VarianceRatio, variance_ratio
from pntk.projection import ProjectionSpec
from pntk.projection.signs import TileSigns
from pntk.projection.tiles import TileLayout

SHAPES = [(20, 11), (3,), (70,), (1, 30), (9, 5, 3, 3), (5, 2, 3), (4, 3, 2, 2, 2)]


@pytest.fixture(scope="module")
def mlp():
    torch.manual_seed(0)
    return MLP(20, [24, 16], 4).double().eval(), torch.randn(40, 20, dtype=torch.float64)


@pytest.fixture(scope="module")
def cnn():
    torch.manual_seed(0)
    return LeNet(image_size=8).double().eval(), torch.randn(30, 1, 8, 8, dtype=torch.float64)


def rows(n, k, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_kernel(model, x, output="pntk"):
    g = Featurizer(model, output, "identity")(x)
    return g @ g.T


def cosine(kernel):
    norms = kernel.diagonal().sqrt()
    return kernel / norms / norms[:, None]


# ---- standard errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("strip", [1, 50, 2**22])
def test_formulas(monkeypatch, strip):
    monkeypatch.setattr(uncertainty, "_STRIP", strip)
    a, b = rows(13, 9), rows(17, 9, seed=1)
    x, y = a.square().sum(1), b.square().sum(1)
    kernel, std = kernel_std(a, b, variance_ratio=0.5)
    torch.testing.assert_close(kernel, a @ b.T)
    torch.testing.assert_close(std**2, 0.5 * (x[:, None] * y + kernel**2) / 9)
    kernel, std = kernel_std(a, b, normalize=True)
    torch.testing.assert_close(std, (1 - kernel**2) / 3)
    kernel, std = kernel_std(a)
    torch.testing.assert_close(std**2, (x[:, None] * x + kernel**2) / 9)
    kernel, std = kernel_std(a, normalize=True)
    assert torch.equal(std.diagonal(), torch.zeros(13, dtype=torch.float64))
    assert torch.equal(std, std.T) and float(std.min()) >= 0


def test_each_kind_of_entry_has_its_ratio():
    ratio = VarianceRatio(ProjectionSpec("hadamard", 16), 0.5, 0.25, 2.0)
    a = rows(5, 16)
    off = ~torch.eye(5, dtype=torch.bool)
    plain, scaled = kernel_std(a)[1], kernel_std(a, variance_ratio=ratio)[1]
    torch.testing.assert_close(scaled[off], plain[off] * math.sqrt(0.5))
    torch.testing.assert_close(scaled.diagonal(), plain.diagonal() * 0.5)
    plain, scaled = (kernel_std(a, normalize=True, variance_ratio=r)[1] for r in (1, ratio))
    torch.testing.assert_close(scaled, plain * math.sqrt(2))


def test_rows_of_zeros_have_no_error():
    a = rows(4, 8)
    a[1] = 0
    for normalize in (False, True):
        kernel, std = kernel_std(a, normalize=normalize)
        assert not kernel[1].any() and not std[1].any() and not std[:, 1].any()


def test_norms_whose_products_leave_float32():
    kernel, std = kernel_std(torch.full((2, 4), 1e18))
    torch.testing.assert_close(std, kernel * math.sqrt(2 / 4))


def test_ntk_gives_standard_errors():
    a, b = rows(6, 8), rows(5, 8, seed=1)
    for given, expected in (
        (ntk(a, b, with_std=True), kernel_std(a, b)),
        (
            ntk(a, normalize=True, with_std=True, variance_ratio=0.3),
            kernel_std(a, normalize=True, variance_ratio=0.3),
        ),
    ):
        assert torch.equal(given[0], expected[0]) and torch.equal(given[1], expected[1])


def test_out_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"out is '.*k\.h5' and standard errors .* leave out="):
        ntk(rows(3, 8), out=tmp_path / "k.h5", with_std=True)


@pytest.mark.parametrize("ratio", [-1, math.nan, math.inf, True, "1", None])
def test_ratios_that_are_none(ratio):
    with pytest.raises(ConfigError, match=r"variance_ratio is .*expected a number of at least 0"):
        kernel_std(rows(3, 8), variance_ratio=ratio)


def test_a_ratio_of_another_projection(tmp_path, mlp):
    model, x = mlp
    ratio = VarianceRatio(ProjectionSpec("hadamard", 16), 1, 1, 1)
    with pytest.raises(ConfigError, match=r"variance_ratio is for .*16.* the rows are 8 wide; exp"):
        kernel_std(rows(3, 8), variance_ratio=ratio)
    store = Featurizer(model, proj_dim=16, seed=1).featurize(x, tmp_path / "a.h5", progress=False)
    with pytest.raises(ConfigError, match=r"the rows are .*'seed': 1.*that of the featurizer"):
        kernel_std(store, variance_ratio=ratio)
    same = replace(ratio, projection=ProjectionSpec("hadamard", 16, 1))
    expected = kernel_std(store.torch(), variance_ratio=same)[1]
    assert torch.equal(kernel_std(store, variance_ratio=same)[1], expected)


def test_gradients_themselves_have_no_error(tmp_path, mlp):
    model, x = mlp
    store = Featurizer(model, "pntk", "identity").featurize(x, tmp_path / "a", progress=False)
    with pytest.raises(ConfigError, match="holds gradients themselves"):
        kernel_std(store)


def test_memory_that_is_not_there(monkeypatch):
    monkeypatch.setattr(uncertainty, "available_memory", lambda: 100)
    with pytest.raises(OutOfMemoryError, match=r"3 x 3 and its standard errors take 144 bytes and"):
        kernel_std(rows(3, 8))


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_interval(level):
    kernel, std = rows(3, 3), rows(3, 3, seed=1).abs()
    low, high = interval(kernel, std, level)
    z = norm.ppf((1 + level) / 2)
    torch.testing.assert_close(low, kernel - z * std)
    torch.testing.assert_close(high, kernel + z * std)


def test_bad_intervals():
    for level in (0, 1, 95, True, "0.95"):
        with pytest.raises(ConfigError, match=r"level is .*expected a probability between"):
            interval(torch.ones(1), torch.ones(1), level)
    with pytest.raises(ConfigError, match=r"kernel is \(1,\) and std \(2,\); expected one shape"):
        interval(torch.ones(1), torch.ones(2))


# ---- ratios ------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [8, 64, 256])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_with_their_signs_make_the_rows(shape, k):
    spec, layout = ProjectionSpec("hadamard", k, 5), TileLayout.of(shape, k)
    g = rows(3, math.prod(shape))
    at = {"dtype": torch.float64, "device": torch.device("cpu")}
    signs = TileSigns(spec, "w", layout, **at)
    tiles = TileTransform(spec, "w", shape)(g)
    blocks, columns, ko, ki = layout.row_blocks, layout.column_blocks, layout.ko, layout.ki
    found = torch.zeros(3, k, dtype=torch.float64)
    for t, tile in enumerate(tiles):
        block, j = divmod(t, columns)
        s = signs.entries(0, j, slice(block * ko, (block + 1) * ko))
        moved = torch.arange(ki) ^ (8 * signs.gamma_rows[block])
        found += s[:, moved].flatten() * tile

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(shape, dtype=torch.float64))

        def forward(self, x):
            return (x * self.w.flatten()).sum(1, keepdim=True)

    assert len(tiles) == blocks * columns
    expected = Featurizer(One(), "pntk", spec)(g)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_formula_against_random_signs(monkeypatch):
    """The variance over signs S, with tiles that are all but spread evenly."""
    tiles = rows(6 * 4, 8).view(6, 4, 8) * torch.rand(6, 1, 8, dtype=torch.float64) ** 3
    signs = torch.randint(0, 2, (40_000, 6, 1, 8)) * 2.0 - 1
    sketched = (signs * tiles).sum(1)  # [draws, n, k]
    kernels = sketched @ sketched.mT
    mean = (tiles @ tiles.mT).sum(0)
    monkeypatch.setattr(variance, "TileTransform", lambda *_: lambda gradient: tiles)
    monkeypatch.setattr(variance, "gradients", lambda *_: [("w", (1,), torch.zeros(4, 1, 1))])

    class Fake:
        spec = ProjectionSpec("hadamard", 8)

    off_diagonal, diagonal, _ = variance._by_formula(Fake(), torch.zeros(4, 1))
    off, norms = ~torch.eye(4, dtype=torch.bool), mean.diagonal()
    both = norms[:, None] * norms
    scaled = 8 * kernels.var(0) / both
    found = scaled[off].sum() / (1 + mean**2 / both)[off].sum()
    assert off_diagonal == pytest.approx(float(found), rel=0.03)
    assert diagonal == pytest.approx(float(scaled.diagonal().mean()) / 2, rel=0.03)


@pytest.mark.parametrize("family", ["rademacher", "normal"])
def test_dense_ratios(mlp, family):
    model, x = mlp
    g = Featurizer(model, "pntk", "identity")(x[:12])
    u = g / g.norm(dim=1, keepdim=True)
    cosines, off = u @ u.T, ~torch.eye(12, dtype=torch.bool)
    fourth = u.square() @ u.square().T
    weight = 1 if family == "rademacher" else (3 - 2.92) / 2
    found = variance_ratio(Featurizer(model, "pntk", family, 64), x[:12])
    expected = 1 - weight * 2 * fourth[off].sum() / (1 + cosines[off] ** 2).sum()
    assert found.off_diagonal == pytest.approx(float(expected), abs=1e-3 * weight)
    expected = 1 - weight * fourth.diagonal().mean()
    assert found.diagonal == pytest.approx(float(expected), abs=1e-3 * weight)
    # of the cosine, the numbers of each pair's first-order term
    total = 0.0
    for i, j in off.nonzero().tolist():
        total += float((u[i] * u[j] - cosines[i, j] / 2 * (u[i] ** 2 + u[j] ** 2)).square().sum())
    expected = 1 - weight * 2 * total / float(((1 - cosines[off] ** 2) ** 2).sum())
    assert found.cosine == pytest.approx(expected, abs=1e-3 * weight)


@pytest.mark.parametrize("output", ["pntk", "trace"])
def test_formula_against_measurement(mlp, output):
    model, x = mlp
    seeds = 60
    formula = [
        variance_ratio(Featurizer(model, output, "hadamard", 128, seed), x[:10])
        for seed in range(1, 1 + seeds)
    ]
    measured = variance_ratio(Featurizer(model, output, "hadamard", 128), x[:10], seeds=seeds)
    for kind in ("off_diagonal", "diagonal", "cosine"):
        mean = sum(getattr(f, kind) for f in formula) / seeds
        assert getattr(measured, kind) == pytest.approx(mean, rel=0.35), kind


def test_one_tile_makes_no_noise():
    model, x = nn.Linear(8, 8, bias=False).double(), rows(5, 8)
    found = variance_ratio(Featurizer(model, "margin", "hadamard", 64), (x, torch.arange(5)))
    assert found.off_diagonal == pytest.approx(0, abs=1e-12)
    assert found.diagonal == pytest.approx(0, abs=1e-12)
    assert found.cosine == pytest.approx(0, abs=1e-12)
    assert min(found.off_diagonal, found.diagonal, found.cosine) >= 0


def test_featurizer_is_left_as_it_was(mlp):
    model, x = mlp
    featurizer = Featurizer(
        model, "trace", proj_dim=64, seed=3, params="layers.*.weight", fallback="layers.0.weight"
    )
    expected = featurizer(x)
    state = dict(vars(featurizer))
    variance_ratio(featurizer, x)
    variance_ratio(featurizer, x, seeds=2)
    featurizer.suggest_proj_dim(x, 0.5, samples=8)
    assert vars(featurizer) == state and torch.equal(featurizer(x), expected)
    other = like(featurizer, featurizer.spec)
    assert torch.equal(other(x), expected)
    assert [(row["name"], row["rule"]) for row in other.coverage()] == [
        (row["name"], row["rule"]) for row in featurizer.coverage()
    ]


@pytest.mark.parametrize("numbers", [1, 10_000, 2**24])
def test_gradients_a_few_parameters_at_a_time(monkeypatch, mlp, numbers):
    monkeypatch.setattr(pilot, "_NUMBERS", numbers)
    model, x = mlp
    featurizer = Featurizer(model, "trace", proj_dim=64)
    whole = Featurizer(model, "trace", "identity")(x).view(40, 4, -1)
    pieces = list(gradients(featurizer, x))
    assert [name for name, _, _ in pieces] == list(featurizer.params)
    torch.testing.assert_close(torch.cat([g for _, _, g in pieces], dim=2), whole)


def test_ratios_that_cannot_be_had(mlp):
    model, x = mlp
    with pytest.raises(ConfigError, match=r"projection is 'identity', whose kernels are exact"):
        variance_ratio(Featurizer(model, "pntk", "identity"), x)
    featurizer = Featurizer(model, proj_dim=64)
    for seeds in (1, 0, True, 2.5):
        with pytest.raises(ConfigError, match=r"seeds is .*expected None for the formula, or"):
            variance_ratio(featurizer, x, seeds=seeds)
    for seeds in (None, 2):
        with pytest.raises(DataError, match="1 of 1 samples have a gradient other than zero"):
            variance_ratio(featurizer, x[:1], seeds=seeds)


# ---- coverage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "k"), [("rademacher", 256), ("hadamard", 1024)])
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_coverage(request, network, family, k):
    """Over held-out seeds and samples; margins keep pairs from erring together."""
    model, x = request.getfixturevalue(network)
    y = torch.arange(len(x)) % 4
    judged, others = (x[:20], y[:20]), (x[20:30], y[20:30])
    exact = exact_kernel(model, judged, "margin")
    off = torch.ones(20, 20, dtype=torch.bool).triu(1)
    held = {"off-diagonal": [], "diagonal": [], "cosine": []}
    ratio = None
    for seed in range(40):
        featurizer = Featurizer(model, "margin", family, k, seed, check=False)
        if family == "hadamard" or ratio is None:  # which is one for all seeds of a dense matrix
            ratio = variance_ratio(featurizer, others)
        found = featurizer(judged)
        low, high = interval(*kernel_std(found, variance_ratio=ratio))
        inside = ((low <= exact) & (exact <= high)).double()
        held["off-diagonal"].append(inside[off].mean())
        held["diagonal"].append(inside.diagonal().mean())
        low, high = interval(*kernel_std(found, normalize=True, variance_ratio=ratio))
        inside = ((low <= cosine(exact)) & (cosine(exact) <= high)).double()
        held["cosine"].append(inside[off].mean())
    for kind, values in held.items():
        assert 0.93 <= float(torch.stack(values).mean()) <= 0.97, kind


# ---- order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_order_by_hand(metric):
    q, s = rows(4, 30), rows(9, 30, seed=1)
    found = topk(q, s, 3, metric=metric)
    sure = order_probability(q, s, found, 0.7, metric=metric)
    order = topk(q, s, 9, metric=metric).indices
    for i in range(4):
        for r in range(3):
            triple = torch.stack([q[i], s[order[i, r]], s[order[i, r + 1]]]).requires_grad_()
            # Var f = 2 tr (M K)^2 / k by the derivative of f with respect to K
            kernel = (triple @ triple.T).detach().requires_grad_()
            gap = kernel[0, 1] - kernel[0, 2]
            if metric == "cosine":
                c = kernel / kernel.diagonal().sqrt() / kernel.diagonal().sqrt()[:, None]
                gap = c[0, 1] - c[0, 2]
            (m,) = torch.autograd.grad(gap, kernel)
            m = (m + m.T) / 2
            variance = 0.7 * 2 * float((m @ kernel @ m @ kernel).trace().detach()) / 30
            expected = norm.cdf(float(gap.detach()) / math.sqrt(variance))
            assert float(sure[i, r]) == pytest.approx(expected, rel=1e-9)


def test_order_in_pieces_and_from_stores(monkeypatch, tmp_path, mlp):
    model, x = mlp
    featurizer = Featurizer(model, proj_dim=64)
    store = featurizer.featurize(x, tmp_path / "a.h5", progress=False)
    queries = featurizer(x[:7])
    found = topk(queries, store, 4)
    expected = order_probability(queries, store.torch(), found)
    monkeypatch.setattr(uncertainty, "_STRIP", 1)
    assert torch.equal(order_probability(queries, store, found), expected)
    assert torch.equal(order_probability(queries.numpy(), store.numpy(), found), expected)


def test_nothing_left_out_equal_rows_and_useless_queries():
    s = rows(3, 8)
    s[2] = s[1]
    found = topk(s[:1], s, 3)
    sure = order_probability(s[:1], s, found)
    assert sure[0, 1] == 0.5 and sure[0, 2] == 1
    s[0] = math.nan
    found = topk(s, s, 3)
    sure = order_probability(s, s, found)
    assert sure[0].isnan().all() and sure[1, 2].isnan()
    assert sure[1, :2].tolist() == [0.5, 1.0]


def test_found_that_does_not_fit():
    q, s = rows(4, 30), rows(9, 30, seed=1)
    found = topk(q, s, 3)
    with pytest.raises(ConfigError, match=r"found\.values has .* under metric='dot'; pass the"):
        order_probability(q, s, found, metric="dot")
    with pytest.raises(
        ConfigError, match=r"found is for 4 queries and rows up to .*2 queries and 9"
    ):
        order_probability(q[:2], s, found)
    with pytest.raises(ConfigError, match="unknown metric 'l2'; expected one of cosine, dot"):
        order_probability(q, s, found, metric="l2")


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_order_is_calibrated(cnn, metric):
    model, x = cnn
    y = torch.arange(len(x)) % 10
    exact = exact_kernel(model, (x, y), "margin")
    exact = (cosine(exact) if metric == "cosine" else exact)[:8, 8:]
    stated, right = [], []
    for seed in range(60):
        made = Featurizer(model, "margin", "rademacher", 256, seed, check=False)((x, y))
        found = topk(made[:8], made[8:], 5, metric=metric)
        stated.append(order_probability(made[:8], made[8:], found, metric=metric))
        order = topk(made[:8], made[8:], 6, metric=metric).indices
        scores = exact.gather(1, order)
        right.append((scores[:, :-1] > scores[:, 1:]).double())
    stated, right = torch.cat(stated).flatten(), torch.cat(right).flatten()
    for low, high in ((0.5, 0.65), (0.65, 0.85), (0.85, 0.97), (0.97, 1.01)):
        there = (stated >= low) & (stated < high)
        assert int(there.sum()) > 50
        assert float(right[there].mean()) == pytest.approx(float(stated[there].mean()), abs=0.08)


# ---- width -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["hadamard", "rademacher"])
def test_proposed_width_keeps_the_tolerance(cnn, family):
    model, x = cnn
    found = Featurizer(model, "pntk", family, 64).suggest_proj_dim(x, 0.08, samples=30)
    assert found.measured and found.error <= 0.08 and found.table[found.proj_dim] == found.error
    exact = cosine(exact_kernel(model, x))
    off = torch.ones(30, 30, dtype=torch.bool).triu(1)
    errors = []
    for seed in range(100, 110):
        made = Featurizer(model, "pntk", family, found.proj_dim, seed)(x)
        errors.append((cosine(made @ made.T) - exact)[off].abs())
    assert 0.02 < float(torch.cat(errors).quantile(0.95)) < 0.11
    assert f"proj_dim={found.proj_dim}: 95% of cosines within" in str(found)
    assert len(str(found).splitlines()) == 1 + len(found.table)


def test_width_that_is_not_measured(monkeypatch, cnn):
    model, x = cnn
    monkeypatch.setattr(proj_dim, "_WIDEST", 1024)
    data = x, torch.arange(len(x)) % 10
    found = suggest_proj_dim(Featurizer(model, "margin"), data, 0.03, samples=16)
    assert not found.measured and found.proj_dim > 1024 and "by 1/sqrt(k)" in str(found)
    assert found.error == pytest.approx(found.table[1024] * math.sqrt(1024 / found.proj_dim))


@pytest.mark.parametrize("family", ["hadamard", "rademacher"])
def test_width_beyond_the_gradient(mlp, family):
    model, x = mlp
    with pytest.raises(
        ConfigError, match=r"tolerance is 0\.001, and rows of .* use projection='id"
    ):
        suggest_proj_dim(Featurizer(model, "margin", family, 8), (x, x[:, 0].long() % 4), 0.001)


def test_small_gradients_have_few_widths():
    assert proj_dim._ladder("hadamard", 5) == [8]
    assert proj_dim._ladder("hadamard", 100) == [8, 16, 32, 64]
    assert proj_dim._ladder("normal", 5) == [5]
    assert proj_dim._ladder("normal", 20) == [8, 10, 11, 13, 16, 19, 20]


def test_arguments_of_a_suggestion(mlp):
    model, x = mlp
    featurizer = Featurizer(model, proj_dim=64)
    for bad in (0, 1, -0.1, True, "0.1"):
        with pytest.raises(ConfigError, match=r"tolerance is .*expected a number between 0 and 1"):
            featurizer.suggest_proj_dim(x, bad)
        with pytest.raises(ConfigError, match=r"quantile is .*expected a number between 0 and 1"):
            featurizer.suggest_proj_dim(x, 0.1, quantile=bad)
    for samples in (7, 8.5, True):
        with pytest.raises(ConfigError, match=r"samples is .*expected an integer of at least 8"):
            featurizer.suggest_proj_dim(x, 0.1, samples=samples)
    with pytest.raises(DataError, match="5 of 5 samples have a gradient other than zero"):
        featurizer.suggest_proj_dim(x[:5], 0.1)
    with pytest.raises(ConfigError, match="projection is 'identity', whose rows are as wide"):
        Featurizer(model, "pntk", "identity").suggest_proj_dim(x, 0.1)
