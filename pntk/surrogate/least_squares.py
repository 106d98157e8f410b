"""Regression on one-hot targets: ridge, and the posterior of a Gaussian process.

Shapes: n examples; k numbers a row; c targets; a alphas; r = min(n, k) eigenvalues.

Both minimise sum_i w_i |y_i - f(x_i)|^2 + alpha |W|^2. Ridge has an intercept that is not
penalised; the Gaussian process has the mean of the targets as prior mean. One eigendecomposition,
of Phi^T Phi [k, k] or K [n, n], whichever is smaller, serves all alphas and the leave-one-out
outputs.

Source: Rasmussen, Williams (2006), Gaussian Processes for Machine Learning, equations 2.25, 2.26,
2.30 and 5.12; leave-one-out of ridge: Allen (1974), https://doi.org/10.1080/00401706.1974.10489157
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.surrogate.design import Design

_RANK = 1e-10  # of the largest eigenvalue: what sums of float32 products tell from zero


@dataclass(frozen=True)
class Regression:
    """A fit.

    Attributes:
        alpha: its regularisation.
        coef: W, float64 [k, c]; None of a kernel matrix.
        dual: beta, float64 [n, c], where W = Phi^T beta; None where alpha is 0.
        intercept: b, float64 [c].
        left_out: outputs for each example of the fit to all others, float64 [n, c].
        scale: factor of the kernel that is most likely, of a Gaussian process.
    """

    alpha: float
    coef: Tensor | None
    dual: Tensor | None
    intercept: Tensor
    left_out: Tensor
    scale: float


class LeastSquares:
    """One problem; several alphas are solved with it.

    Args:
        design: rows; or None with ``kernel``.
        kernel: K, float64 [n, n]; made of the rows where n <= k.
        targets: Y, float64 [n, c].
        weights: w, float64 [n].
        ridge: whether there is an intercept that is not penalised.
    """

    def __init__(
        self,
        design: Design | None,
        kernel: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        ridge: bool,
    ) -> None:
        self.design = design
        self.weights = weights
        self.root = weights.sqrt()
        self.targets = targets
        self.ridge = ridge
        self.prior = weights @ targets / weights.sum()
        self.centred = targets - self.prior
        if design is not None and design.size <= design.width:
            kernel = design.kernel()
        self.primal = kernel is None
        if kernel is None:
            assert design is not None
            self._prepare_rows(design)
        else:
            self._prepare_kernel(kernel)

    def _prepare_rows(self, design: Design) -> None:
        moment = design.gram(self.weights)
        self.mean = torch.zeros(design.width, dtype=torch.float64)
        if self.ridge:
            total = self.weights.sum()
            self.mean = design.transposed_times(self.weights[:, None])[:, 0] / total
            moment.addr_(self.mean, self.mean, alpha=-float(total))
        right = design.transposed_times(self.weights[:, None] * self.centred)
        values, self.vectors = torch.linalg.eigh(moment)
        self.values = values.clamp(min=0)
        self.right = self.vectors.T @ right  # [k, c]

    def _prepare_kernel(self, kernel: Tensor) -> None:
        self.kernel_mean = self.weights @ kernel / self.weights.sum()  # [n]
        if self.ridge:
            grand = self.weights @ self.kernel_mean / self.weights.sum()
            kernel = kernel - self.kernel_mean - self.kernel_mean[:, None] + grand
        values, self.vectors = torch.linalg.eigh(self.root[:, None] * kernel * self.root)
        self.values = values.clamp(min=0)
        self.right = self.vectors.T @ (self.root[:, None] * self.centred)  # [n, c]

    @property
    def rank(self) -> int:
        """Number of eigenvalues that are not zero."""
        return int((self.values > _RANK * self.values[-1]).sum())

    def check(self, alpha: float) -> None:
        """Refuse alpha 0 where the solution is not unique.

        Raises:
            ConfigError: singular; with n, k and the remedy.
        """
        if alpha == 0 and (not self.primal or self.rank < len(self.values)):
            size = f"{len(self.targets):,} examples"
            width = "" if self.design is None else f" and rows of {self.design.width:,} numbers"
            raise ConfigError(
                f"alpha is 0, with {size}{width}: the system is singular and has no unique "
                "solution; give alpha > 0, or None to choose it"
            )

    # ---- choice of alpha -----------------------------------------------------------------------

    def scores(self, alphas: Tensor) -> Tensor:
        """Return a score for each alpha [a]; the largest is best.

        Ridge: minus the mean squared leave-one-out error. Gaussian process: the log marginal
        likelihood at the most likely scale of the kernel.
        """
        if not self.ridge:
            return torch.stack([self._log_likelihood(float(alpha)) for alpha in alphas])
        hats = self._hats(alphas)
        errors = []
        for number, alpha in enumerate(alphas):
            residual = self.targets - self._outputs(float(alpha))
            missed = residual / (1 - hats[:, number, None]).clamp(min=1e-12)
            errors.append(-(self.weights @ missed.square()).sum() / self.weights.sum())
        return torch.stack(errors)

    def _log_likelihood(self, alpha: float) -> Tensor:
        n, c = self.targets.shape
        zeros = n - len(self.values)
        determinant = (self.values + alpha).log().sum() + zeros * math.log(alpha)
        return -c / 2 * (determinant + n * math.log(self._scale(alpha)))

    def _scale(self, alpha: float) -> float:
        """Return tr Y^T (K + alpha / w)^-1 Y / (n c), for centred Y."""
        if self.primal:
            whole = (self.weights @ self.centred.square()).sum()
            quadratic = whole - (self.right.square() / (self.values[:, None] + alpha)).sum()
            quadratic = quadratic / alpha
        else:
            quadratic = (self.right.square() / (self.values[:, None] + alpha)).sum()
        return float(quadratic) / self.targets.numel()

    # ---- the fit -------------------------------------------------------------------------------

    def fit(self, alpha: float) -> Regression:
        """Return the fit with one alpha.

        Raises:
            ConfigError: alpha is 0 and the system singular.
        """
        self.check(alpha)
        outputs = self._outputs(alpha)
        hat = self._hats(torch.tensor([alpha], dtype=torch.float64))
        left_out = self.targets - (self.targets - outputs) / (1 - hat).clamp(min=1e-12)
        coef: Tensor | None
        dual: Tensor | None
        if self.primal:
            coef = self._solve(alpha)
            intercept = self.prior - self.mean @ coef
            dual = self.weights[:, None] * (self.targets - outputs) / alpha if alpha > 0 else None
        else:
            dual = self.root[:, None] * self._solve(alpha)
            shift = self.kernel_mean @ dual if self.ridge else 0.0
            intercept = self.prior - shift
            coef = None if self.design is None else self.design.transposed_times(dual)
        scale = self._scale(alpha) if alpha > 0 else math.nan
        return Regression(alpha, coef, dual, intercept, left_out, scale)

    def _solve(self, alpha: float) -> Tensor:
        return self.vectors @ (self.right / (self.values[:, None] + alpha))

    def _outputs(self, alpha: float) -> Tensor:
        """f of all examples, float64 [n, c]."""
        if self.primal:
            assert self.design is not None
            coef = self._solve(alpha)
            return self.prior - self.mean @ coef + self.design.times(coef)
        shares = self.right * (self.values / (self.values + alpha))[:, None]
        return self.prior + self.vectors @ shares / self.root[:, None]

    def _hats(self, alphas: Tensor) -> Tensor:
        """How much each example's target moves its own output, float64 [n, a]."""
        inverse = 1 / (self.values[:, None] + alphas)  # [r, a]
        if self.primal:
            parts = [rotated.square().double() @ inverse for rotated in self._rotated()]
            hats = self.weights[:, None] * torch.cat(parts)
        else:
            hats = self.vectors.square() @ (self.values[:, None] * inverse)
        return hats + (self.weights / self.weights.sum())[:, None] if self.ridge else hats

    def _rotated(self) -> Iterator[Tensor]:
        """Rows in the eigenvectors' coordinates, [b, k] in their own type."""
        assert self.design is not None
        dtype = self.design.rows.dtype
        vectors, offset = self.vectors.to(dtype), (self.mean @ self.vectors).to(dtype)
        for part, block in self.design.blocks(4096):
            yield (block @ vectors) * self.design.scale[part, None].to(dtype) - offset

    def variance(
        self, alpha: float, rows: Tensor | None, cross: Tensor | None, own: Tensor | None
    ) -> Tensor:
        """Return k(x, x) - k(x, X) (K + alpha / w)^-1 k(X, x), float64 [m], of a Gaussian process.

        Args:
            alpha: regularisation.
            rows: scaled rows [m, k] where n > k; else None.
            cross: K(x, X) [m, n] where n <= k; else ignored.
            own: k(x, x) [m], likewise.
        """
        if self.primal:
            assert rows is not None
            return alpha * (rows @ self.vectors).square() @ (1 / (self.values + alpha))
        assert cross is not None and own is not None
        rotated = (cross * self.root) @ self.vectors
        return (own - rotated.square() @ (1 / (self.values + alpha))).clamp(min=0)
