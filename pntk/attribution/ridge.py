"""Solve with the Gram matrix of rows: Phi^T Phi + lambda I, and the choice of lambda.

Shapes: n training samples; k width of a row; b rows of a block. G = Phi^T Phi [k, k].
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from pntk.errors import ConfigError, NonFiniteError
from pntk.rows import Rows

log = logging.getLogger("pntk")

SAFE_CONDITION = 1e6  # with it, float32 products keep about three digits in the worst case
SAMPLES_EACH = 10  # training samples for each direction that is fitted; see docs/attribution.md
_SINGULAR = 1e-13  # of squared pivots: below, rounding decides
_STRIP = 512

Ridge = float | str | None


def check_ridge(ridge: Ridge) -> Ridge:
    """Return a ridge that is None, "auto", or a number of at least 0.

    Raises:
        ConfigError: it is something else.
    """
    if ridge is None or ridge == "auto":
        return ridge
    number = isinstance(ridge, (int, float)) and not isinstance(ridge, bool)
    if not number or not 0 <= float(ridge) < math.inf:
        raise ConfigError(f"ridge is {ridge!r}; expected a number of at least 0, 'auto', or None")
    return float(ridge)


def check_determined(n: int, k: int, ridge: Ridge) -> None:
    """Refuse to invert a Gram matrix that n rows cannot make invertible.

    Raises:
        ConfigError: k > n without a ridge.
    """
    if k > n and not ridge:
        raise ConfigError(
            f"rows are {k:,} wide and there are {n:,} of them, so that Phi^T Phi cannot be "
            f"inverted; pass ridge='auto' or a number, or featurize with proj_dim of at most {n:,}"
        )


def gram(rows: Rows, block: int, device: torch.device | str = "cpu") -> Tensor:
    """Return G = Phi^T Phi, float64 [k, k]; products and sums in float64.

    Args:
        rows: [n, k].
        block: rows that are read at a time.
        device: where it is summed.

    Raises:
        NonFiniteError: naming a row that holds NaN or infinity.
    """
    n, k = rows.shape
    total = torch.zeros(k, k, dtype=torch.float64, device=device)
    for start in range(0, n, block):
        x = rows.block(start, start + block).to(device).double()  # [b, k]
        if not bool(torch.isfinite(x.sum())):
            bad = ~x.isfinite().all(1)
            if bool(bad.any()):
                raise NonFiniteError(
                    f"row {start + int(bad.int().argmax())} of the training rows holds NaN or "
                    "infinity; featurize with on_nonfinite='skip', or leave it out"
                )
        for i in range(0, k, _STRIP):  # the upper half
            total[i : i + _STRIP, i:].addmm_(x[:, i : i + _STRIP].T, x[:, i:])
    for i in range(0, k, _STRIP):
        stop = i + _STRIP
        square = total[i:stop, i:stop]
        square.copy_(torch.triu(square) + torch.triu(square, 1).T)
        total[stop:, i:stop] = total[i:stop, stop:].T
    return total


def choose_ridge(eigenvalues: Tensor, n: int) -> float:
    """Return lambda by the rule of ``ridge="auto"``: the smallest with which both hold.

    - The condition number of G + lambda I is at most 10^6.
    - The directions that are fitted, sum_i s_i / (s_i + lambda), s the eigenvalues, are at most
      n / 10: with many more of them the inverse is that of noise (docs/attribution.md).

    Args:
        eigenvalues: of G, or of G / n, float [k], in any order.
        n: number of training samples.

    Raises:
        ConfigError: all eigenvalues are zero.

    >>> choose_ridge(torch.tensor([2.0, 1.0]), n=20)
    0.0
    >>> round(choose_ridge(torch.tensor([3.0, 3.0]), n=10), 6)  # 2 * 3 / (3 + 3) = 1 = n / 10
    3.0
    """
    s = eigenvalues.double().clamp(min=0)
    most = float(s.max())
    if most <= 0:
        raise ConfigError("all training rows are zero; expected gradients that are not")
    least = float(s.min())
    low = max(0.0, (most - SAFE_CONDITION * least) / (SAFE_CONDITION - 1))

    def fitted(ridge: float) -> float:
        return float((s / (s + ridge)).sum()) if ridge else float((s > 0).sum())

    if fitted(low) * SAMPLES_EACH <= n:
        return low
    high = most * len(s) * SAMPLES_EACH  # with which it is below 1 / 10
    low = max(low, most * 1e-15)
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fitted(middle) * SAMPLES_EACH > n else (low, middle)
    return high


class Solver:
    """(G + lambda I)^-1, by Cholesky in float64.

    Args:
        matrix: G [k, k], or G / n, on the device to solve on; it is overwritten.
        n: number of training samples.
        ridge: lambda, "auto" for :func:`choose_ridge`, or None for 0.

    Raises:
        ConfigError: it is singular.

    Attributes:
        ridge: lambda.
    """

    def __init__(self, matrix: Tensor, n: int, ridge: Ridge) -> None:
        k = len(matrix)
        check_determined(n, k, ridge)
        if ridge == "auto":
            self.ridge = choose_ridge(torch.linalg.eigvalsh(matrix), n)
            log.info("ridge='auto' chose %.6g for rows [%d, %d]", self.ridge, n, k)
        else:
            self.ridge = float(ridge or 0.0)
        matrix.diagonal().add_(self.ridge)
        self._factor, info = torch.linalg.cholesky_ex(matrix)
        pivots = self._factor.diagonal().square()
        if int(info) or float(pivots.min()) < _SINGULAR * float(pivots.max()):
            raise ConfigError(
                f"Phi^T Phi + {self.ridge:g} I of rows [{n:,}, {k:,}] is singular to rounding "
                "(rows that repeat, or span fewer directions than they are wide); pass "
                "ridge='auto', or a larger number"
            )

    def __call__(self, rows: Tensor) -> Tensor:
        """Return (G + lambda I)^-1 phi for each row of [b, k], float64 [b, k] where G is."""
        return torch.cholesky_solve(self._here(rows).T, self._factor).T

    def squared(self, rows: Tensor) -> Tensor:
        """Return phi^T (G + lambda I)^-1 phi for each row of [b, k], float64 [b] where G is."""
        half = torch.linalg.solve_triangular(self._factor, self._here(rows).T, upper=False)
        return half.square_().sum(0)

    def _here(self, rows: Tensor) -> Tensor:
        return rows.to(self._factor.device).double()
