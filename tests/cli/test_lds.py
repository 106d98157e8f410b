import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pntk import FeatureStore
from pntk.attribution import attribute
from pntk.lds import lds, read_retrained, retrain_on_subsets

LINEAR = """
import numpy as np

random = np.random.default_rng(0)
x, at = random.standard_normal((60, 3)), random.standard_normal((4, 3))
y = x @ random.standard_normal(3) + random.standard_normal(60)
trained, stop_after = [], None


def fit(indices, number):
    if len(trained) == stop_after:
        raise KeyboardInterrupt
    trained.append(number)
    a = x[indices]
    return at @ np.linalg.solve(a.T @ a + 0.1 * np.eye(3), a.T @ y[indices])


def make():
    return fit


def wrong():
    return [1.0, 2.0]


def ragged():
    return lambda indices, number: np.ones(number + 1)
"""


@pytest.fixture
def linear(toy):
    """A module of ridge regressions, and scores.npy of its 60 samples and 4 targets."""
    (toy / "linear.py").write_text(LINEAR)
    importlib.invalidate_caches()
    sys.modules.pop("linear", None)
    module = importlib.import_module("linear")
    theta = np.linalg.lstsq(module.x, module.y, rcond=None)[0]
    residual = module.y - module.x @ theta
    scores = attribute(module.x, module.at, reweighting=residual, ridge=0.1)
    np.save("scores.npy", scores.numpy())
    yield module
    sys.modules.pop("linear", None)


TRAIN = ("--train", "linear:make", "--out", "runs.npz", "--count", 12, "--seed", 3)


def test_train_then_score(invoke, linear):
    shown = invoke("lds", "scores.npy", *TRAIN, "--fraction", 0.4, "--json")
    found = json.loads(shown.stdout)
    runs = retrain_on_subsets(linear.fit, 60, 0.4, 12, 3, progress=False)
    expected = lds(np.load("scores.npy"), runs.outputs, runs.subsets, seed=3)
    assert found["lds"] == pytest.approx(expected.mean) and expected.mean > 0.7
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["per_target"] == pytest.approx(expected.per_target.tolist())
    assert [found[name] for name in ("models", "samples", "targets", "out")] == [
        12, 60, 4, "runs.npz",
    ]  # fmt: skip
    assert "12/12" in shown.stderr and "12 models are in runs.npz" in shown.stderr
    again = invoke("lds", "scores.npy", "runs.npz", "--seed", 3).stdout
    assert again.split()[:2] == ["LDS", f"{expected.mean:.3f}"]
    assert f"{expected.low:.3f} to {expected.high:.3f}" in again
    assert "4 targets, 12 models" in again
    models = invoke("lds", "scores.npy", "runs.npz", "--resample", "models", "--json").stdout
    assert json.loads(models)["low"] != found["low"]


def test_goes_on_after_a_stop(invoke, linear):
    linear.stop_after = 5
    work = ["lds", *TRAIN, "--samples", 60]
    shown = invoke(*work, code=130)
    assert "5 of 12 models are in runs.npz; go on from there with" in shown.stderr
    assert len(read_retrained("runs.npz").outputs) == 5
    linear.stop_after = None
    shown = invoke(*work, "--no-progress")
    assert shown.stdout == "" and shown.stderr == "12 models are in runs.npz\n"
    assert linear.trained == list(range(12))


def test_scores_of_attribute(invoke, toy, stores):
    n, m = len(FeatureStore("train.h5")), len(FeatureStore("test.h5"))
    invoke("attribute", "train.h5", "test.h5", "--method", "dot", "--out", "scores.h5")
    random = np.random.default_rng(0)
    subsets, outputs = random.random((6, n)) < 0.5, random.random((6, m))
    np.savez("own.npz", subsets=subsets, outputs=outputs)
    found = json.loads(invoke("lds", "scores.h5", "own.npz", "--json").stdout)
    scores = attribute(FeatureStore("train.h5"), FeatureStore("test.h5"), "dot")
    assert found["lds"] == pytest.approx(lds(scores, outputs, subsets).mean)
    np.savez("scores.npz", scores=scores.numpy())
    again = json.loads(invoke("lds", "scores.npz", "own.npz", "--json").stdout)
    assert again["lds"] == found["lds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scores.npy"], "expected SCORES and RETRAINED.npz, or --train and --out"),
        (["scores.npy", "runs.npz", *TRAIN], "--train writes what it trains to --out; give it"),
        (["--train", "linear:make"], "--train writes what it trains to --out"),
        (["scores.npy", "runs.npz", "--samples", 60], "--out and --samples are for --train"),
        (TRAIN, "how many training samples there are is not known; give --samples"),
        (["scores.npy", *TRAIN, "--samples", 61], "--samples is 61 and SCORES have 60 rows"),
        (["scores.npy", *TRAIN, "--fraction", 1], "some in and some out"),
        (["scores.npy", *TRAIN, "--out", "runs.h5"], "ends in '.h5'; expected .npz"),
        (["scores.npy", *TRAIN, "--train", "linear:wrong"], "returned a list; expected a function"),
        (["scores.npy", *TRAIN, "--train", "linear:maker"], "no attribute 'maker'; near it: make"),
        (["narrow.npy", "runs.npz"], "scores are of 60 samples and 3 targets, and the models of"),
        (["flat.npy", "runs.npz"], r"holds float64 of shape (60,); expected scores [n, m]"),
        (["best.npz", "runs.npz"], "holds the best samples of each target alone"),
        (["runs.npz", "runs.npz"], "holds outputs, about; expected scores [n, m]"),
        (["linear.py", "runs.npz"], "linear.py holds no scores"),
    ],
)
def test_refused(invoke, refused, linear, arguments, message):
    retrain_on_subsets(linear.fit, 60, count=2, seed=3, path="runs.npz", progress=False)
    np.save("narrow.npy", np.ones((60, 3)))
    np.save("flat.npy", np.ones(60))
    np.savez("best.npz", indices=np.zeros((4, 2), int), scores=np.ones((4, 2)))
    assert message in refused("lds", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scores.npy", "scores.npy"], "holds no outputs of retrain_on_subsets, or is damaged"),
        ([*TRAIN, "--train", "linear:ragged", "--samples", 60], "train_fn returned 2 outputs"),
        (["scores.h5", "own.npz"], "scores.h5"),
    ],
)
def test_files_and_functions_that_fail(invoke, linear, arguments, message):
    Path("scores.h5").write_bytes(b"no HDF5")
    np.savez("own.npz", subsets=np.ones((2, 60), bool), outputs=np.ones((2, 4)))
    assert message in invoke("lds", *arguments, code=1).stderr
