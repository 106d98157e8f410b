import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="surrogates are compared with scikit-learn's")
from sklearn.base import clone, is_classifier
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import SVC, LinearSVC

from pntk import ntk
from pntk.errors import ConfigError, DataError, PntkWarning
from pntk.surrogate import KernelSurrogate
from pntk.surrogate.labels import example_weights, one_hot

KINDS = ["glm", "svm", "ridge", "gp"]
SHAPES = [(60, 8), (40, 90)]  # more rows than they are wide, and fewer


def cosines(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def exact(kind, **options):
    return KernelSurrogate(kind, **{"alpha": 0.01, "tol": 1e-9, **options})


# ---- against scikit-learn ----------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("shape", SHAPES)
def test_glm_is_logistic_regression(blobs, shape, class_weight, classes):
    rows, labels = blobs(*shape, classes=classes)
    rows, labels = rows[7:], labels[7:]
    model = exact("glm", class_weight=class_weight).fit(rows, labels)
    x = cosines(rows).numpy()
    theirs = LogisticRegression(
        C=1 / (0.01 * len(x)), class_weight=class_weight, tol=1e-10, max_iter=10_000
    ).fit(x, labels)
    test = blobs(20, shape[1], classes, seed=5)[0]
    there = cosines(test).numpy()
    np.testing.assert_allclose(model.predict_proba(test), theirs.predict_proba(there), atol=1e-6)
    np.testing.assert_array_equal(model.predict(test), theirs.predict(there))
    expected = theirs.decision_function(there)
    if classes > 2:  # a common shift of all logits means nothing
        expected -= expected.mean(1, keepdims=True)
    ours = model.decision_function(test)
    ours = ours - ours.mean(1, keepdims=True) if classes > 2 else ours
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_ridge_is_ridge(blobs, shape, class_weight):
    rows, labels = blobs(*shape)
    rows, labels = rows[7:], labels[7:]
    labels[labels == 1] *= np.arange((labels == 1).sum()) % 3 > 0  # unbalanced
    model = KernelSurrogate("ridge", alpha=0.3, class_weight=class_weight).fit(rows, labels)
    weights = example_weights(labels, 3, class_weight).numpy()
    theirs = Ridge(alpha=0.3).fit(cosines(rows).numpy(), np.eye(3)[labels], weights)
    test = blobs(20, shape[1], seed=5)[0]
    np.testing.assert_allclose(
        model.decision_function(test), theirs.predict(cosines(test).numpy()), atol=1e-10
    )
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", ["rows", "precomputed"])
def test_gp_is_gaussian_process_regression(blobs, shape, kernel):
    rows, labels = blobs(*shape)
    test = blobs(20, shape[1], seed=5)[0]
    model = KernelSurrogate("gp", alpha=0.3, kernel=kernel)
    if kernel == "rows":
        model.fit(rows, labels)
        given = test
    else:
        model.fit(ntk(rows, normalize=True), labels)
        given = ntk(test, rows, normalize=True)
    kernel = DotProduct(0, sigma_0_bounds="fixed")
    theirs = GaussianProcessRegressor(kernel, alpha=0.3, optimizer=None)
    targets = np.eye(3)[labels]
    theirs.fit(cosines(rows).numpy(), targets - targets.mean(0))
    mean, std = theirs.predict(cosines(test).numpy(), return_std=True)
    np.testing.assert_allclose(model.decision_function(given), mean + targets.mean(0), atol=1e-9)
    np.testing.assert_allclose(model.predict_variance(given), std[:, 0] ** 2, atol=1e-9)
    k = cosines(rows) @ cosines(rows).T + 0.3 * torch.eye(len(rows), dtype=torch.float64)
    centred = torch.from_numpy(targets - targets.mean(0))
    scale = (centred * torch.linalg.solve(k, centred)).sum() / centred.numel()
    assert model.scale_ == pytest.approx(float(scale))


@pytest.mark.parametrize("classes", [2, 3])
def test_svm_of_a_kernel_is_svc(blobs, classes):
    rows, labels = blobs(classes=classes)
    kernel = ntk(rows, normalize=True)
    model = exact("svm", kernel="precomputed").fit(kernel, labels)
    cross = ntk(blobs(20, classes=classes, seed=5)[0], rows, normalize=True)
    ours = model.decision_function(cross).reshape(20, -1)
    for column in range(ours.shape[1]):
        positive = labels == (column if classes > 2 else 1)
        theirs = SVC(kernel="precomputed", C=1 / 0.6, tol=1e-9).fit(kernel, positive)
        np.testing.assert_allclose(ours[:, column], theirs.decision_function(cross), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_svm_of_rows_is_linear_svc(blobs, classes):
    rows, labels = blobs(classes=classes)
    model = exact("svm", class_weight="balanced").fit(rows, labels)
    theirs = LinearSVC(C=1 / 0.6, tol=1e-9, dual=False, class_weight="balanced")
    theirs.fit(cosines(rows).numpy(), labels)
    there = cosines(rows).numpy()
    expected = theirs.decision_function(there)
    np.testing.assert_allclose(model.decision_function(rows), expected, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kernel", ["rows", "precomputed"])
def test_legacy_is_the_published_kglm(blobs, classes, kernel):
    rows, labels = blobs(classes=classes)
    k = ntk(rows, normalize=True)
    theirs = SGDClassifier(
        loss="log_loss", penalty="l2", class_weight="balanced", alpha=1e-4, random_state=3
    ).fit(k.numpy(), labels)
    model = KernelSurrogate(legacy=True, kernel=kernel, seed=3)
    model.fit(rows if kernel == "rows" else k, labels)
    test = blobs(20, classes=classes, seed=5)[0]
    cross = ntk(test, rows, normalize=True)
    given = test if kernel == "rows" else cross
    assert model.alpha_ == 1e-4
    np.testing.assert_allclose(
        model.decision_function(given), theirs.decision_function(cross.numpy()), rtol=1e-6
    )
    np.testing.assert_allclose(
        model.predict_proba(given), theirs.predict_proba(cross.numpy()), atol=1e-8
    )


# ---- scales and kernels ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["glm", "ridge", "gp"])
@pytest.mark.parametrize("normalize", [True, False, "trntk0"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_and_their_kernel_give_the_same(blobs, kind, normalize, shape):
    rows, labels = blobs(*shape)
    test = blobs(20, shape[1], seed=5)[0]
    cosine = normalize is True
    of_rows = exact(kind, normalize=normalize).fit(rows, labels)
    of_kernel = exact(kind, normalize=normalize, kernel="precomputed")
    of_kernel.fit(ntk(rows, normalize=cosine), labels)
    cross = ntk(test, rows, normalize=cosine)
    np.testing.assert_allclose(
        of_rows.predict_proba(test), of_kernel.predict_proba(cross), atol=1e-6
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_trntk0_divides_by_the_deviation_of_the_train_block(blobs, shape):
    rows, labels = blobs(*shape)
    kernel = ntk(rows)
    model = KernelSurrogate("ridge", normalize="trntk0", alpha=0.3).fit(rows, labels)
    plain = KernelSurrogate("ridge", normalize=False, alpha=0.3 * float(kernel.std(correction=0)))
    np.testing.assert_allclose(
        model.decision_function(rows), plain.fit(rows, labels).decision_function(rows), atol=1e-9
    )


def test_glm_of_wide_rows_meets_its_tolerance(blobs):
    rows, labels = blobs(1200, 1100, spread=3.0)
    rows = (rows * torch.logspace(0, -2, 1100)).float()  # eigenvalues over four orders
    model = KernelSurrogate(alpha=1e-5).fit(rows, labels)
    assert model.stationarity_ < 1e-3
    remainder = model.contributions(rows[:50]).remainder
    assert remainder.abs().max() < 1e-3


# ---- probabilities and alpha -------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities(blobs, kind, classes):
    rows, labels = blobs(200, classes=classes, spread=2.0)
    names = np.array(["d", "a", "c", "b"])
    model = KernelSurrogate(kind, alpha=0.01).fit(rows, names[labels])
    test, expected = blobs(400, classes=classes, spread=2.0, seed=5)
    probs = model.predict_proba(test)
    assert model.classes_.tolist() == sorted(names[:classes])
    np.testing.assert_allclose(probs.sum(1), 1)
    assert ((probs > 0) & (probs < 1)).all()
    np.testing.assert_array_equal(model.predict(test), model.classes_[probs.argmax(1)])
    accuracy = model.score(test, names[expected])
    assert accuracy > 1.5 / classes
    assert probs.max(1).mean() == pytest.approx(accuracy, abs=0.12)  # calibrated


def test_ridge_takes_the_alpha_of_least_leave_one_out_error(blobs):
    rows, labels = blobs(25, 8, spread=2.0)
    alphas = [0.01, 1.0, 100.0]
    model = KernelSurrogate("ridge", alphas=alphas, class_weight="balanced").fit(rows, labels)
    weights = example_weights(labels, 3, "balanced").numpy()
    x, y = cosines(rows).numpy(), np.eye(3)[labels]
    errors = np.zeros(3)
    for i in range(25):
        kept = np.arange(25) != i
        for a, alpha in enumerate(alphas):
            fit = Ridge(alpha=alpha).fit(x[kept], y[kept], weights[kept])
            errors[a] += weights[i] * ((fit.predict(x[[i]]) - y[i]) ** 2).sum()
    np.testing.assert_allclose(-model.scores_, errors / 25, rtol=1e-8)
    assert model.alpha_ == alphas[errors.argmin()]


@pytest.mark.parametrize("shape", [(25, 8), (25, 40)])
def test_gp_takes_the_most_likely_alpha(blobs, shape):
    rows, labels = blobs(*shape, spread=2.0)
    alphas = [0.01, 1.0, 100.0]
    model = KernelSurrogate("gp", alphas=alphas).fit(rows, labels)
    y = one_hot(labels, 3)
    y = y - y.mean(0)
    likelihoods = []
    for alpha in alphas:
        k = cosines(rows) @ cosines(rows).T + alpha * torch.eye(25, dtype=torch.float64)
        scale = (y * torch.linalg.solve(k, y)).sum() / y.numel()
        likelihoods.append(float(-1.5 * torch.logdet(scale * k)))
    np.testing.assert_allclose(model.scores_, likelihoods, rtol=1e-8)
    assert model.alpha_ == alphas[np.argmax(likelihoods)]


@pytest.mark.parametrize("kind", ["glm", "svm"])
def test_alpha_by_folds(blobs, kind):
    rows, labels = blobs(90, spread=0.7)
    model = KernelSurrogate(kind).fit(rows, labels)
    powers = range(-7, -1) if kind == "glm" else range(-6, -1)
    assert len(model.scores_) == len(powers)
    stiffest = np.flatnonzero(model.scores_ == model.scores_.max())[-1]
    assert model.alpha_ == pytest.approx(10.0 ** powers[stiffest])
    given = KernelSurrogate(kind, alpha=model.alpha_).fit(rows, labels)
    np.testing.assert_array_equal(given.predict(rows), model.predict(rows))


@pytest.mark.parametrize("kind", ["glm", "svm", "ridge", "gp"])
def test_a_grid_that_ends_too_early_is_told(blobs, kind):
    rows, labels = blobs(90, spread=0.7)
    best = KernelSurrogate(kind).fit(rows, labels).alpha_
    for factors, which in (([1, 10], "smallest"), ([1, 0.01], "largest")):
        message = f"alpha {best:.3g} was chosen and is the {which} that was tried, .*pass alphas"
        model = KernelSurrogate(kind, alphas=[best * factor for factor in factors])
        with pytest.warns(PntkWarning, match=message):
            model.fit(rows, labels)
        assert model.alpha_ == best
    KernelSurrogate(kind, alphas=[best]).fit(rows, labels)  # no choice, and so no warning


def test_folds_leave_examples_out(blobs):
    rows, labels = blobs(90, spread=2.0)
    model = KernelSurrogate(alphas=[0.01], cv=3, seed=1).fit(rows, labels)
    x, total = cosines(rows).numpy(), 0.0
    for kept, left in StratifiedKFold(3, shuffle=True, random_state=1).split(x, labels):
        fit = LogisticRegression(C=1 / 0.6, tol=1e-8).fit(x[kept], labels[kept])
        total += np.log(fit.predict_proba(x[left])[np.arange(30), labels[left]]).sum()
    assert model.scores_[0] == pytest.approx(total / 90, rel=1e-3)


# ---- contributions -----------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [*KINDS, "legacy"])
@pytest.mark.parametrize("kernel", ["rows", "precomputed"])
def test_contributions_sum_to_the_logit(blobs, kind, shape, classes, kernel):
    rows, labels = blobs(*shape, classes=classes)
    test = blobs(10, shape[1], classes, seed=5)[0]
    model = exact("glm" if kind == "legacy" else kind, legacy=kind == "legacy", kernel=kernel)
    of_rows = kernel == "rows"
    model.fit(rows if of_rows else ntk(rows, normalize=True), labels)
    given = test if of_rows else ntk(test, rows, normalize=True)
    logits = model.decision_function(given)
    for class_ in range(classes):
        found = model.contributions(given, class_)
        one = logits[:, class_] if classes > 2 else (2 * class_ - 1) * logits
        np.testing.assert_allclose(found.logits, one, atol=1e-12)
        penalised = kind == "svm" and of_rows
        assert found.remainder.abs().max() < (1e-5 if penalised else 1e-7)
        assert found.values.shape == (10, shape[0])
    predicted = model.contributions(given)
    np.testing.assert_array_equal(model.classes_[predicted.classes], model.predict(given))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kernel", ["rows", "precomputed"])
def test_contributions_of_weighted_examples_sum_to_the_logit(blobs, kind, kernel, classes):
    rows, labels = blobs(70, 12, classes)
    rows, labels = rows[kept := (labels > 0) | (np.arange(70) < 20)], labels[kept]
    model = exact(kind, kernel=kernel, class_weight="balanced")
    given = rows if kernel == "rows" else ntk(rows, normalize=True)
    found = model.fit(given, labels).contributions(given)
    assert found.remainder.abs().max() < 1e-5
    assert found.values.abs().max() > 0.01


def test_extreme_examples(blobs):
    rows, labels = blobs()
    found = KernelSurrogate(alpha=0.01).fit(rows, labels).contributions(rows[:4], 2)
    indices, values = found.positive(3)
    order = found.values.argsort(1)
    assert torch.equal(indices, order.flip(1)[:, :3])
    assert torch.equal(values, found.values.gather(1, indices))
    assert torch.equal(found.negative(3)[0], order[:, :3])
    with pytest.raises(ConfigError, match="num is 61; expected 1 to 60, the train examples"):
        found.positive(61)


# ---- conventions -------------------------------------------------------------------------------


def test_conventions(blobs):
    rows, labels = blobs()
    model = KernelSurrogate("ridge", alpha=0.5)
    copy = clone(model)
    assert copy is not model and copy.get_params() == model.get_params()
    assert is_classifier(model)
    assert repr(model) == "KernelSurrogate(kind='ridge', alpha=0.5)"
    assert model.set_params(alpha=2.0).alpha == 2.0
    scores = cross_val_score(model, rows.numpy(), labels)
    assert scores.shape == (5,) and scores.mean() > 0.5
    kernel = KernelSurrogate("ridge", alpha=0.5, kernel="precomputed")
    precomputed = cross_val_score(kernel, ntk(rows, normalize=True).numpy(), labels)
    plain = cross_val_score(KernelSurrogate("ridge", alpha=0.5), rows.numpy(), labels)
    np.testing.assert_allclose(precomputed, plain)
    model.fit(rows, labels)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(rows), model.predict_proba(rows))


@pytest.mark.parametrize("kind", ["glm", "ridge", "gp"])
def test_fits_without_scikit_learn(blobs, kind, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    rows, labels = blobs()
    assert KernelSurrogate(kind, alpha=0.01).fit(rows, labels).score(rows, labels) > 0.5


def test_import_is_light():
    code = (
        "import sys, pntk.surrogate, pntk.embedding, pntk.cli.app; "
        "print([name for name in ('sklearn', 'scipy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "forest"}, "kind is 'forest'; expected one of glm, svm, ridge, gp"),
        ({"kernel": "rbf"}, "kernel is 'rbf'; expected one of rows, precomputed"),
        ({"normalize": "l2"}, r"normalize is 'l2'; expected True \(cosines\), False or 'trntk0'"),
        ({"kind": "svm", "legacy": True}, "legacy=True is the published kGLM, and kind is 'svm'"),
        ({"alpha": 0.0}, "alpha is 0.0; expected a number above 0, or None to choose it"),
        ({"kind": "ridge", "alpha": -1.0}, "alpha is -1.0; expected a number at least 0"),
        ({"alphas": []}, "alphas is empty; expected numbers to choose alpha from"),
        ({"alphas": [0.0]}, "alpha is 0.0; expected a number above 0"),
        ({"cv": 1}, "cv is 1; expected at least 2 folds"),
        ({"cv": 30}, "the rarest class has 20 examples, fewer than cv=30 folds; use cv=20"),
        ({"class_weight": "even"}, "class_weight is 'even'; expected None or 'balanced'"),
    ],
)
def test_arguments(blobs, options, message):
    with pytest.raises(ConfigError, match=message):
        KernelSurrogate(**options).fit(*blobs())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(60, int), "all 60 labels are 0; expected at least two classes"),
        (np.arange(50) % 3, r"labels have shape \(50,\) and there are 60 rows"),
        (np.arange(60) % 3 - 1, "20 of 60 labels are negative, which stands for none; leave those"),
        (np.eye(3)[np.arange(60) % 3], r"expected one class an example, \[n\]: of one-hot rows"),
        (np.linspace(0, 1, 60), "labels hold numbers such as .*0.0.*; expected classes, integers"),
        (np.array([None] * 60), "labels are object; expected integers or strings"),
        (None, r"there are no labels; give fit\(X, y\), or a store with labels"),
    ],
)
def test_labels(blobs, labels, message):
    with pytest.raises(DataError, match=message):
        KernelSurrogate(alpha=0.1).fit(blobs()[0], labels)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_refused(blobs, kind):
    rows, labels = blobs()
    bad = rows.clone()
    bad[17, 3] = float("nan")
    message = "row 17 holds NaN or infinity; expected finite numbers"
    with pytest.raises(ConfigError, match=message):
        KernelSurrogate(kind, alpha=0.1).fit(bad, labels)
    with pytest.raises(ConfigError, match=message):
        KernelSurrogate(kind, alpha=0.1).fit(rows, labels).predict(bad)
    model = KernelSurrogate(kind, alpha=0.1, kernel="precomputed")
    with pytest.raises(ConfigError, match="holds NaN or infinity"):
        model.fit(ntk(bad, normalize=True), labels)


def test_kernels(blobs):
    rows, labels = blobs()
    model = KernelSurrogate(alpha=0.1, kernel="precomputed")
    with pytest.raises(ConfigError, match=r"diagonal goes from .*, and normalize=True expects cos"):
        model.fit(ntk(rows), labels)
    with pytest.raises(ConfigError, match=r"the centred kernel has eigenvalues from -0.*; exp"):
        kernel = torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, -1.0]])
        KernelSurrogate(alpha=0.1, kernel="precomputed", normalize=False).fit(kernel, [0, 1, 1])
    model.fit(ntk(rows, normalize=True), labels)
    with pytest.raises(ConfigError, match=r"shape \(4, 8\); expected \[m, 60\], one column for"):
        model.predict(rows[:4])
    with pytest.raises(ConfigError, match=r"normalize=True expects cosines, from -1 to 1"):
        model.predict(ntk(10 * rows[:4], rows))
    with pytest.raises(ConfigError, match="entries are alike; use normalize=True or False"):
        KernelSurrogate(alpha=0.1, normalize="trntk0").fit(torch.ones(60, 8), labels)


def test_outputs_that_are_not_there(blobs):
    rows, labels = blobs()
    with pytest.raises(ConfigError, match="the surrogate is not fit yet"):
        KernelSurrogate().predict(rows)
    model = KernelSurrogate(alpha=0.1)
    with pytest.raises(ConfigError, match="'width' is no argument; there are kind, normalize"):
        model.set_params(width=3)
    model.fit(rows, labels)
    with pytest.raises(ConfigError, match="rows are 5 wide and the surrogate was fit to rows of 8"):
        model.predict(rows[:, :5])
    with pytest.raises(ConfigError, match="kind is 'glm'; only 'gp' has a predictive variance"):
        model.predict_variance(rows)
    with pytest.raises(DataError, match="label 7 is none of the 3 classes"):
        model.contributions(rows, 7)
    gp = KernelSurrogate("gp", alpha=0.1, kernel="precomputed", normalize=False)
    gp.fit(ntk(rows), labels)
    with pytest.raises(ConfigError, match="own is missing; of this kernel give"):
        gp.predict_variance(ntk(rows))


def test_singular_systems(blobs):
    rows, labels = blobs(40, 90)
    with pytest.raises(ConfigError, match="alpha is 0, with 40 examples and rows of 90 numbers"):
        KernelSurrogate("ridge", alpha=0.0).fit(rows, labels)
    narrow, labels = blobs(60, 8)
    model = KernelSurrogate("ridge", alpha=0.0).fit(narrow, labels)
    x = np.column_stack([cosines(narrow).numpy(), np.ones(60)])
    expected = x @ np.linalg.lstsq(x, np.eye(3)[labels])[0]
    np.testing.assert_allclose(model.decision_function(narrow), expected, atol=1e-9)
    with pytest.raises(ConfigError, match="contributions of examples are not unique"):
        model.contributions(narrow)
    with pytest.raises(ConfigError, match="alpha is 0, with 60 examples and rows of 16 numbers"):
        KernelSurrogate("ridge", alpha=0.0).fit(torch.cat([narrow, narrow], 1), labels)


def test_an_optimum_that_is_not_reached_is_told(blobs):
    with pytest.warns(PntkWarning, match="after 1 Newton steps contributions miss a logit by up"):
        KernelSurrogate(alpha=1e-4, max_iter=1).fit(*blobs())
