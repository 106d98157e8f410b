import json

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="folds are scikit-learn's")
from pntk.errors import PntkWarning
from pntk.store import FeatureStore
from pntk.surrogate import KernelSurrogate, evaluate


@pytest.fixture
def probs(stores):
    """probs.npy of the nine rows of test.h5."""
    values = np.random.default_rng(0).dirichlet(np.ones(3), 9)
    np.save("probs.npy", values)
    return values


def test_json_is_what_python_gives(invoke, probs):
    args = ["surrogate", "train.h5", "test.h5", "--probs", "probs.npy", "--kind", "ridge"]
    found = json.loads(invoke(*args, "--alpha", 0.5, "--bootstrap", 20, "--json").stdout)
    train, test = FeatureStore("train.h5"), FeatureStore("test.h5")
    model = KernelSurrogate("ridge", alpha=0.5).fit(train)
    report = evaluate(model.predict_proba(test), probs, test.labels, bootstrap=20)
    assert found["kendall_tau"] == pytest.approx(report.kendall_tau)
    assert found["intervals"]["tad"] == pytest.approx(report.intervals["tad"])
    assert (found["kind"], found["alpha"], found["classes"]) == ("ridge", 0.5, [0, 1, 2])
    assert found["train_rows"] == 20 and found["examples"] == 9


def test_readable(invoke, probs):
    args = ["surrogate", "train.h5", "test.h5", "--probs", "probs.npy", "--bootstrap", 0]
    with pytest.warns(PntkWarning, match="is the largest that was tried"):  # labels of chance
        shown = invoke(*args).stdout
    assert "glm, alpha" in shown and ", chosen" in shown
    for word in ("Kendall tau-b", "R_Miss", "TAD", "20 rows of 3 classes", "9 rows"):
        assert word in shown
    options = ["--legacy", "--normalize", "none", "--balanced"]
    assert "glm, as published, alpha 0.0001" in invoke(*args, *options).stdout


def test_skipped_rows_are_left_out(invoke, toy, stores, probs):
    work = ["featurize", "--model", "toy:net", "--data", "toy:with_nan", "--proj-dim", 64]
    invoke(*work, "--on-nonfinite", "skip", "--out", "some.h5", "--no-progress")
    np.save("more.npy", np.full((20, 3), 1 / 3))
    args = ["--kind", "gp", "--alpha", 0.5, "--bootstrap", 0]
    shown = invoke("surrogate", "train.h5", "some.h5", "--probs", "more.npy", *args)
    assert "some.h5: 2 rows were skipped and are left out" in shown.stderr
    assert "18 rows" in shown.stdout


def test_errors(invoke, refused, toy, probs):
    args = ["--probs", "probs.npy", "--alpha", 0.1]
    work = ["featurize", "--model", "toy:net", "--data", "toy:digits", "--proj-dim", 64]
    invoke(*work, "--seed", 1, "--out", "other.h5", "--no-progress")
    shown = refused("surrogate", "other.h5", "test.h5", *args)
    assert "differ in projection" in shown
    shown = refused("surrogate", "test.h5", "train.h5", *args)
    assert "probs.npy has shape (9, 3); expected [20, c], a row for each of the store" in shown
    np.save("probs.npy", probs[:, :2])
    shown = refused("surrogate", "train.h5", "test.h5", *args)
    assert "has 2 columns and train.h5 has rows of 3 classes" in shown
    (toy / "probs.npy").write_text("mine")
    assert "is no array of NumPy" in refused("surrogate", "train.h5", "test.h5", *args)
    invoke(*work[:4], "toy:with_nan", *work[5:], "--on-nonfinite", "skip", "--out", "nan.h5")
    np.save("probs.npy", probs)
    shown = refused("surrogate", "nan.h5", "test.h5", *args)
    assert "2 rows of" in shown and "skipped as non-finite and hold zeros, such as row 3" in shown


def test_stores_without_labels_are_refused(refused, stores, probs, monkeypatch):
    monkeypatch.setattr(FeatureStore, "labels", property(lambda store: None))
    shown = refused("surrogate", "train.h5", "test.h5", "--probs", "probs.npy", code=1)
    assert "test.h5 has no labels; featurize data that has some" in shown


def test_of_one_class(invoke, probs):
    args = ["surrogate", "train.h5", "test.h5", "--probs", "probs.npy", "--kind", "ridge"]
    args += ["--alpha", 0.5, "--bootstrap", 0, "--json"]
    own, first = (json.loads(invoke(*args, "--of", of).stdout) for of in ("own", "0"))
    assert own["kendall_tau"] != first["kendall_tau"] and own["tad"] == first["tad"]
    for wrong, message in (("x", "expected 'own' or the number"), ("3", "3 columns")):
        assert message in invoke(*args, "--of", wrong, code=2).stderr
