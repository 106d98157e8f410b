"""Find bad training samples by their scores, and make some to be found.

Shapes: n training samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pntk.attribution.arrays import Bools, as_matrix, as_numpy, ranks
from pntk.errors import ConfigError


class Detection(NamedTuple):
    """How well scores find bad samples.

    Attributes:
        auroc: probability that a bad sample scores above a good one, ties half.
        precision: k -> share of bad ones among the k that scored highest.
    """

    auroc: float
    precision: dict[int, float]


def detection(scores: Any, is_bad: Any, at: Sequence[int] | None = None) -> Detection:
    """Return how well high scores find mislabelled or poisoned samples.

    Args:
        scores: [n], high for what is suspected, such as the score of a sample for itself.
        is_bad: bool [n].
        at: values of k; None for the number of bad samples.

    Raises:
        ConfigError: shapes that do not fit, only one kind of sample, or a k that there is not.

    >>> detection([3.0, 1.0, 2.0, 0.0], [True, False, False, False], at=[1, 2])
    Detection(auroc=1.0, precision={1: 1.0, 2: 0.5})
    """
    values = as_matrix("scores", scores)
    bad = as_numpy("is_bad", is_bad)
    if values.shape[1] != 1 or bad.shape != (len(values),) or bad.dtype != bool:
        raise ConfigError(
            f"scores has shape {values.shape} and is_bad is {bad.dtype} {bad.shape}; expected [n] "
            "and bool [n]"
        )
    n, many = len(bad), int(bad.sum())
    if not 0 < many < n:
        raise ConfigError(f"is_bad marks {many} of {n} samples; expected some, and not all")
    wanted = [many] if at is None else list(at)
    if not all(isinstance(k, (int, np.integer)) and 1 <= k <= n for k in wanted):
        raise ConfigError(f"at is {at!r}; expected integers from 1 to {n}")
    total = ranks(values)[bad, 0].sum()
    auroc = (total - many * (many - 1) / 2) / (many * (n - many))
    order = np.argsort(-values[:, 0], kind="stable")
    precision = {int(k): float(bad[order[:k]].mean()) for k in wanted}
    return Detection(float(auroc), precision)


def mislabel(
    labels: Any, fraction: float, classes: int | None = None, seed: int = 0
) -> tuple[npt.NDArray[np.int64], Bools]:
    """Return labels of which a share is wrong, and which ones.

    Args:
        labels: integers [n], 0 to classes - 1.
        fraction: of labels to replace by another class, drawn uniformly; 0 to 1.
        classes: number of classes; None for the largest label and one.
        seed: of the draw.

    Raises:
        ConfigError: labels that are no classes, or an argument that cannot work.

    >>> mislabel([0, 1, 0, 1], 0.5)[1].sum()
    np.int64(2)
    """
    given = as_numpy("labels", labels)
    if given.ndim != 1 or given.dtype.kind not in "iu" or not len(given):
        raise ConfigError(f"labels is {given.dtype} {given.shape}; expected integers [n]")
    known = int(given.max()) + 1 if classes is None else classes
    if given.min() < 0 or given.max() >= known or known < 2:
        raise ConfigError(
            f"labels are {given.min()} to {given.max()} of {known} classes; expected 0 to "
            "classes - 1, of at least two"
        )
    if not 0 <= fraction <= 1:
        raise ConfigError(f"fraction is {fraction!r}; expected a number from 0 to 1")
    random = np.random.default_rng(seed)
    n = len(given)
    bad = np.zeros(n, dtype=bool)
    bad[random.permutation(n)[: round(fraction * n)]] = True
    shift = random.integers(1, known, size=n)
    return np.where(bad, (given + shift) % known, given).astype(np.int64), bad
