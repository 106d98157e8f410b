"""Orthogonal Procrustes: how near two representations come to each other by rotation.

Shapes: n samples; d, e neurons of x and of y.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from pntk.errors import ConfigError
from pntk.representation.inputs import centred_pair, narrow

KINDS = ("squared", "euclidean", "angular")


def procrustes(x: Any, y: Any) -> float:
    """Return |X^T Y|_*, the sum of singular values, of centred X and Y of Frobenius norm 1; 0 to 1.

    It is the largest <X Q, Y> over orthogonal Q, the narrower side filled up with zeros.

    Args:
        x: [n, d], tensor or array.
        y: [n, e].

    Raises:
        DataError: not matrices of the same samples, or rows that are all equal.

    Source: Schonemann (1966), https://doi.org/10.1007/BF02289451; as a measure of representations:
    Ding, Denain, Steinhardt (2021), section 2, https://arxiv.org/abs/2108.01661

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    >>> round(procrustes(x, 7 - 2 * x @ turn), 12)
    1.0
    """
    first, second = (narrow(z / z.norm()) for z in centred_pair(x, y))
    return min(1.0, float(torch.linalg.svdvals(first.T @ second).sum()))  # rounding may pass 1


def procrustes_distance(x: Any, y: Any, kind: str = "squared") -> float:
    """Return the distance that is left after the best rotation.

    With s of :func:`procrustes`: ``squared`` is min_Q |X Q - Y|_F^2 = 2 - 2 s (Ding 2021),
    ``euclidean`` its root, ``angular`` arccos s; the last two are metrics (Williams 2021).

    Args:
        x: [n, d].
        y: [n, e].
        kind: see above.

    Raises:
        ConfigError: unknown kind.
        DataError: as in :func:`procrustes`.

    Source: Williams, Kunz, Kornblith, Linderman (2021), section 2.2,
    https://arxiv.org/abs/2110.14739
    """
    if kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    similarity = procrustes(x, y)
    if kind == "angular":
        return math.acos(similarity)
    squared = 2 - 2 * similarity
    return squared if kind == "squared" else math.sqrt(squared)
