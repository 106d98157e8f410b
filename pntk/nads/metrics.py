"""How even a spectrum is: 1/d each for an isotropic one, all in one direction for the opposite.

Shapes: r singular values; p_i = s_i^2 / sum_j s_j^2 is the share of variance of direction i.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pntk.errors import DataError


class Isotropy(NamedTuple):
    """Measures of the shares of variance p [r].

    Attributes:
        entropy: -sum_i p_i log p_i, 0 to log r, in nats.
        kl_to_uniform: sum_i p_i log(r p_i) = log r - entropy, 0 for an isotropic spectrum.
        participation_ratio: 1 / sum_i p_i^2, 1 to r: directions that matter.
        effective_rank: exp(entropy), 1 to r.
        gini: sum_i (2 i - r - 1) p_i / r with p ascending, 0 for an isotropic spectrum,
            1 - 1 / r for one direction.
        top_share: the largest p_i.
    """

    entropy: float
    kl_to_uniform: float
    participation_ratio: float
    effective_rank: float
    gini: float
    top_share: float


def isotropy(singular_values: Any) -> Isotropy:
    """Measure how even a spectrum is.

    Args:
        singular_values: [r], at least 0, in any order.

    Raises:
        DataError: not such numbers, or all of them zero.

    Source:
        Roy, Vetterli (2007), The effective rank, here that of the covariance, whose singular values
        are s_i^2 / n; Gao, Trautmann, Yu et al. (2017), A theory of multineuronal dimensionality,
        https://doi.org/10.1101/214262 (participation ratio).

    Example:
        >>> isotropy([1.0, 1.0, 1.0, 1.0]).participation_ratio
        4.0
        >>> isotropy([1.0, 0.0]).gini
        0.5
    """
    values = np.asarray(getattr(singular_values, "cpu", lambda: singular_values)(), dtype=float)
    if values.ndim != 1 or not len(values):
        raise DataError(f"singular values have shape {values.shape}; expected [r], r at least 1")
    if not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise DataError("singular values must be finite, at least 0, and not all zero")
    share = np.sort((values / values.max()) ** 2)
    share /= share.sum()
    r = len(share)
    some = share[share > 0]
    entropy = float(-(some * np.log(some)).sum())
    weights = 2 * np.arange(1, r + 1) - r - 1
    return Isotropy(
        entropy=entropy,
        kl_to_uniform=max(0.0, float(np.log(r)) - entropy),
        participation_ratio=float(1 / (share**2).sum()),
        effective_rank=float(np.exp(entropy)),
        gini=float((weights * share).sum() / r),
        top_share=float(share[-1]),
    )
