"""Surrogates that scikit-learn fits: support vector machines, and the kGLM as published.

Shapes: n examples; k numbers a row; c classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pntk.extras import require

PUBLISHED_ALPHA = 1e-4
_WHAT = "kind='svm', legacy=True, or choosing alpha"


@dataclass(frozen=True)
class Fitted:
    """What scikit-learn found, as this package writes it.

    Attributes:
        dual: beta, float64 [n, c] or [n, 1] for the second of two classes.
        intercept: b, float64 [c] or [1].
        coef: W, float64 [k, c] or [k, 1]; None where only the kernel is known.
        left_out: scores of examples by fits without them, float64 [n, c] or [n, 1]; None where
            probabilities are the library's own.
        probabilities: the library's own, from logits; else None.
    """

    dual: Tensor
    intercept: Tensor
    coef: Tensor | None
    left_out: Tensor | None
    probabilities: Callable[[np.ndarray], np.ndarray] | None = None


def folds(numbers: np.ndarray, cv: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (train, test) examples of each fold; classes are spread evenly."""
    selection = require("sklearn.model_selection", _WHAT)
    splitter = selection.StratifiedKFold(cv, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(numbers)), numbers))


def machine(alpha: float, size: int, precomputed: bool, options: dict[str, Any]) -> Any:
    """Return an SVM, one class against the rest: of a kernel (hinge), or of rows (squared hinge).

    C = 1 / (alpha n), so that alpha weighs |W|^2 / 2 against the mean loss.
    """
    svm = require("sklearn.svm", _WHAT)
    if not precomputed:
        return svm.LinearSVC(
            C=1 / (alpha * size),
            dual=False,
            class_weight=options["class_weight"],
            random_state=options["seed"],
            tol=options["tol"],
            max_iter=10_000,
        )
    multiclass = require("sklearn.multiclass", _WHAT)
    one = svm.SVC(
        C=1 / (alpha * size),
        kernel="precomputed",
        class_weight=options["class_weight"],
        tol=options["tol"],
    )
    return multiclass.OneVsRestClassifier(one)


def cross_scores(
    model: Any, x: np.ndarray, numbers: np.ndarray, splits: list[tuple[np.ndarray, np.ndarray]]
) -> Tensor:
    """Return scores of each example by the fit without its fold, float64 [n, c] or [n, 1]."""
    selection = require("sklearn.model_selection", _WHAT)
    scores = selection.cross_val_predict(model, x, numbers, cv=splits, method="decision_function")
    return torch.from_numpy(np.asarray(scores, dtype=np.float64).reshape(len(numbers), -1))


def fit_machine(
    model: Any,
    x: np.ndarray,
    numbers: np.ndarray,
    splits: list[tuple[np.ndarray, np.ndarray]],
) -> Fitted:
    """Fit an SVM; its dual coefficients are the derivatives of the loss at the optimum."""
    left_out = cross_scores(model, x, numbers, splits)
    model.fit(x, numbers)
    if hasattr(model, "estimators_"):
        dual = np.zeros((len(numbers), len(model.estimators_)))
        for column, one in enumerate(model.estimators_):
            dual[one.support_, column] = one.dual_coef_[0]
        intercept = np.concatenate([one.intercept_ for one in model.estimators_])
        return Fitted(_double(dual), _double(intercept), None, left_out)
    columns = len(model.intercept_)
    signs = np.where(numbers[:, None] == (np.arange(columns) if columns > 1 else 1), 1.0, -1.0)
    margins = signs * model.decision_function(x).reshape(len(numbers), columns)
    weights = np.ones(signs.shape)
    if model.class_weight == "balanced":
        counts = np.bincount(numbers)
        balanced = len(numbers) / (len(counts) * counts[numbers])
        # of more than two classes liblinear weighs the one and not the rest
        weights = np.where((signs > 0) | (columns == 1), balanced[:, None], 1.0)
    dual = 2 * model.C * weights * signs * np.maximum(0, 1 - margins)
    return Fitted(_double(dual), _double(model.intercept_), _double(model.coef_.T), left_out)


def fit_published(kernel: np.ndarray, numbers: np.ndarray, alpha: float, seed: int) -> Fitted:
    """Fit the kGLM as published: by stochastic gradients, on rows of the kernel.

    Its penalty is on the coefficients of the examples, not on the norm of the function.

    Source: Engel, Wang, Frank, Dumitriu, Choudhury, Sarwate, Chiang (2023), Faithful and efficient
    explanations for neural networks via neural tangent kernel surrogate models, section 3,
    https://arxiv.org/abs/2305.14585
    """
    linear = require("sklearn.linear_model", _WHAT)
    model = linear.SGDClassifier(
        loss="log_loss", penalty="l2", class_weight="balanced", alpha=alpha, random_state=seed
    )
    model.fit(kernel, numbers)
    return Fitted(
        _double(model.coef_.T), _double(model.intercept_), None, None, _one_against_the_rest
    )


def _one_against_the_rest(logits: np.ndarray) -> np.ndarray:
    """Return probabilities [m, c] as SGDClassifier does: each class alone, then over their sum."""
    special = require("scipy.special", "legacy=True")
    alone = special.expit(logits)
    if logits.ndim == 1:
        return np.stack([1 - alone, alone], axis=1)
    total = alone.sum(1, keepdims=True)
    return np.divide(alone, total, out=np.full_like(alone, 1 / alone.shape[1]), where=total > 0)


def _double(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64))
