"""Fit a surrogate: which solver, and which alpha.

Shapes: n train examples; k numbers a row; c classes; a alphas.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pntk.errors import ConfigError, PntkWarning
from pntk.rows import Rows
from pntk.surrogate import library
from pntk.surrogate.design import Design
from pntk.surrogate.least_squares import LeastSquares
from pntk.surrogate.logistic import Fit, Logistic, Preconditioner, losses, precondition
from pntk.surrogate.temperature import fit_temperature

if TYPE_CHECKING:
    from pntk.surrogate.estimator import KernelSurrogate

KINDS = ("glm", "svm", "ridge", "gp")
KERNELS = ("rows", "precomputed")
_ALPHAS = {  # powers of ten, times the mean of K(x, x)
    "glm": range(-7, -1),
    "svm": range(-6, -1),
    "ridge": range(-4, 4),
    "gp": range(-4, 4),
}
_ROUGH = 1e-2  # tol of fits that only score an alpha
_NEGATIVE = 1e-6  # of the largest eigenvalue, down to which negative ones are rounding


@dataclass(frozen=True)
class Problem:
    """What is fit.

    Attributes:
        design: scaled rows [n, k]; None of a kernel.
        kernel: K, float64 [n, n]; None of rows.
        numbers: of the classes, [n].
        targets: one-hot, float64 [n, c].
        weights: float64 [n].
    """

    design: Design | None
    kernel: Tensor | None
    numbers: np.ndarray
    targets: Tensor
    weights: Tensor

    def mean_diagonal(self) -> float:
        """Return the mean of K(x, x)."""
        if self.kernel is not None:
            return float(self.kernel.diagonal().mean())
        assert self.design is not None
        return self.design.squared_norms() / self.design.size


@dataclass(frozen=True)
class Solution:
    """What was found; see the attributes of :class:`KernelSurrogate`.

    Attributes:
        dual: beta, float64 [n, c]; None where alpha is 0.
        coef: W, float64 [k, c]; None of a kernel.
        intercept: float64 [c].
        regression: of a Gaussian process, what its variance is computed from.
        probabilities: of scores, by the library's own way; None for softmax.
    """

    alpha: float
    dual: Tensor | None
    coef: Tensor | None
    intercept: Tensor
    temperature: float = 1.0
    stationarity: float = math.nan
    scale: float = math.nan
    scores: np.ndarray | None = None
    regression: LeastSquares | None = None
    probabilities: Callable[[np.ndarray], np.ndarray] | None = None


def solve(surrogate: KernelSurrogate, problem: Problem) -> Solution:
    """Return the fit that the arguments of a surrogate ask for."""
    if surrogate.legacy:
        return _published(surrogate, problem)
    if surrogate.kind == "glm":
        return _logistic(surrogate, problem)
    if surrogate.kind == "svm":
        return _machine(surrogate, problem)
    return _regression(surrogate, problem)


def _grid(surrogate: KernelSurrogate, problem: Problem) -> np.ndarray:
    """Alphas to choose from, ascending."""
    if surrogate.alphas is not None:
        return np.sort(np.array(surrogate.alphas, dtype=np.float64))
    mean = problem.mean_diagonal()
    if mean == 0:
        raise ConfigError("all rows are zeros; expected gradients of samples")
    powers = _ALPHAS[surrogate.kind]
    return mean * 10.0 ** np.array(powers)


def _best(grid: np.ndarray, scores: np.ndarray) -> float:
    """Return the alpha that scored best, the stiffest of equals; warn where a grid is too short."""
    place = len(grid) - 1 - int(scores[::-1].argmax())
    ends = {0: ("smallest", 1), len(grid) - 1: ("largest", -1)}
    if len(grid) > 1 and place in ends:
        which, inward = ends[place]
        if scores[place] > scores[place + inward]:
            warnings.warn(
                f"alpha {grid[place]:.3g} was chosen and is the {which} that was tried, of "
                f"{grid[0]:.3g} to {grid[-1]:.3g}, so that one beyond it may be better; pass "
                "alphas that go on there, or alpha",
                PntkWarning,
                stacklevel=6,  # fit is wrapped
            )
    return float(grid[place])


def _check_folds(problem: Problem, cv: int) -> None:
    least = int(np.bincount(problem.numbers).min())
    if least < cv:
        remedy = f"use cv={least}" if least > 1 else "leave that class out"
        raise ConfigError(
            f"the rarest class has {least} examples, fewer than cv={cv} folds; {remedy}, or give "
            "more examples"
        )


# ---- glm ---------------------------------------------------------------------------------------


def _logistic(surrogate: KernelSurrogate, problem: Problem) -> Solution:
    design, preconditioner, mean = _coordinates(surrogate, problem)
    binary = problem.targets.shape[1] == 2
    targets = problem.targets[:, 1:] if binary else problem.targets
    size = len(targets)

    def problem_of(weights: Tensor, tol: float) -> Logistic:
        return Logistic(design, targets, weights, preconditioner, tol, surrogate.max_iter)

    alpha, scores = surrogate.alpha, None
    if alpha is None:
        grid = _grid(surrogate, problem)
        scores = np.zeros(len(grid))
        _check_folds(problem, surrogate.cv)
        for inside, outside in library.folds(problem.numbers, surrogate.cv, surrogate.seed):
            weights = problem.weights.clone()
            weights[outside] = 0
            found: Fit | None = None
            held = problem.weights[outside]
            folded = problem_of(weights / len(inside), _ROUGH)
            for place in reversed(range(len(grid))):  # from the stiffest, each starts the next
                found = folded.fit(float(grid[place]), found)
                loss = losses(found.logits[outside], targets[outside])
                scores[place] -= float(held @ loss) / size
        alpha = _best(grid, scores)
    fit = problem_of(problem.weights / size, surrogate.tol).fit(alpha)
    _warn_unless_done(fit, surrogate)
    p = fit.logits.sigmoid() if binary else fit.logits.softmax(1)
    dual = problem.weights[:, None] * (targets - p) / (size * alpha)
    intercept = fit.intercept if mean is None else fit.intercept - mean @ dual
    if problem.design is None:
        coef = None
    elif design is problem.design:
        coef = fit.coef
    else:
        coef = problem.design.transposed_times(dual)
    return Solution(
        alpha,
        _two_sided(dual) if binary else dual,
        _two_sided(coef) if binary and coef is not None else coef,
        _two_sided(intercept[None])[0] if binary else intercept,
        stationarity=fit.stationarity,
        scores=scores,
    )


def _coordinates(
    surrogate: KernelSurrogate, problem: Problem
) -> tuple[Design, Preconditioner, Tensor | None]:
    """Rows that serve: as they are where there are more than they are wide, else Z [n, r].

    Z Z^T = H K H with H = I - 1 1^T / n, and the mean row of K [n] is returned too. Nothing is lost
    without the mean, as coefficients of examples sum to 0 at the optimum.
    """
    design, kernel = problem.design, problem.kernel
    if kernel is None:
        assert design is not None
        if design.size > design.width:
            return design, precondition(design, surrogate.seed), None
        kernel = design.kernel()
    mean = kernel.mean(0)
    values, vectors = torch.linalg.eigh(kernel - mean - mean[:, None] + mean.mean())
    largest = float(values[-1])
    if float(values[0]) < -_NEGATIVE * largest or largest <= 0:
        raise ConfigError(
            f"the centred kernel has eigenvalues from {float(values[0]):.3g} to {largest:.3g}; "
            "expected none below 0: of an indefinite matrix, use kind='svm' or legacy=True"
        )
    kept = values > len(values) * torch.finfo(torch.float64).eps * largest
    values, vectors = values[kept], vectors[:, kept]
    size = len(kernel)
    factor = Design(Rows(vectors * values.sqrt()), torch.ones(size, dtype=torch.float64))
    return factor, Preconditioner(torch.zeros_like(values), values / size, None), mean


def _two_sided(column: Tensor) -> Tensor:
    """Scores of both classes from the log odds of the second [n, 1]."""
    return torch.cat([-column / 2, column / 2], dim=1)


def _warn_unless_done(fit: Fit, surrogate: KernelSurrogate) -> None:
    if fit.stationarity > surrogate.tol:
        warnings.warn(
            f"after {fit.iterations} Newton steps contributions miss a logit by up to "
            f"{fit.stationarity:.2g}, more than tol={surrogate.tol:g}; raise max_iter or alpha, or "
            "give rows in float64",
            PntkWarning,
            stacklevel=4,
        )


# ---- svm and the published kGLM ----------------------------------------------------------------


def _machine(surrogate: KernelSurrogate, problem: Problem) -> Solution:
    precomputed = problem.design is None
    x = problem.kernel if problem.design is None else problem.design.dense()
    assert x is not None
    values, numbers = x.numpy(), problem.numbers
    options = {
        "class_weight": surrogate.class_weight,
        "seed": surrogate.seed,
        "tol": surrogate.tol,
    }
    _check_folds(problem, surrogate.cv)
    splits = library.folds(numbers, surrogate.cv, surrogate.seed)

    def model(alpha: float) -> Any:
        return library.machine(alpha, len(numbers), precomputed, options)

    alpha, scores = surrogate.alpha, None
    if alpha is None:
        grid = _grid(surrogate, problem)
        scores = np.zeros(len(grid))
        for place, value in enumerate(grid):
            outputs = library.cross_scores(model(value), values, numbers, splits).numpy()
            found = outputs.argmax(1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
            scores[place] = np.average(found == numbers, weights=problem.weights.numpy())
        alpha = _best(grid, scores)
    fitted = library.fit_machine(model(alpha), values, numbers, splits)
    solution = _from_library(alpha, fitted)
    assert fitted.left_out is not None
    left_out = fitted.left_out
    left_out = _two_sided(left_out) if left_out.shape[1] == 1 else left_out
    temperature = fit_temperature(left_out, problem.targets, problem.weights)
    return replace(solution, temperature=temperature, scores=scores)


def _published(surrogate: KernelSurrogate, problem: Problem) -> Solution:
    kernel = problem.kernel
    if kernel is None:
        assert problem.design is not None
        kernel = problem.design.kernel()
    alpha = library.PUBLISHED_ALPHA if surrogate.alpha is None else surrogate.alpha
    fitted = library.fit_published(kernel.numpy(), problem.numbers, alpha, surrogate.seed)
    solution = _from_library(alpha, fitted)
    if problem.design is not None:
        assert solution.dual is not None
        solution = replace(solution, coef=problem.design.transposed_times(solution.dual))
    return replace(solution, probabilities=fitted.probabilities)


def _from_library(alpha: float, fitted: library.Fitted) -> Solution:
    dual, coef, intercept = fitted.dual, fitted.coef, fitted.intercept
    if dual.shape[1] == 1:
        dual, intercept = _two_sided(dual), _two_sided(intercept[None])[0]
        coef = None if coef is None else _two_sided(coef)
    return Solution(alpha, dual, coef, intercept)


# ---- ridge and gp ------------------------------------------------------------------------------


def _regression(surrogate: KernelSurrogate, problem: Problem) -> Solution:
    work = LeastSquares(
        problem.design,
        problem.kernel,
        problem.targets,
        problem.weights,
        ridge=surrogate.kind == "ridge",
    )
    alpha, scores = surrogate.alpha, None
    if alpha is None:
        grid = _grid(surrogate, problem)
        for value in grid[:1]:
            work.check(float(value))
        scores = work.scores(torch.from_numpy(grid)).numpy()
        alpha = _best(grid, scores)
    found = work.fit(float(alpha))
    return Solution(
        float(alpha),
        found.dual,
        found.coef,
        found.intercept,
        temperature=fit_temperature(found.left_out, problem.targets, problem.weights),
        scale=found.scale if surrogate.kind == "gp" else math.nan,
        scores=scores,
        regression=work if surrogate.kind == "gp" else None,
    )
