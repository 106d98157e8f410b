"""KernelSurrogate: a kernel machine that stands for a network, as a scikit-learn estimator.

Shapes: n train and m other examples; k numbers a row; c classes.
"""

from __future__ import annotations

import inspect
import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pntk.errors import ConfigError, DataError
from pntk.rows import check_same_map
from pntk.store import FeatureStore
from pntk.surrogate import fitting
from pntk.surrogate.contributions import Contributions
from pntk.surrogate.design import NORMALIZE
from pntk.surrogate.fitting import KERNELS, KINDS, Problem
from pntk.surrogate.inputs import open_kernel_block, open_rows, open_train_kernel
from pntk.surrogate.labels import check_labels, encode, example_weights, one_hot
from pntk.surrogate.metrics import SurrogateReport, evaluate


class KernelSurrogate:
    """A kernel machine, f(x) = b + sum_i beta_i K(x, x_i), fit to labels.

    ``glm`` is multinomial logistic regression (of two classes: logistic); ``svm`` has the hinge
    loss, one class against the rest, or the squared hinge loss of rows; ``ridge`` and ``gp`` are
    regression on one-hot targets. With w the weights of the examples, they minimise

        glm, svm     sum_i w_i loss_i / n + alpha / 2 |W|^2
        ridge, gp    sum_i w_i |y_i - f(x_i)|^2 + alpha |W|^2

    where |W|^2 = sum_c beta_c^T K beta_c. Rows are used as they are, so that nothing n x n is
    made where k < n. It follows scikit-learn's conventions but for two classes, where coefficients
    have two rows too.

    Args:
        kind: ``glm``, ``svm``, ``ridge`` or ``gp``.
        normalize: True for cosines; False for the kernel as it is; ``trntk0`` for the kernel over
            the standard deviation of its train block. A precomputed kernel must already be one of
            cosines where this is True.
        class_weight: None, or ``balanced`` for n / (c n_class).
        alpha: regularisation, above 0 (ridge: or 0); None to choose it from ``alphas``: ``glm``
            by the log loss and ``svm`` by the accuracy of ``cv`` folds, ``ridge`` by leave-one-out
            error, ``gp`` by the marginal likelihood.
        alphas: what to choose from; None for powers of ten times the mean of K(x, x).
        kernel: ``rows`` or ``precomputed``.
        legacy: fit the kGLM of Engel 2023 as it was published: scikit-learn's SGDClassifier
            (log_loss, l2, balanced classes, alpha 1e-4 unless given) on rows of the kernel, whose
            penalty is |beta|^2.
        cv: folds.
        tol: of ``glm``, the largest error in the sum of contributions to a logit, for K(x, x) = 1;
            of ``svm``, scikit-learn's.
        max_iter: Newton steps of ``glm``.
        seed: of folds, of stochastic gradients and of the rows a preconditioner is made of.

    Attributes:
        classes_: [c], ascending.
        alpha_: regularisation that was used.
        dual_coef_: beta, float64 [c, n].
        intercept_: b, float64 [c].
        coef_: W, float64 [c, k]; None of a kernel matrix.
        temperature_: factor of scores that gives probabilities; 1 of ``glm``.
        stationarity_: of ``glm``, what was reached of ``tol``; else NaN.
        scale_: of ``gp``, the most likely factor of the kernel; else NaN.
        scores_: score of each of ``alphas``, if one was chosen; else None.

    >>> rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> surrogate = KernelSurrogate("ridge", alpha=0.1).fit(rows, [3, 3, 7, 7])
    >>> surrogate.predict(torch.tensor([[2.0, 1.0]]))
    array([3])
    """

    def __init__(
        self,
        kind: str = "glm",
        *,
        normalize: bool | str = True,
        class_weight: str | None = None,
        alpha: float | None = None,
        alphas: Any = None,
        kernel: str = "rows",
        legacy: bool = False,
        cv: int = 3,
        tol: float = 1e-3,
        max_iter: int = 100,
        seed: int = 0,
    ) -> None:
        self.kind = kind
        self.normalize = normalize
        self.class_weight = class_weight
        self.alpha = alpha
        self.alphas = alphas
        self.kernel = kernel
        self.legacy = legacy
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.seed = seed

    # ---- scikit-learn's conventions ------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments."""
        return {name: getattr(self, name) for name in _names()}

    def set_params(self, **params: Any) -> KernelSurrogate:
        """Set arguments.

        Raises:
            ConfigError: there is none of that name.
        """
        for name, value in params.items():
            if name not in _names():
                raise ConfigError(f"{name!r} is no argument; there are {', '.join(_names())}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that this is a classifier, of a kernel where that is precomputed."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(pairwise=self.kernel == "precomputed"),
        )

    def __repr__(self) -> str:
        shown = [f"kind={self.kind!r}"]
        for name, parameter in inspect.signature(KernelSurrogate).parameters.items():
            value = getattr(self, name)
            if name != "kind" and value is not parameter.default:
                shown.append(f"{name}={value!r}")
        return f"KernelSurrogate({', '.join(shown)})"

    # ---- fit -----------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, X: Any, y: Any = None) -> KernelSurrogate:
        """Fit to labels.

        Args:
            X: rows [n, k]: tensor, array or FeatureStore; or, precomputed, the kernel [n, n]:
                tensor, array, or an open kernel or the path of one.
            y: labels [n], integers or strings; None for those of the store.

        Raises:
            ConfigError: arguments or rows that cannot work.
            DataError: labels are missing, of another number, or of one class.
            MissingExtraError: scikit-learn is needed and not installed.
        """
        self._check_params()
        precomputed = self.kernel == "precomputed"
        if y is None and isinstance(X, FeatureStore):
            y = X.labels
        if y is None:
            raise DataError("there are no labels; give fit(X, y), or a store with labels")
        if precomputed:
            gram, self._factor = open_train_kernel(X, self.normalize)
            design, size = None, len(gram)
        else:
            design, self._factor = open_rows(X, self.normalize)
            gram, size = None, design.size
        labels = check_labels(y, size)
        classes, numbers = encode(labels)
        problem = Problem(
            design=design,
            kernel=gram,
            numbers=numbers,
            targets=one_hot(numbers, len(classes)),
            weights=example_weights(numbers, len(classes), self.class_weight),
        )
        solution = fitting.solve(self, problem)
        self.classes_ = classes
        self._design = design
        self._store = X if isinstance(X, FeatureStore) else None
        self._solution = solution
        self._size = size
        self.alpha_, self.scores_ = solution.alpha, solution.scores
        self.dual_coef_ = None if solution.dual is None else solution.dual.T.numpy()
        self.coef_ = None if solution.coef is None else solution.coef.T.numpy()
        self.intercept_ = solution.intercept.numpy()
        self.temperature_ = solution.temperature
        self.stationarity_ = solution.stationarity
        self.scale_ = solution.scale
        self.n_features_in_ = size if design is None else design.width
        return self

    def _check_params(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        if self.kernel not in KERNELS:
            raise ConfigError(f"kernel is {self.kernel!r}; expected one of {', '.join(KERNELS)}")
        if self.normalize not in NORMALIZE:
            raise ConfigError(
                f"normalize is {self.normalize!r}; expected True (cosines), False or 'trntk0'"
            )
        if self.legacy and self.kind != "glm":
            raise ConfigError(
                f"legacy=True is the published kGLM, and kind is {self.kind!r}; use kind='glm'"
            )
        for alpha in [] if self.alpha is None else [self.alpha]:
            _check_alpha(alpha, self.kind)
        if self.alpha is None and self.alphas is not None:
            if not len(self.alphas):
                raise ConfigError("alphas is empty; expected numbers to choose alpha from, or None")
            for alpha in self.alphas:
                _check_alpha(alpha, "alphas")
        if not isinstance(self.cv, int) or self.cv < 2:
            raise ConfigError(f"cv is {self.cv!r}; expected at least 2 folds")

    # ---- outputs -------------------------------------------------------------------------------

    @torch.no_grad()
    def decision_function(self, X: Any) -> np.ndarray:
        """Return logits or scores, float64 [m, c]; of two classes that of the second [m].

        Args:
            X: rows [m, k], or the kernel [m, n] between these and the train examples.

        Raises:
            ConfigError: rows of another map, width or scale.
        """
        return self._one_or_all(self._scores(X)).numpy()

    @torch.no_grad()
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities, float64 [m, c].

        softmax of the logits; of scores that are none, after ``temperature_``.

        Args:
            X: as in :meth:`decision_function`.
        """
        scores = self._scores(X)
        if self._solution.probabilities is not None:
            return self._solution.probabilities(self._one_or_all(scores).numpy())
        return (self.temperature_ * scores).softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the largest score [m]; X as in :meth:`decision_function`."""
        with torch.no_grad():
            best = self._scores(X).argmax(1).numpy()
        return self.classes_[best]

    def score(self, X: Any, y: Any) -> float:
        """Return the share of right predictions."""
        predicted = self.predict(X)
        return float((predicted == check_labels(y, len(predicted))).mean())

    @torch.no_grad()
    def predict_variance(self, X: Any, own: Any = None) -> np.ndarray:
        """Return the posterior variance of a Gaussian process, float64 [m], in units of the kernel.

        k(x, x) - k(x, X) (K + alpha / w)^-1 k(X, x); times ``scale_`` it is in those of the
        targets, which are 0 and 1.

        Args:
            X: as in :meth:`decision_function`.
            own: k(x, x) [m] of a precomputed kernel that is not of cosines.

        Raises:
            ConfigError: not a Gaussian process, or ``own`` is missing.
        """
        self._require_fit()
        problem = self._solution.regression
        if self.kind != "gp" or problem is None:
            raise ConfigError(f"kind is {self.kind!r}; only 'gp' has a predictive variance")
        if self._design is not None:
            other = self._open(X)
            if problem.primal:
                return problem.variance(self.alpha_, other.dense(), None, None).numpy()
            rows = other.dense()
            cross = other.kernel(self._design)
            return problem.variance(self.alpha_, None, cross, rows.square().sum(1)).numpy()
        cross = open_kernel_block(X, self._size, self.normalize, self._factor)
        if own is None and self.normalize is not True:
            raise ConfigError("own is missing; of this kernel give k(x, x) of the examples, [m]")
        values = torch.ones(len(cross)) if own is None else torch.as_tensor(own)
        factor = 1.0 if own is None else self._factor
        return problem.variance(self.alpha_, None, cross, values.double() * factor).numpy()

    @torch.no_grad()
    def contributions(self, X: Any, class_: Any = None) -> Contributions:
        """Return what each train example adds to a logit.

        They are beta_i K(x, x_i), and with the intercept sum to ``decision_function``; of two
        classes, to its value for class_, which is log p / (1 - p). For an l2-regularised loss,
        beta_i = -w_i (d loss_i / d f_i) / (n alpha) at the optimum.

        Args:
            X: as in :meth:`decision_function`; [m, n] numbers are returned.
            class_: whose logit, one of ``classes_``; None for the predicted class of each.

        Raises:
            ConfigError: alpha is 0, where they are not unique.
            DataError: ``class_`` is none of the classes.

        Source: Schölkopf, Herbrich, Smola (2001), A generalized representer theorem; for networks
        Yeh, Kim, Yen, Ravikumar (2018), equation 3, https://arxiv.org/abs/1811.09720
        """
        self._require_fit()
        dual, intercept = self._solution.dual, self._solution.intercept
        if dual is None:
            raise ConfigError(
                "alpha is 0, with which contributions of examples are not unique; fit with alpha "
                "> 0"
            )
        if self._design is None:
            cross = open_kernel_block(X, self._size, self.normalize, self._factor)
            scores = cross @ dual + intercept
        else:
            other = self._open(X)
            cross, scores = other.kernel(self._design), self._scores_of(other)
        if class_ is None:
            chosen = scores.argmax(1)
        else:
            _, number = encode(check_labels([class_], 1, "class_"), self.classes_)
            chosen = torch.full((len(scores),), int(number[0]))
        if len(self.classes_) == 2:  # the log odds
            scores, dual = scores - scores.flip(1), dual - dual.flip(1)
            intercept = intercept - intercept.flip(0)
        return Contributions(
            values=cross * dual.T[chosen],
            logits=scores.gather(1, chosen[:, None])[:, 0],
            intercept=intercept[chosen],
            classes=chosen,
        )

    def evaluate(
        self,
        X: Any,
        network_probs: Any,
        labels: Any,
        *,
        of: str | int = "own",
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> SurrogateReport:
        """Compare with the network on other examples; see :func:`pntk.surrogate.evaluate`.

        Args:
            X: as in :meth:`decision_function`.
            network_probs: probabilities of the network [m, c], columns as ``classes_``.
            labels: [m], of ``classes_``.
            of: what tau, Pearson and R^2 are of: ``own``, the probability of the example's own
                class; or the number of one class for all examples.
            bootstrap: samples for intervals; 0 for none.
            seed: of the bootstrap.
        """
        probs = self.predict_proba(X)
        _, numbers = encode(check_labels(labels, len(probs)), self.classes_)
        return evaluate(probs, network_probs, numbers, of=of, bootstrap=bootstrap, seed=seed)

    # ---- private -------------------------------------------------------------------------------

    def _require_fit(self) -> None:
        if not hasattr(self, "classes_"):
            raise ConfigError("the surrogate is not fit yet; call fit(X, y) first")

    def _open(self, X: Any) -> Any:
        assert self._design is not None
        if isinstance(X, FeatureStore):
            check_same_map(self._store, X)
        design, _ = open_rows(X, self.normalize, self._factor)
        if design.width != self._design.width:
            raise ConfigError(
                f"rows are {design.width} wide and the surrogate was fit to rows of "
                f"{self._design.width}; expected rows of one projection"
            )
        return design

    def _scores(self, X: Any) -> Tensor:
        self._require_fit()
        if self._design is not None:
            return self._scores_of(self._open(X))
        cross = open_kernel_block(X, self._size, self.normalize, self._factor)
        assert self._solution.dual is not None
        return cross @ self._solution.dual + self._solution.intercept

    def _scores_of(self, other: Any) -> Tensor:
        if self._solution.coef is not None:
            return other.times(self._solution.coef) + self._solution.intercept
        return other.kernel(self._design) @ self._solution.dual + self._solution.intercept

    def _one_or_all(self, scores: Tensor) -> Tensor:
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores


def _names() -> list[str]:
    return list(inspect.signature(KernelSurrogate.__init__).parameters)[1:]


def _check_alpha(alpha: Any, kind: str) -> None:
    number = isinstance(alpha, Real) and not isinstance(alpha, bool)
    least = "at least" if kind == "ridge" else "above"
    if not number or not math.isfinite(alpha) or alpha < 0 or (alpha == 0 and kind != "ridge"):
        raise ConfigError(f"alpha is {alpha!r}; expected a number {least} 0, or None to choose it")
