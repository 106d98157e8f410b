"""The linear datamodeling score, and what else tells how good attribution scores are.

Shapes: n training samples; m targets; s subsets; scores [n, m]: positive raises the output.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pntk.attribution.arrays import Bools, Floats, as_matrix, as_numpy, ranks
from pntk.attribution.detection import Detection, detection, mislabel
from pntk.attribution.poisoning import Poisoned, Trigger, poison, stamp
from pntk.attribution.retraining import (
    RemovalCurve,
    Retrained,
    read_retrained,
    removal_curve,
    retrain_on_subsets,
    subset,
)
from pntk.errors import ConfigError, PntkWarning

RESAMPLE = ("targets", "models")


@dataclass(frozen=True)
class LDS:
    """A linear datamodeling score.

    Attributes:
        mean: over targets.
        low, high: bootstrap interval of the mean.
        per_target: [m]; NaN where the outputs or predictions are all the same.
    """

    mean: float
    low: float
    high: float
    per_target: Floats


def lds(
    scores: Any,
    margins: Any,
    subsets: Any,
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    resample: str = "targets",
    seed: int = 0,
) -> LDS:
    """Return the linear datamodeling score of attribution scores.

    LDS = mean_j Spearman_s(sum_{i in S_s} score[i, j], f_j(S_s)), with f_j(S) the output of target
    j from a model that was trained on the subset S.

    Args:
        scores: [n, m].
        margins: [s, m], the outputs of the models that were trained on subsets; of several models a
            subset their mean. Losses with a minus sign.
        subsets: bool [s, n], or a list of index arrays.
        bootstrap: resamples, at least 1.
        confidence: of the interval.
        resample: ``targets``, how the mean would differ for others like these; or ``models``, for
            other subsets (slower, as ranks change).
        seed: of the resamples.

    Raises:
        ConfigError: shapes that do not fit, or an argument that cannot work.

    Source: Park et al. 2023, definition 2.3, https://arxiv.org/abs/2303.14186

    >>> found = lds([[1.0], [2.0], [4.0]], [[3.0], [5.0], [6.0]], [[0, 1], [0, 2], [1, 2]])
    >>> found.mean
    1.0
    """
    values, outputs = as_matrix("scores", scores), as_matrix("margins", margins)
    (n, m), count = values.shape, len(outputs)
    chosen = _as_masks(subsets, n)
    if outputs.shape != (len(chosen), m):
        raise ConfigError(
            f"margins is {outputs.shape} for {len(chosen)} subsets and scores {values.shape}; "
            f"expected ({len(chosen)}, {m}), one row a subset and one column a target"
        )
    if count < 2:
        raise ConfigError(f"there are {count} subsets; expected at least 2 to rank, better 100")
    if isinstance(bootstrap, bool) or not isinstance(bootstrap, int) or bootstrap < 1:
        raise ConfigError(f"bootstrap is {bootstrap!r}; expected an integer of at least 1")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence!r}; expected a number between 0 and 1")
    if resample not in RESAMPLE:
        raise ConfigError(f"resample is {resample!r}; expected one of {', '.join(RESAMPLE)}")
    predicted = chosen.astype(np.float64) @ values
    each = spearman(predicted, outputs)
    usable = np.isfinite(each)
    if not usable.any():
        raise ConfigError(
            "every target has the same output, or the same prediction, for all subsets; there is "
            "nothing to rank"
        )
    if not usable.all():
        warnings.warn(
            PntkWarning(f"{int((~usable).sum())} of {m} targets never change and are left out"),
            stacklevel=2,
        )
    random, means = np.random.default_rng(seed), np.empty(bootstrap)
    for number in range(bootstrap):
        if resample == "targets":
            means[number] = random.choice(each[usable], int(usable.sum())).mean()
        else:
            some = random.integers(count, size=count)
            again = spearman(predicted[some][:, usable], outputs[some][:, usable])
            means[number] = _mean(again)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail])
    return LDS(float(each[usable].mean()), float(low), float(high), each)


def spearman(a: Floats, b: Floats) -> Floats:
    """Return the rank correlation of each column of [s, m] and [s, m]; equals share their rank.

    >>> spearman(np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [9.0], [9.0]])).round(4)
    array([0.866])
    """
    x, y = (ranks(values) - (len(values) - 1) / 2 for values in (a, b))
    scale = np.sqrt((x * x).sum(0) * (y * y).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (x * y).sum(0) / scale, np.nan)


def _as_masks(subsets: Any, n: int) -> Bools:
    """Return subsets as bool [s, n]."""
    if isinstance(subsets, (np.ndarray, Tensor)):
        array = as_numpy("subsets", subsets)
        if array.dtype != bool or array.ndim != 2 or array.shape[1] != n:
            raise ConfigError(
                f"subsets is {array.dtype} of shape {array.shape}; expected bool [s, {n}], or a "
                "list of index arrays"
            )
        return array
    masks = np.zeros((len(subsets), n), dtype=bool)
    for number, one in enumerate(subsets):
        places = as_numpy(f"subsets[{number}]", one)
        if places.ndim != 1 or places.dtype.kind not in "iu" or not len(places):
            raise ConfigError(f"subsets[{number}] is {places.dtype}; expected indices of samples")
        if places.min() < 0 or places.max() >= n:
            raise ConfigError(f"subsets[{number}] names a sample outside 0 to {n - 1}")
        masks[number, places] = True
    return masks


def _mean(values: Floats) -> float:
    """Return the mean of what is finite, or NaN."""
    usable = values[np.isfinite(values)]
    return float(usable.mean()) if len(usable) else float("nan")


__all__ = [
    "LDS",
    "Detection",
    "Poisoned",
    "RemovalCurve",
    "Retrained",
    "Trigger",
    "detection",
    "lds",
    "mislabel",
    "poison",
    "read_retrained",
    "removal_curve",
    "retrain_on_subsets",
    "spearman",
    "stamp",
    "subset",
]
