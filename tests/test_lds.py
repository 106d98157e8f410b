import numpy as np
import pytest
import torch

from pntk.attribution import attribute
from pntk.attribution.arrays import ranks
from pntk.errors import ConfigError, DataError, PntkWarning, StoreError
from pntk.lds import (
    detection,
    lds,
    mislabel,
    read_retrained,
    removal_curve,
    retrain_on_subsets,
    spearman,
    subset,
)


@pytest.fixture
def problem():
    """Ridge regression, whose models are had at once: (features, targets' features, train_fn)."""
    random = np.random.default_rng(0)
    x, at = random.standard_normal((300, 5)), random.standard_normal((8, 5))
    y = x @ random.standard_normal(5) + random.standard_normal(300)

    def fit(indices, number=0):
        a, b = x[indices], y[indices]
        return at @ np.linalg.solve(a.T @ a + 0.1 * np.eye(5), a.T @ b)

    return x, y, at, fit


def linear_scores(x, y, at):
    """TRAK of the model f = x theta, whose output gradients are x; Q is the residual."""
    theta = np.linalg.lstsq(x, y, rcond=None)[0]
    return attribute(x, at, reweighting=torch.from_numpy(y - x @ theta), ridge=0.1)


def test_ranks_and_spearman_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(1)
    a, b = random.integers(0, 5, (30, 4)).astype(float), random.standard_normal((30, 4))
    assert np.array_equal(ranks(a), stats.rankdata(a, axis=0) - 1)
    expected = [stats.spearmanr(a[:, j], b[:, j]).statistic for j in range(4)]
    assert np.allclose(spearman(a, b), expected)


def test_scores_of_a_linear_model_predict_it(problem):
    x, y, at, fit = problem
    retrained = retrain_on_subsets(fit, 300, 0.5, count=80, progress=False)
    assert retrained.subsets.sum(1).tolist() == [150] * 80
    found = lds(linear_scores(x, y, at), retrained.outputs, retrained.subsets)
    assert found.mean > 0.95
    assert found.low < found.mean < found.high
    assert found.per_target.shape == (8,)
    wrong = lds(-linear_scores(x, y, at), retrained.outputs, retrained.subsets)
    assert wrong.mean == pytest.approx(-found.mean)


def test_exact_scores_have_an_lds_of_one():
    random = np.random.default_rng(2)
    scores, masks = random.standard_normal((20, 3)), random.random((40, 20)) < 0.5
    found = lds(scores, masks @ scores, masks)
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))
    listed = lds(scores, masks @ scores, [np.flatnonzero(mask) for mask in masks])
    assert np.array_equal(found.per_target, listed.per_target)


@pytest.mark.parametrize("resample", ["targets", "models"])
def test_interval_covers_chance(resample):
    random = np.random.default_rng(3)
    masks = random.random((60, 50)) < 0.5
    scores, outputs = random.standard_normal((50, 30)), random.standard_normal((60, 30))
    found = lds(scores, outputs, masks, resample=resample, bootstrap=200)
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.3
    assert lds(scores, outputs, masks, resample=resample, bootstrap=200).low == found.low


def test_targets_that_never_change_are_left_out():
    random = np.random.default_rng(4)
    scores, masks = random.standard_normal((20, 3)), random.random((40, 20)) < 0.5
    outputs = masks @ scores
    outputs[:, 1] = 2.0
    with pytest.warns(PntkWarning, match="1 of 3 targets never change"):
        found = lds(scores, outputs, masks)
    assert found.mean == pytest.approx(1)
    assert np.isnan(found.per_target[1])
    with pytest.raises(ConfigError, match="there is nothing to rank"):
        lds(scores, np.ones((40, 3)), masks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.ones((20, 2))}, r"margins is \(40, 3\) for 40 subsets and scores \(20, 2\)"),
        ({"scores": np.full((20, 3), np.nan)}, "scores holds NaN or infinity"),
        ({"scores": np.ones((2, 2, 2))}, "scores is float64 of shape .* expected numbers"),
        ({"scores": [[1.0], [1.0, 2.0]]}, "scores is no array"),
        ({"margins": np.ones((39, 3))}, r"expected \(40, 3\), one row a subset"),
        ({"subsets": np.ones((40, 19), dtype=bool)}, r"subsets is bool .*expected bool \[s, 20\]"),
        ({"subsets": np.ones((40, 20))}, "subsets is float64"),
        ({"subsets": [[0.5]] * 40}, r"subsets\[0\] is float64; expected indices"),
        ({"subsets": [[20]] * 40}, r"subsets\[0\] names a sample outside 0 to 19"),
        ({"bootstrap": 0}, "bootstrap is 0"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"resample": "both"}, "resample is 'both'; expected one of targets, models"),
        ({"margins": np.ones((1, 3)), "subsets": [[0]]}, "there are 1 subsets; expected at least"),
    ],
)
def test_refused(changes, message):
    random = np.random.default_rng(5)
    made = {
        "scores": random.standard_normal((20, 3)),
        "margins": random.standard_normal((40, 3)),
        "subsets": random.random((40, 20)) < 0.5,
    }
    with pytest.raises(ConfigError, match=message):
        lds(**{**made, **changes})


def test_retraining_goes_on_where_it_stopped(tmp_path):
    trained = []

    def train(indices, number):
        if len(trained) == 3:
            trained.append("stop")
            raise KeyboardInterrupt
        trained.append(number)
        return [indices.sum(), float(number)]

    arguments = {"n": 10, "count": 6, "seed": 7, "path": tmp_path / "runs.npz", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        retrain_on_subsets(train, **arguments)
    found = retrain_on_subsets(train, **arguments)
    assert trained == [0, 1, 2, "stop", 3, 4, 5]
    whole = retrain_on_subsets(
        lambda i, c: [i.sum(), float(c)], 10, count=6, seed=7, progress=False
    )
    assert np.array_equal(found.outputs, whole.outputs)
    assert np.array_equal(found.subsets, whole.subsets)
    more = retrain_on_subsets(train, **{**arguments, "count": 8})
    assert trained[-2:] == [6, 7] and np.array_equal(more.outputs[:6], found.outputs)
    fewer = retrain_on_subsets(train, **{**arguments, "count": 2})
    assert np.array_equal(fewer.outputs, found.outputs[:2])
    with pytest.raises(ConfigError, match=r"'seed': 7}, and asked was for .*'seed': 8"):
        retrain_on_subsets(train, **{**arguments, "seed": 8})


def test_what_was_retrained_can_be_read(tmp_path):
    path = tmp_path / "runs.npz"
    runs = retrain_on_subsets(
        lambda i, c: [i.sum(), 2.0 * c], 10, 0.3, 4, 7, path=path, progress=False
    )
    np.savez(tmp_path / "own.npz", **runs._asdict())
    for file in (path, tmp_path / "own.npz"):
        found = read_retrained(file)
        assert np.array_equal(found.subsets, runs.subsets)
        assert np.array_equal(found.outputs, runs.outputs)
    with pytest.raises(ConfigError, match="and asked was for"):
        retrain_on_subsets(lambda i, c: [1.0], 10, path=tmp_path / "own.npz", progress=False)


@pytest.mark.parametrize(
    "arrays",
    [
        {"outputs": np.ones((3, 2))},
        {"outputs": np.ones((3, 2)), "subsets": np.ones((2, 5), bool)},
        {"outputs": np.ones((3, 2)), "subsets": np.ones((3, 5))},
        {"outputs": np.ones(3), "subsets": np.ones((3, 5), bool)},
        {"outputs": np.ones((0, 2)), "subsets": np.ones((0, 5), bool)},
        {"outputs": np.ones((3, 2)), "about": "{}"},
    ],
)
def test_what_cannot_be_read(tmp_path, arrays):
    np.savez(tmp_path / "runs.npz", **arrays)
    with pytest.raises(StoreError, match="holds no outputs of retrain_on_subsets"):
        read_retrained(tmp_path / "runs.npz")
    with pytest.raises(StoreError, match="holds no outputs"):
        read_retrained(tmp_path / "none.npz")


def test_subsets_are_a_function_of_seed_and_number():
    assert np.array_equal(subset(100, 50, 3, 1), subset(100, 50, 3, 1))
    assert not np.array_equal(subset(100, 50, 3, 1), subset(100, 50, 3, 2))
    assert not np.array_equal(subset(100, 50, 3, 1), subset(100, 50, 4, 1))


def test_damaged_results(tmp_path):
    path = tmp_path / "runs.npz"
    retrain_on_subsets(lambda i, c: [1.0 * c], 10, count=2, path=path, progress=False)
    whole = path.read_bytes()
    for place in (40, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:place])
        with pytest.raises(StoreError, match=r"runs\.npz holds no outputs .* or is damaged"):
            retrain_on_subsets(lambda i, c: [1.0], 10, count=2, path=path, progress=False)
    np.savez(path, outputs=np.array([object()]), about="{}")
    with pytest.raises(StoreError, match="or is damaged"):
        retrain_on_subsets(lambda i, c: [1.0], 10, count=2, path=path, progress=False)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([[1.0]], r"returned float64 of shape \(1, 1\); expected the outputs \[m\]"),
        (["a"], "train_fn returned <U1"),
        ([], "expected the outputs"),
        ([np.nan], "train_fn returned NaN or infinity"),
    ],
)
def test_outputs_that_cannot_be_used(returned, message):
    with pytest.raises(DataError, match=message):
        retrain_on_subsets(lambda i, c: returned, 10, count=1, progress=False)


def test_outputs_of_another_number():
    with pytest.raises(DataError, match="returned 2 outputs; expected 1, as the time before"):
        retrain_on_subsets(lambda i, c: [1.0] * (c + 1), 10, count=2, progress=False)


@pytest.mark.parametrize("fraction", [0, 1, 0.01, float("nan"), -1])
def test_fractions_that_leave_nothing(fraction):
    with pytest.raises(ConfigError, match="some in and some out"):
        retrain_on_subsets(lambda i, c: [1.0], 10, fraction, progress=False)


def test_count_is_checked():
    with pytest.raises(ConfigError, match="count is 0"):
        retrain_on_subsets(lambda i, c: [1.0], 10, count=0, progress=False)


def test_removal_of_what_raises_an_output_lowers_it(problem):
    x, y, at, fit = problem
    scores = linear_scores(x, y, at)[:, 0]
    counts = [0, 20, 60]

    def one(indices, number):
        return fit(indices)[:1]

    curves = {
        order: removal_curve(one, scores, counts, order=order, progress=False).outputs[:, 0]
        for order in ("highest", "lowest", "random")
    }
    assert (np.diff(curves["highest"]) < 0).all() and (np.diff(curves["lowest"]) > 0).all()
    assert curves["highest"][-1] < curves["random"][-1] < curves["lowest"][-1]
    assert curves["highest"][0] == one(np.arange(300), 0)[0]


def test_removal_sums_over_targets(problem):
    x, y, at, _ = problem
    scores, seen = linear_scores(x, y, at), []
    removal_curve(lambda i, c: seen.append(i) or [0.0], scores, [5], progress=False)
    kept = np.sort(np.argsort(-scores.sum(1).numpy(), kind="stable")[5:])
    assert np.array_equal(seen[0], kept)


@pytest.mark.parametrize("counts", [[], [10], [-1], [0.5], 3])
def test_removal_counts_are_checked(counts):
    with pytest.raises(ConfigError, match="expected integers from 0 to 9"):
        removal_curve(lambda i, c: [1.0], np.ones(10), counts, progress=False)


def test_removal_order_is_checked():
    with pytest.raises(ConfigError, match="order is 'best'; expected one of highest, lowest"):
        removal_curve(lambda i, c: [1.0], np.ones(10), [1], order="best", progress=False)


def test_detection_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(6)
    scores, bad = random.integers(0, 20, 100).astype(float), random.random(100) < 0.2
    found = detection(scores, bad, at=[1, 10])
    assert found.auroc == pytest.approx(metrics.roc_auc_score(bad, scores))
    assert set(found.precision) == {1, 10}
    assert set(detection(scores, bad).precision) == {int(bad.sum())}


@pytest.mark.parametrize(
    ("scores", "bad", "at", "message"),
    [
        (np.ones((4, 2)), np.ones(4, bool), None, r"expected \[n\] and bool \[n\]"),
        (np.ones(4), np.ones(4), None, "is_bad is float64"),
        (np.ones(4), np.ones(4, bool), None, "marks 4 of 4 samples; expected some, and not all"),
        (np.ones(4), np.arange(4) < 2, [0], r"at is \[0\]; expected integers from 1 to 4"),
    ],
)
def test_detection_refuses(scores, bad, at, message):
    with pytest.raises(ConfigError, match=message):
        detection(scores, bad, at)


def test_mislabel():
    labels = torch.arange(100) % 7
    wrong, bad = mislabel(labels, 0.3, 10, seed=1)
    assert bad.sum() == 30
    assert np.array_equal(wrong != labels.numpy(), bad)
    assert wrong.min() >= 0 and wrong.max() < 10
    assert np.array_equal(mislabel(labels, 0.3, 10, seed=1)[0], wrong)
    assert not np.array_equal(mislabel(labels, 0.3, 10, seed=2)[0], wrong)


@pytest.mark.parametrize(
    ("labels", "fraction", "classes", "message"),
    [
        ([0.5], 0.1, None, r"labels is float64 \(1,\); expected integers \[n\]"),
        ([0, 3], 0.1, 3, "labels are 0 to 3 of 3 classes"),
        ([0, -1], 0.1, 3, "labels are -1 to 0"),
        ([0, 0], 0.1, None, "of 1 classes"),
        ([0, 1], 1.5, None, "fraction is 1.5"),
    ],
)
def test_mislabel_refuses(labels, fraction, classes, message):
    with pytest.raises(ConfigError, match=message):
        mislabel(labels, fraction, classes)


def test_the_function_is_the_attribute():
    import pntk

    assert pntk.lds is lds
