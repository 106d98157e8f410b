"""Canonical correlations of two representations: CCA, SVCCA and PWCCA.

Shapes: n samples; d, e neurons of x and of y; r = min(d, e).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pntk.errors import ConfigError, DataError, PntkWarning
from pntk.representation.inputs import EPS, centred_pair, narrow, rounding

REMEDIES = (
    "use svcca (which drops weak directions), cka (which needs no more samples than neurons), "
    "ridge=..., or for maps neurons='filter' or a smaller size="
)


class CCA(NamedTuple):
    """Canonical directions, strongest first.

    Attributes:
        x_weights: A [d, r], such that the columns of (x - mean) A are orthonormal.
        y_weights: B [e, r], likewise.
        correlations: rho [r], from 1 to 0: the products of the columns of x A and y B.
    """

    x_weights: Tensor
    y_weights: Tensor
    correlations: Tensor


def cca_by_svd(x: Any, y: Any, *, ridge: float = 0.0) -> CCA:
    """Return the canonical correlations, found by singular values alone.

    With centred X = U S V^T and Y = P T Q^T, they are the singular values of U^T P.

    Args:
        x: [n, d], tensor or array.
        y: [n, e].
        ridge: lambda, added to the variance of each neuron: X^T X / n + lambda I takes the place of
            the covariance, and n may be anything. 0 for none.

    Raises:
        ConfigError: a negative ridge.
        DataError: not matrices of the same samples; without ridge, fewer than d + 1 samples, or
            neurons that are combinations of others.

    Source: Press (2011), Canonical correlation clarified by singular value decomposition,
    http://numerical.recipes/whp/notes/CanonCorrBySVD.pdf

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [2.0, 5.0]])
    >>> [round(float(rho), 12) for rho in cca_by_svd(x, x @ torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    ...     .correlations]
    [1.0, 1.0]
    """
    return _correlate(x, y, _svd_basis, ridge)


def cca_by_qr(x: Any, y: Any, *, ridge: float = 0.0) -> CCA:
    """Return the canonical correlations, with orthonormal bases by QR: faster for n far above d.

    Args and errors are those of :func:`cca_by_svd`.

    Source: Bjorck, Golub (1973), Numerical methods for computing angles between linear subspaces,
    https://doi.org/10.1090/S0025-5718-1973-0348991-3
    """
    return _correlate(x, y, _qr_basis, ridge)


def cca(x: Any, y: Any, *, method: str = "svd", average: str = "mean", ridge: float = 0.0) -> float:
    """Return the mean canonical correlation, sum_i rho_i / r; 0 to 1.

    It does not change under invertible linear maps of either side. Of independent representations
    it is far above 0 unless n is far above d + e; from n <= d + e on, some rho are 1 whatever the
    data.

    Args:
        x: [n, d].
        y: [n, e].
        method: ``svd`` or ``qr``.
        average: ``mean`` of rho, or ``squared`` for the mean of rho^2, R^2_CCA.
        ridge: as in :func:`cca_by_svd`.

    Raises:
        ConfigError: unknown method or average, or a negative ridge.
        DataError: as in :func:`cca_by_svd`.

    Source: Kornblith, Norouzi, Lee, Hinton (2019), table 1, https://arxiv.org/abs/1905.00414
    """
    return _averaged(_solve(x, y, method, ridge).correlations, average)


def svcca(
    x: Any,
    y: Any,
    *,
    threshold: float = 0.99,
    dims: int | None = None,
    method: str = "svd",
    average: str = "mean",
) -> float:
    """Return the mean canonical correlation of the strongest principal directions of each side.

    Of the centred representations, the fewest directions are kept whose squared singular values
    hold ``threshold`` of their sum, the variance. It does not change under rotation, shift and
    isotropic scaling.

    Args:
        x: [n, d].
        y: [n, e].
        threshold: share of the variance to keep, above 0 and at most 1.
        dims: how many directions to keep, in place of a share.
        method: ``svd`` or ``qr``, as in :func:`cca`.
        average: as in :func:`cca`.

    Raises:
        ConfigError: unknown method or average, a threshold outside (0, 1], or more ``dims`` than
            the representations have.
        DataError: not matrices of the same samples.

    Source: Raghu, Gilmer, Yosinski, Sohl-Dickstein (2017), section 2,
    https://arxiv.org/abs/1706.05806
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; expected a share above 0 and at most 1")
    first, second = centred_pair(x, y)
    reduced = (
        _strongest(first, rounding(x), "x", threshold, dims),
        _strongest(second, rounding(y), "y", threshold, dims),
    )
    return _averaged(_solve(*reduced, method, 0.0).correlations, average)


def pwcca(
    x: Any, y: Any, *, weights_from: str = "x", method: str = "svd", ridge: float = 0.0
) -> float:
    """Return sum_i alpha_i rho_i / sum_i alpha_i, canonical correlations by their share in a side.

    With canonical variates h_i [n] and centred neurons x_j [n] of that side,
    alpha_i = sum_j |<h_i, x_j>|. It is not symmetric: ``weights_from="x"`` asks how much of x is
    found in y.

    Args:
        x: [n, d].
        y: [n, e].
        weights_from: ``x``, ``y``, or ``fewer`` for the side of fewer neurons, x where equal.
        method: as in :func:`cca`.
        ridge: as in :func:`cca_by_svd`.

    Raises:
        ConfigError: unknown side or method, or a negative ridge.
        DataError: as in :func:`cca_by_svd`.

    Source: Morcos, Raghu, Bengio (2018), section 2, https://arxiv.org/abs/1806.05759
    """
    if weights_from not in ("x", "y", "fewer"):
        raise ConfigError(f"weights_from is {weights_from!r}; expected 'x', 'y' or 'fewer'")
    first, second = centred_pair(x, y)
    found = _solve(x, y, method, ridge)
    side, weights = first, found.x_weights
    fewer = second.shape[1] < first.shape[1]
    if weights_from == "y" or (weights_from == "fewer" and fewer):
        side, weights = second, found.y_weights
    alpha = ((side @ weights).T @ side).abs().sum(1)
    return float(alpha @ found.correlations / alpha.sum())


# ---- private -----------------------------------------------------------------------------------

_Map = Callable[[Tensor], Tensor]
_Basis = Callable[[Tensor], tuple[Tensor, Tensor, _Map]]


def _solve(x: Any, y: Any, method: str, ridge: float) -> CCA:
    if method not in ("svd", "qr"):
        raise ConfigError(f"method is {method!r}; expected 'svd' or 'qr'")
    return (cca_by_svd if method == "svd" else cca_by_qr)(x, y, ridge=ridge)


def _averaged(correlations: Tensor, average: str) -> float:
    if average not in ("mean", "squared"):
        raise ConfigError(f"average is {average!r}; expected 'mean' or 'squared'")
    return float((correlations if average == "mean" else correlations.square()).mean())


def _checked(x: Any, y: Any, ridge: float) -> tuple[Tensor, Tensor]:
    if not 0 <= ridge < math.inf:
        raise ConfigError(f"ridge is {ridge}; expected a variance, 0 or more")
    first, second = centred_pair(x, y)
    if ridge:
        return first, second
    n, d, e = len(first), first.shape[1], second.shape[1]
    check_samples(n, d, e)
    if n <= d + e:
        warnings.warn(
            f"x and y have {d:,} and {e:,} neurons and {n:,} samples, so at least {d + e + 1 - n:,}"
            f" of {min(d, e):,} canonical correlations are 1 whatever the data; expected more than "
            f"{d + e:,} samples",
            PntkWarning,
            stacklevel=2,
        )
    return first, second


def check_samples(n: int, d: int, e: int) -> None:
    """Refuse fewer samples than CCA without ridge needs.

    Raises:
        DataError: says how many it needs.
    """
    for name, neurons in (("x", d), ("y", e)):
        if n <= neurons:
            raise DataError(
                f"{name} has {n:,} samples of {neurons:,} neurons; CCA needs at least "
                f"{max(d, e) + 1:,} samples here, and about {10 * max(d, e):,} to mean something: "
                f"give more samples, or {REMEDIES}"
            )


def _correlate(x: Any, y: Any, basis: _Basis, ridge: float) -> CCA:
    sides = []
    for z, given, name in zip(_checked(x, y, ridge), (x, y), "xy", strict=True):
        n, d = z.shape
        if ridge:  # X^T X + n lambda I is the Gram matrix of these rows
            z = torch.cat([z, math.sqrt(n * ridge) * torch.eye(d, dtype=z.dtype, device=z.device)])
        columns, values, back = basis(z)
        if not ridge:
            _check_rank(values, z, rounding(given), name)
        sides.append((columns[:n], back))
    (p, x_weights), (q, y_weights) = sides
    u, rho, vh = torch.linalg.svd(p.T @ q, full_matrices=False)
    return CCA(x_weights(u), y_weights(vh.T), rho.clamp(max=1))  # rounding may pass 1


def _svd_basis(x: Tensor) -> tuple[Tensor, Tensor, _Map]:
    """Return an orthonormal basis Q of the columns, singular values, and u -> w with x w = Q u."""
    q, s, vh = torch.linalg.svd(x, full_matrices=False)
    return q, s, lambda u: vh.T @ (u / s[:, None])


def _qr_basis(x: Tensor) -> tuple[Tensor, Tensor, _Map]:
    q, r = torch.linalg.qr(x)
    return q, torch.linalg.svdvals(r), lambda u: torch.linalg.solve_triangular(r, u, upper=True)


def _tolerance(values: Tensor, x: Tensor, noise: float) -> float:
    """Return up to where singular values of centred x may be rounding."""
    return noise + float(values[0]) * max(x.shape) * EPS


def _check_rank(values: Tensor, x: Tensor, noise: float, name: str) -> None:
    tolerance = _tolerance(values, x, noise)
    rank = int((values > tolerance).sum())
    if rank == len(values):
        return
    constant = int((x.norm(dim=0) <= tolerance).sum())
    which = f"{constant:,} are constant" if constant else "some are combinations of others"
    raise DataError(
        f"{name} has {len(values):,} neurons of rank {rank:,} ({which}), so that CCA is not "
        f"defined; {REMEDIES}"
    )


def _strongest(x: Tensor, noise: float, name: str, threshold: float, dims: int | None) -> Tensor:
    """Return the coordinates [n, kept] in the strongest principal directions."""
    u, s, _ = torch.linalg.svd(narrow(x), full_matrices=False)
    rank = max(1, int((s > _tolerance(s, x, noise)).sum()))
    if dims is not None:
        if not 1 <= dims <= rank:
            raise ConfigError(f"dims is {dims}; expected 1 to {rank:,}, the rank of {name}")
        return u[:, :dims] * s[:dims]
    share = s.square().cumsum(0) / s.square().sum()
    kept = min(int((share < threshold).sum()) + 1, rank)
    return u[:, :kept] * s[:kept]
