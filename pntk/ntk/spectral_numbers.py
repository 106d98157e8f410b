"""What the eigenvalues of a kernel say: conditioning and effective numbers of dimensions.

Shapes: n samples; r eigenvalues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.ntk.sources import EPS


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues lambda_1 >= lambda_2 >= ... of a kernel [n, n], or the first of them.

    Attributes:
        values: float64 [r]. Of rows [n, k] the n - k that are 0 by construction are left out.
        size: n.
        trace: sum of all eigenvalues.
        squares: sum of the squares of all eigenvalues; None where only some are known.
        floor: what is up to this is zero but for rounding.
        complete: whether all are there, but those that are 0 by construction.
    """

    values: Tensor
    size: int
    trace: float
    squares: float | None
    floor: float
    complete: bool

    @property
    def largest(self) -> float:
        """lambda_1."""
        return float(self.values[0])

    @property
    def smallest(self) -> float:
        """lambda_n, which is 0 where rows are narrower than n.

        Raises:
            ConfigError: only the first eigenvalues are known.
        """
        self._require_all("the smallest eigenvalue")
        return 0.0 if len(self.values) < self.size else float(self.values[-1])

    @property
    def rank(self) -> int:
        """Number of eigenvalues above ``floor``.

        Raises:
            ConfigError: only the first eigenvalues are known.
        """
        self._require_all("the rank")
        return int((self.values > self.floor).sum())

    @property
    def condition_number(self) -> float:
        """lambda_1 / lambda_n; infinite where lambda_n is zero but for rounding, or negative.

        Raises:
            ConfigError: only the first eigenvalues are known.
        """
        self._require_all("the condition number")
        if len(self.values) < self.size:
            return math.inf
        return condition_number(self.values, self.floor)

    @property
    def effective_rank(self) -> float:
        """See :func:`effective_rank`.

        Raises:
            ConfigError: only the first eigenvalues are known.
        """
        self._require_all("the effective rank")
        return effective_rank(self.values)

    @property
    def participation_ratio(self) -> float:
        """(sum lambda)^2 / sum lambda^2 of all eigenvalues, 1 to n.

        Raises:
            ConfigError: only the first eigenvalues are known, and not the sum of all squares.
        """
        if self.squares is None:
            self._require_all("the participation ratio")
            return participation_ratio(self.values)
        return self.trace**2 / self.squares if self.squares else math.nan

    def share(self, num: int) -> float:
        """Return what the first ``num`` eigenvalues hold of the trace."""
        return float(self.values[:num].sum()) / self.trace if self.trace else math.nan

    def summary(self) -> dict[str, Any]:
        """Return everything as plain values, None for what the first eigenvalues do not tell."""
        whole = self.complete
        known = whole or self.squares is not None
        return {
            "samples": self.size,
            "eigenvalues": len(self.values),
            "trace": self.trace,
            "largest": self.largest,
            "smallest": self.smallest if whole else None,
            "share_of_first": self.share(1),
            "share_of_ten": self.share(10) if len(self.values) >= 10 else None,
            "rank": self.rank if whole else None,
            "condition_number": self.condition_number if whole else None,
            "effective_rank": self.effective_rank if whole else None,
            "participation_ratio": self.participation_ratio if known else None,
        }

    def _require_all(self, what: str) -> None:
        if not self.complete:
            raise ConfigError(
                f"{len(self.values):,} of {self.size:,} eigenvalues are known; {what} takes all: "
                "use num=None"
            )


def condition_number(values: Tensor, floor: float | None = None) -> float:
    """Return lambda_max / lambda_min, and infinity where lambda_min is at most ``floor``.

    A kernel has no negative eigenvalues, so one that is slightly negative is a rounded zero.

    Args:
        values: [r], all eigenvalues, in any order.
        floor: what counts as zero; None for r times the rounding of float64 times lambda_max.

    >>> [condition_number(torch.tensor([8.0, 4.0, last])) for last in (2.0, 1e-17, -1e-17)]
    [4.0, inf, inf]
    """
    values = _checked(values)
    most, least = float(values.max()), float(values.min())
    limit = len(values) * EPS * most if floor is None else floor
    return most / least if least > max(limit, 0.0) else math.inf


def effective_rank(values: Tensor) -> float:
    """Return exp(-sum_i p_i log p_i) with p_i = lambda_i / sum_j lambda_j, from 1 to r.

    Negative eigenvalues count as zeros; NaN where there are no others.

    Args:
        values: [r], all eigenvalues, in any order.

    Source: Roy, Vetterli (2007), The effective rank, of the kernel's singular values, which are its
    eigenvalues, https://www.eurasip.org/Proceedings/Eusipco/Eusipco2007/Papers/a5p-h05.pdf

    >>> round(effective_rank(torch.tensor([5.0, 5.0, 5.0, 0.0])), 12)
    3.0
    """
    positive = _checked(values).clamp(min=0)
    total = positive.sum()
    if not bool(total > 0):
        return math.nan
    shares = positive / total
    return math.exp(float(-torch.special.xlogy(shares, shares).sum()))


def participation_ratio(values: Tensor) -> float:
    """Return (sum_i lambda_i)^2 / sum_i lambda_i^2, from 1 to r; NaN where all are zero.

    Args:
        values: [r], all eigenvalues, in any order.

    >>> participation_ratio(torch.tensor([5.0, 5.0, 0.0])), participation_ratio(torch.tensor([7.0]))
    (2.0, 1.0)
    """
    values = _checked(values)
    scaled = values / values.abs().max()  # squares that neither vanish nor overflow
    squares = float(scaled.square().sum())
    return float(scaled.sum()) ** 2 / squares if squares > 0 else math.nan


def _checked(values: Tensor) -> Tensor:
    values = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if values.dim() != 1 or not len(values) or not bool(values.isfinite().all()):
        raise ConfigError(
            f"eigenvalues have shape {tuple(values.shape)} with {int((~values.isfinite()).sum())} "
            "that are NaN or infinite; expected finite numbers [r]: use eigenvalues(kernel)"
        )
    return values
