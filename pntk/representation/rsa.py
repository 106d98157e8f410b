"""Representational similarity analysis: whether the same samples are far from each other.

Shapes: n samples; d, e neurons of x and of y; q = n (n - 1) / 2 pairs of samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pntk.errors import ConfigError, DataError
from pntk.extras import require
from pntk.representation.inputs import EPS, matrix_pair, squared_distances

METRICS = ("correlation", "cosine", "euclidean", "squared_euclidean")
CORRELATIONS = ("spearman", "pearson")


def rsa(x: Any, y: Any, *, metric: str = "correlation", compare: str = "spearman") -> float:
    """Return the correlation of the distances between samples in x and in y; -1 to 1.

    Args:
        x: [n, d], tensor or array.
        y: [n, e].
        metric: of two samples: ``correlation`` is 1 - the correlation of their neurons,
            ``cosine``, ``euclidean`` or ``squared_euclidean``.
        compare: ``spearman``, of ranks, equal ones averaged (needs SciPy), or ``pearson``.

    Raises:
        ConfigError: unknown metric or correlation.
        DataError: not matrices of the same samples, fewer than 3 of them, distances that are all
            equal; with ``correlation`` and ``cosine``, a row that is constant or zero.
        MissingExtraError: SciPy is not installed.

    Source: Kriegeskorte, Mur, Bandettini (2008), https://doi.org/10.3389/neuro.06.004.2008

    >>> x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    >>> round(rsa(x, 5 - 2 * x, metric="euclidean", compare="pearson"), 12)
    1.0
    """
    if compare not in CORRELATIONS:
        raise ConfigError(f"compare is {compare!r}; expected 'spearman' or 'pearson'")
    pair = matrix_pair(x, y, 3)
    sides = []
    for z, name in zip(pair, "xy", strict=True):
        distances = dissimilarities(z, metric, name)
        if compare == "spearman":
            ranks = require("scipy.stats", "Spearman's correlation").rankdata(distances.cpu())
            distances = torch.from_numpy(ranks)
        centred = distances - distances.mean()
        if float(centred.abs().max()) <= 16 * EPS * float(distances.abs().max()):
            raise DataError(
                f"all samples of {name} are as far from each other, so that distances have no "
                "correlation; expected samples that differ"
            )
        sides.append(centred / centred.norm())
    return max(-1.0, min(1.0, float(sides[0] @ sides[1])))


def dissimilarities(x: Tensor, metric: str = "correlation", name: str = "x") -> Tensor:
    """Return the distances of all pairs i < j of rows, float64 [q], in the order of SciPy's pdist.

    Raises:
        ConfigError: unknown metric.
        DataError: a row that has no direction.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric is {metric!r}; expected one of {', '.join(METRICS)}")
    x = x.double()
    if metric in ("correlation", "cosine"):
        largest = x.abs().amax(1)
        if metric == "correlation":
            x = x - x.mean(1, keepdim=True)
        flat = x.abs().amax(1) <= 16 * EPS * largest
        if bool(flat.any()):
            what = "constant" if metric == "correlation" else "zero"
            raise DataError(
                f"row {int(flat.nonzero()[0])} of {name} is {what}, so that it has no "
                f"{metric} with others; use metric='euclidean', or leave such samples out"
            )
        x = x / x.norm(dim=1, keepdim=True)
        found = (1 - x @ x.T).clamp_(min=0)
    else:
        found = squared_distances(x - x.mean(0))
        if metric == "euclidean":
            found.sqrt_()
    upper = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return found[upper[0], upper[1]]
