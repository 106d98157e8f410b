"""Whether two representations have the same nearest neighbours.

Shapes: n samples; d, e neurons of x and of y; k neighbours; b rows of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pntk.errors import ConfigError, DataError
from pntk.representation.inputs import matrix_pair

METRICS = ("cosine", "euclidean")
_BLOCK_BYTES = 2**26


def neighbour_overlap(
    x: Any, y: Any, *, k: int = 10, metric: str = "cosine", jaccard: bool = False
) -> float:
    """Return the mean share of a sample's k nearest others in x that are so in y, too; 0 to 1.

    Of independent representations it is k / (n - 1) on average. Among samples equally near, the
    first ones count.

    Args:
        x: [n, d], tensor or array.
        y: [n, e].
        k: how many neighbours, at most n - 1.
        metric: ``cosine`` or ``euclidean``.
        jaccard: whether to divide what both have in common by their union, in place of k.

    Raises:
        ConfigError: k or metric.
        DataError: not matrices of the same samples; with ``cosine``, a row of zeros.

    Source: Huh, Cheung, Wang, Isola (2024), The platonic representation hypothesis, "mutual nearest
    neighbours", https://arxiv.org/abs/2405.07987; Jaccard: Klabunde, Schumacher, Strohmaier,
    Lemmerich (2023), https://arxiv.org/abs/2305.06329

    >>> x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    >>> neighbour_overlap(x, -5 * x, k=2, metric="euclidean")
    1.0
    """
    if metric not in METRICS:
        raise ConfigError(f"metric is {metric!r}; expected 'cosine' or 'euclidean'")
    x, y = matrix_pair(x, y)
    if not 1 <= k < len(x):
        raise ConfigError(f"k is {k} with {len(x):,} samples; expected 1 to {len(x) - 1:,}")
    first, second = _prepared(x, "x", metric), _prepared(y, "y", metric)
    step = max(1, _BLOCK_BYTES // (8 * len(x)))
    total = 0.0
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        common = _nearest(first, rows, k, metric) & _nearest(second, rows, k, metric)
        shared = common.sum(1).double()
        total += float((shared / (2 * k - shared) if jaccard else shared / k).sum())
    return total / len(x)


def _prepared(x: Tensor, name: str, metric: str) -> Tensor:
    if metric == "euclidean":
        return x - x.mean(0)  # products of rows far from 0 cancel
    norms = x.norm(dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise DataError(
            f"row {int((norms == 0).nonzero()[0, 0])} of {name} is zero and has no direction; use "
            "metric='euclidean', or leave such samples out"
        )
    return x / norms


def _nearest(x: Tensor, rows: slice, k: int, metric: str) -> Tensor:
    """Return for each of some rows which samples are its nearest, bool [b, n]."""
    scores = x[rows] @ x.T  # up to a constant a row, minus half the squared distance below
    if metric == "euclidean":
        scores -= x.square().sum(1) / 2
    own = torch.arange(rows.start, rows.stop, device=x.device)
    scores[own - rows.start, own] = -torch.inf
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
