"""Are two sets of directions the same? Overlap of subspaces, and correlation of spectra.

Shapes: r directions; d numbers in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pntk.errors import ConfigError
from pntk.nads.nads import NADs, as_nads

RANKS = (1, 10, 50, 100, 500)


class Comparison(NamedTuple):
    """How alike two sets of directions are.

    Attributes:
        overlap: rank -> overlap of the subspaces of the first directions, 0 to 1.
        chance: rank -> r / d, the expected overlap with a random subspace.
        pearson: correlation of the logarithms of the singular values, paired by rank.
        spearman: the same of their ranks; 1 for any two spectra that are sorted and without ties.
        spectrum_ratio: median over ranks of the ratio of the shares s_i / |s|.
    """

    overlap: dict[int, float]
    chance: dict[int, float]
    pearson: float
    spearman: float
    spectrum_ratio: float


def compare(ours: NADs, published: NADs, ranks: Sequence[int] = RANKS) -> Comparison:
    """Compare directions U and V: overlap_r = |V_r^T U_r|_F^2 / r.

    Args:
        ours: [a, *shape].
        published: [b, *shape].
        ranks: r of the overlaps; those above a or b are left out.

    Raises:
        ConfigError: of other shapes, or no rank that both have.

    Example:
        >>> import torch
        >>> nads = NADs(torch.eye(4)[:3], torch.tensor([3.0, 2.0, 1.0]))
        >>> compare(nads, nads, [1, 2]).overlap
        {1: 1.0, 2: 1.0}
    """
    left, right = as_nads("ours", ours), as_nads("published", published)
    u = left.directions.flatten(1).double().cpu().numpy()
    v = right.directions.flatten(1).double().cpu().numpy()
    if u.shape[1] != v.shape[1]:
        raise ConfigError(
            f"directions of shapes {left.shape} and {right.shape}; expected as many numbers in each"
        )
    most = min(len(u), len(v))
    used = [rank for rank in ranks if 1 <= rank <= most]
    if not used:
        raise ConfigError(f"ranks are {list(ranks)}; expected some of 1 to {most}")
    squares = (u[: max(used)] @ v[: max(used)].T) ** 2
    s, t = (x.singular_values.double().cpu().numpy()[:most] for x in (left, right))
    positive = (s > 0) & (t > 0)
    s, t = s[positive], t[positive]
    return Comparison(
        {rank: float(squares[:rank, :rank].sum() / rank) for rank in used},
        {rank: rank / u.shape[1] for rank in used},
        _correlation(np.log(s), np.log(t)),
        _correlation(_ranked(s), _ranked(t)),
        float(np.median((s / np.linalg.norm(s)) / (t / np.linalg.norm(t)))),
    )


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation; NaN where one does not vary."""
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norm if norm > 0 else float("nan")


def _ranked(x: np.ndarray) -> np.ndarray:
    """Return ranks, the mean of those of equal numbers."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
