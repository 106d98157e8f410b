import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("scipy", reason="Kendall's tau is SciPy's")
from scipy.stats import kendalltau, linregress

from pntk.errors import ConfigError, DataError
from pntk.surrogate import KernelSurrogate, evaluate
from pntk.surrogate.metrics import calibration_error


@pytest.fixture
def probs():
    """Probabilities of both, [200, 3], which are alike, and labels."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 3))
    other = logits + 0.5 * generator.normal(size=(200, 3))
    labels = generator.integers(0, 3, 200)
    ours, theirs = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits, other))
    return ours, theirs, labels


def test_against_scipy(probs):
    ours, theirs, labels = probs
    found = evaluate(*probs, bootstrap=0)
    at = np.arange(200)
    p, q = ours[at, labels], theirs[at, labels]
    assert found.kendall_tau == pytest.approx(kendalltau(p, q).statistic)
    line = linregress(np.log(p / (1 - p)), np.log(q / (1 - q)))
    assert found.r2 == pytest.approx(line.rvalue**2)
    assert (found.slope, found.intercept) == pytest.approx((line.slope, line.intercept))
    assert found.pearson == pytest.approx(np.corrcoef(p, q)[0, 1])
    for c, tau in enumerate(found.per_class):
        assert tau == pytest.approx(kendalltau(p[labels == c], q[labels == c]).statistic)
    assert found.intervals == {} and found.saturated == 0 and found.examples == 200


def test_probability_of_one_class(probs):
    ours, theirs, labels = probs
    found = evaluate(*probs, of=2, bootstrap=0)
    p, q = ours[:, 2], theirs[:, 2]
    assert found.kendall_tau == pytest.approx(kendalltau(p, q).statistic)
    line = linregress(np.log(p / (1 - p)), np.log(q / (1 - q)))
    assert found.r2 == pytest.approx(line.rvalue**2)
    assert found.per_class[0] == pytest.approx(kendalltau(p[labels == 0], q[labels == 0]).statistic)
    assert found.tad == evaluate(*probs, bootstrap=0).tad  # of predictions, whatever p is


def test_telling_two_classes_apart_lifts_tau_of_one_class():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 500)
    ours, theirs = (0.05 + 0.8 * labels + 0.1 * generator.random(1000) for _ in range(2))
    ours, theirs = (np.stack([1 - p, p], 1) for p in (ours, theirs))
    found = evaluate(ours, theirs, labels, of=1, bootstrap=0)
    assert np.abs(found.per_class).max() < 0.1
    assert found.kendall_tau == pytest.approx((1 + np.mean(found.per_class)) / 2, abs=0.01)
    assert abs(evaluate(ours, theirs, labels, bootstrap=0).kendall_tau) < 0.1


@pytest.mark.parametrize("of", [3, -1, True, "other", 0.5])
def test_a_class_that_there_is_not(probs, of):
    with pytest.raises(ConfigError, match="expected 'own' or the number of a class, 0 to 2"):
        evaluate(*probs, of=of)


def test_by_hand():
    network = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3], [0.0, 1.0], [0.5, 0.5]])
    surrogate = np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9], [0.7, 0.3]])
    labels = np.array([0, 1, 1, 1, 1, 0])  # the network errs at 1, 2 and 3, the surrogate at 3
    found = evaluate(surrogate, network, labels, bootstrap=0)
    assert found.network_accuracy == pytest.approx(3 / 6)
    assert found.surrogate_accuracy == pytest.approx(5 / 6)
    assert found.tad == pytest.approx(2 / 6)
    assert found.agreement == pytest.approx(4 / 6)
    assert found.r_miss == pytest.approx(1 / 3)
    assert found.saturated == 1  # of the fifth the network is certain
    p, q = [0.8, 0.6, 0.7, 0.4, 0.7], [0.9, 0.2, 0.4, 0.3, 0.5]
    assert found.kendall_tau == pytest.approx(kendalltau(p, q).statistic)


def test_the_same_probabilities_are_one(probs):
    found = evaluate(probs[0], probs[0], probs[2], bootstrap=5)
    for name, value in [("kendall_tau", 1), ("r2", 1), ("slope", 1), ("agreement", 1), ("tad", 0)]:
        assert getattr(found, name) == pytest.approx(value)
        assert found.intervals[name] == pytest.approx((value, value))
    assert found.intercept == pytest.approx(0, abs=1e-12)
    assert found.r_miss == 1


def test_what_cannot_be_measured_is_nan():
    probs = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = evaluate(probs, probs, [0, 1], bootstrap=3)
    assert found.saturated == 2
    for name in ("kendall_tau", "r2", "pearson", "r_miss", "slope", "intercept"):
        assert math.isnan(getattr(found, name))
        assert math.isnan(found.intervals[name][0])
    assert found.surrogate_accuracy == 1 and found.surrogate_ece == 0
    assert "nan" in str(found)


def test_rounding_is_not_refused(probs):
    ours, theirs, labels = probs
    rounded = theirs.copy()
    rounded[0] = [1 + 1e-7, 0, 0]
    assert evaluate(ours, rounded, labels, bootstrap=0).saturated == 1


def test_calibration_error():
    confidence = np.array([0.95, 0.95, 0.55, 0.55, 1.0])
    right = np.array([True, False, True, True, True])
    # bins: |1 - 1.9| of two, |2 - 1.1| of two, and the last one, which shares that of 0.95
    assert calibration_error(confidence, right) == pytest.approx((abs(2 - 2.9) + 0.9) / 5)


def test_intervals_cover(probs):
    """Of many draws from one distribution, nearly all intervals hold the accuracy of it."""
    generator, hits = np.random.default_rng(1), 0
    for trial in range(25):
        labels = generator.integers(0, 2, 150)
        right = generator.random(150) < 0.8
        p = np.where(right, 0.7, 0.3)
        ours = np.stack([np.where(labels == 0, p, 1 - p), np.where(labels == 1, p, 1 - p)], axis=1)
        low, high = evaluate(ours, ours, labels, bootstrap=100, seed=trial).intervals[
            "surrogate_accuracy"
        ]
        hits += low <= 0.8 <= high
    assert hits >= 20


def test_seed_and_printing(probs):
    one, two, other = (evaluate(*probs, bootstrap=20, seed=s) for s in (0, 0, 1))
    assert one.intervals == two.intervals != other.intervals
    low, high = one.intervals["kendall_tau"]
    assert low < one.kendall_tau < high
    shown = str(one)
    lines = [line.split() for line in shown.splitlines()]
    expected = f"{one.kendall_tau:.4f} {low:.4f} to {high:.4f}"
    assert ["Kendall", "tau-b", *expected.split()] in lines
    assert "R_Miss" in shown and "0 of 200 left out" in shown and "TAD" in shown
    assert json.loads(json.dumps(one.to_dict()))["r2"] == one.r2


def test_of_an_estimator(blobs):
    rows, labels = blobs()
    names = np.array(["b", "c", "a"])[labels]
    model = KernelSurrogate(alpha=0.01).fit(rows, names)
    test, labels = blobs(30, seed=5)
    probs = model.predict_proba(test)
    found = model.evaluate(test, probs, np.array(["b", "c", "a"])[labels], bootstrap=0)
    assert found.kendall_tau == pytest.approx(1)
    assert found.network_accuracy == model.score(test, np.array(["b", "c", "a"])[labels])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p, q, y: (p, 3 * q, y), ConfigError, "network_probs hold .* in row 0; expected p"),
        (lambda p, q, y: (p * np.nan, q, y), ConfigError, "surrogate_probs hold nan in row 0"),
        (
            lambda p, q, y: (p, torch.tensor(p).log().softmax(0), y),
            ConfigError,
            r"network_probs sum to .*; expected 1: take softmax over the classes of each example",
        ),
        (lambda p, q, y: (p[:9], q, y), ConfigError, r"shape \(9, 3\) and network_probs \(200, 3"),
        (lambda p, q, y: (p[:, 0], q, y), ConfigError, r"shape \(200,\); expected \[m, c\]"),
        (lambda p, q, y: (p, q, y[:9]), DataError, r"of shape \(9,\); expected one class an ex"),
        (lambda p, q, y: (p, q, np.eye(3)[y]), DataError, r"one-hot rows take argmax\(1\)"),
        (lambda p, q, y: (p, q, y - 1), DataError, "labels hold -1 in row .*; expected 0 to 2"),
        (lambda p, q, y: (p, q, y + 1), DataError, "labels hold 3 in row .*; expected 0 to 2"),
    ],
)
def test_refusals(probs, change, error, message):
    with pytest.raises(error, match=message):
        evaluate(*change(*probs))


def test_bootstrap_is_a_number(probs):
    with pytest.raises(ConfigError, match="bootstrap is -1; expected a number of samples"):
        evaluate(*probs, bootstrap=-1)
