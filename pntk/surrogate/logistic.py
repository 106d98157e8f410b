"""Logistic regression on rows that are too many and too wide for a library's solver.

Shapes: n examples; k numbers a row; c columns: the classes, or 1 of two classes.

    L(W, b) = sum_i w_i loss(y_i, s_i phi_i W + b) + alpha / 2 |W|^2

is minimised by Newton's method, whose linear systems are solved by conjugate gradients. One product
with the Hessian is one pass over the rows. They are preconditioned by eigenvectors of the rows'
second moment: eigenvalues of tangent kernels fall over many orders, and plain gradients would take
thousands of passes. Both see the rows less their mean, which moves the intercept alone: tangent
kernels have few entries below 0, and the mean would pull at W and b at once.

Source: Nocedal, Wright (2006), Numerical Optimization, algorithm 7.1; the bound on the Hessian that
the preconditioner follows: Böhning (1992), https://doi.org/10.1007/BF00048682
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pntk.surrogate.design import Design

_SAMPLE = 2  # rows for each of the k directions of a preconditioner
_WHOLE = 1024  # width of rows up to which all eigenvectors are found
_RANK, _ITERATIONS = 256, 2  # eigenvectors of wider rows, and rounds that find them
_DECREASE = 1e-4  # of what the slope promises, that a step must bring
_HALVINGS = 30
_LEAST = 1e-12


@dataclass(frozen=True)
class Preconditioner:
    """Second moment of rows less their mean: M = V diag(values) V^T + rest (I - V V^T).

    Attributes:
        mean: float64 [k].
        values: float64 [r].
        vectors: V, float64 [k, r]; None where M is diagonal.
        rest: mean of the other k - r eigenvalues.
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor | None
    rest: float = 0.0

    def solve(self, right: Tensor, curvature: Tensor, alpha: float) -> Tensor:
        """Return (curvature_c M + alpha)^-1 R for each column of R [k, c]."""
        inverse = 1 / (self.values[:, None] * curvature + alpha)
        if self.vectors is None:
            return right * inverse
        others = 1 / (self.rest * curvature + alpha)
        return right * others + self.vectors @ ((inverse - others) * (self.vectors.T @ right))


def precondition(design: Design, seed: int) -> Preconditioner:
    """Return the second moment of rows, from a sample of them where they are many.

    Of wide rows only the largest eigenvalues are found, by subspace iteration: all of them would
    take longer than the fit.

    Source: Frangella, Tropp, Udell (2021), Randomized Nyström preconditioning, section 1.3,
    https://arxiv.org/abs/2110.02820
    """
    k = design.width
    some = design.sample(_SAMPLE * k, seed)
    share = torch.full((some.size, 1), 1 / some.size, dtype=torch.float64)
    mean = some.transposed_times(share)[:, 0]
    if k <= _WHOLE:
        values, vectors = torch.linalg.eigh(some.gram(share[:, 0]) - torch.outer(mean, mean))
        return Preconditioner(mean, values.clamp(min=0), vectors)

    def moment(basis: Tensor) -> Tensor:
        product = some.both(basis, lambda _, forward: forward / some.size)
        return product - torch.outer(mean, mean @ basis)

    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(k, _RANK, generator=generator, dtype=torch.float64)
    for _ in range(_ITERATIONS):
        basis = moment(torch.linalg.qr(basis).Q)
    basis = torch.linalg.qr(basis).Q
    values, rotation = torch.linalg.eigh(basis.T @ moment(basis))
    values = values.clamp(min=0)
    trace = some.squared_norms() / some.size - float(mean.square().sum())
    rest = max(0.0, trace - float(values.sum())) / (k - _RANK)
    return Preconditioner(mean, values, basis @ rotation, rest)


@dataclass(frozen=True)
class Fit:
    """A minimum.

    Attributes:
        coef: W, float64 [k, c].
        intercept: b, float64 [c].
        logits: s Phi W + b, float64 [n, c].
        stationarity: largest |gradient with respect to a column of W| / alpha, by which the sum of
            contributions misses a logit of a row of norm 1.
        iterations: Newton steps.
        passes: over the rows.
    """

    coef: Tensor
    intercept: Tensor
    logits: Tensor
    stationarity: float
    iterations: int
    passes: int


def probabilities(logits: Tensor) -> Tensor:
    """Return p [n, c], or that of the second class of two [n, 1]."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log p of the class of each example [n]."""
    if logits.shape[1] == 1:
        sign = 1 - 2 * targets[:, 0]
        return torch.nn.functional.softplus(sign * logits[:, 0])
    return -(logits.log_softmax(1) * targets).sum(1)


class Logistic:
    """One problem: rows, targets and weights; several alphas and masks are solved with it.

    Args:
        design: rows.
        targets: one-hot, float64 [n, c]; of two classes only the second column [n, 1].
        weights: of each loss, float64 [n]; 0 leaves an example out.
        preconditioner: of the rows.
        tol: ``stationarity`` at which to stop.
        max_iter: Newton steps at most.
    """

    def __init__(
        self,
        design: Design,
        targets: Tensor,
        weights: Tensor,
        preconditioner: Preconditioner,
        tol: float,
        max_iter: int,
    ) -> None:
        self._design = design
        self._targets = targets
        self._weights = weights[:, None]
        self._preconditioner = preconditioner
        self._mean = preconditioner.mean
        self._tol = tol
        self._max_iter = max_iter
        self._passes = 0

    def fit(self, alpha: float, start: Fit | None = None) -> Fit:
        """Return the minimum, from that of another alpha where one is given."""
        columns = self._targets.shape[1]
        if start is None:
            coef = torch.zeros(self._design.width, columns, dtype=torch.float64)
            intercept = torch.zeros(columns, dtype=torch.float64)
        else:
            coef, intercept = start.coef.clone(), start.intercept + self._mean @ start.coef
        self._passes, first = 0, 0.0
        for iteration in range(self._max_iter + 1):
            logits, slope, slope_b = self._gradient(coef, intercept, alpha)
            worst = torch.cat([slope, slope_b[None]]).norm(dim=0).max()
            stationarity = float(slope.norm(dim=0).max()) / alpha
            size = math.sqrt(float(slope.square().sum() + slope_b.square().sum()))
            first = first or size
            if float(worst) <= self._tol * alpha or iteration == self._max_iter:
                break
            goal = max(min(0.3, math.sqrt(size / first)) * size, 0.2 * self._tol * alpha)
            step, step_b, along = self._newton(logits, slope, slope_b, alpha, goal)
            downhill = float((slope * step).sum() + (slope_b * step_b).sum())
            length = self._line_search(logits, along, coef, step, alpha, downhill)
            if not length:  # the loss is at its rounding
                break
            coef += length * step
            intercept += length * step_b
        intercept = intercept - self._mean @ coef
        return Fit(coef, intercept, logits, stationarity, iteration, self._passes)

    def _gradient(
        self, coef: Tensor, intercept: Tensor, alpha: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.empty_like(self._targets)
        residual_sum = torch.zeros_like(intercept)
        shift = intercept - self._mean @ coef

        def residuals(part: slice, product: Tensor) -> Tensor:
            logits[part] = product + shift
            left = self._weights[part] * (probabilities(logits[part]) - self._targets[part])
            residual_sum.add_(left.sum(0))
            return left

        slope = self._design.both(coef, residuals).add_(coef, alpha=alpha)
        slope -= torch.outer(self._mean, residual_sum)
        self._passes += 1
        return logits, slope, residual_sum

    def _newton(
        self, logits: Tensor, slope: Tensor, slope_b: Tensor, alpha: float, goal: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Solve H d = -g by preconditioned conjugate gradients; also s Phi d + d_b [n, c]."""
        p = probabilities(logits)
        curvature = (self._weights * p * (1 - p)).sum(0).clamp(min=_LEAST)
        step, step_b = torch.zeros_like(slope), torch.zeros_like(slope_b)
        along = torch.zeros_like(logits)
        left, left_b = -slope, -slope_b
        z, z_b = self._preconditioner.solve(left, curvature, alpha), left_b / curvature
        d, d_b = z.clone(), z_b.clone()
        rho = float((left * z).sum() + (left_b * z_b).sum())
        for _ in range(10 * self._design.width):
            product = torch.empty_like(logits)
            sums = torch.zeros_like(slope_b)
            shift = d_b - self._mean @ d

            def curved(
                part: slice,
                forward: Tensor,
                product: Tensor = product,
                sums: Tensor = sums,
                shift: Tensor = shift,
            ) -> Tensor:
                product[part] = t = forward + shift
                q = p[part]
                u = q * (1 - q) * t if q.shape[1] == 1 else q * (t - (q * t).sum(1, keepdim=True))
                u = self._weights[part] * u
                sums.add_(u.sum(0))
                return u

            h = self._design.both(d, curved).add_(d, alpha=alpha)
            h -= torch.outer(self._mean, sums)
            self._passes += 1
            bend = float((d * h).sum() + (d_b * sums).sum())
            if bend <= 0:  # all that is left is the common shift of b, or rounding
                break
            length = rho / bend
            step.add_(d, alpha=length)
            step_b.add_(d_b, alpha=length)
            along.add_(product, alpha=length)
            left.sub_(h, alpha=length)
            left_b = left_b - length * sums
            if float(left.square().sum() + left_b.square().sum()) <= goal**2:
                break
            z, z_b = self._preconditioner.solve(left, curvature, alpha), left_b / curvature
            rho, old = float((left * z).sum() + (left_b * z_b).sum()), rho
            d, d_b = z + (rho / old) * d, z_b + (rho / old) * d_b
        return step, step_b, along

    def _line_search(
        self,
        logits: Tensor,
        along: Tensor,
        coef: Tensor,
        step: Tensor,
        alpha: float,
        downhill: float,
    ) -> float:
        """Return how much of a step brings the loss down, or 0; no pass over the rows."""
        squares = [float((a * b).sum()) for a, b in ((coef, step), (step, step))]

        def value(length: float) -> float:
            loss = losses(logits + length * along, self._targets) @ self._weights[:, 0]
            return float(loss) + alpha * (length * squares[0] + length**2 / 2 * squares[1])

        before, length = value(0.0), 1.0
        slack = 1e-15 * abs(before)
        for _ in range(_HALVINGS):
            if value(length) <= before + _DECREASE * length * downhill + slack:
                return length
            length /= 2
        return 0.0
