"""How alike a surrogate and its network are, on examples that neither was fit to.

Shapes: m examples; c classes; p(x) the probability of an example's own class, or of a given one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pntk.errors import ConfigError, DataError
from pntk.extras import require

FloatArray = npt.NDArray[np.float64]
_SUM = 1e-3  # by which probabilities of half precision may miss 1
_ROUNDING = 1e-6  # of float32
_FEW = 50
_BINS = 15  # of the calibration error
_LEVEL = 95  # percent, of intervals


@dataclass(frozen=True)
class SurrogateReport:
    """What :func:`evaluate` found; NaN where there is nothing to measure.

    Attributes:
        examples: m.
        saturated: examples left out of ``kendall_tau``, ``pearson`` and ``r2``, since p(x) of one
            of the two is 0 or 1.
        surrogate_accuracy: share of right predictions.
        network_accuracy: likewise.
        tad: test accuracy difference, surrogate - network.
        agreement: share of examples of which both predict the same class.
        r_miss: of the network's mistakes, the share that the surrogate makes mistakes at too.
        kendall_tau: tau-b of p(x) between both.
        pearson: correlation of p(x).
        r2: of the regression of the network's log p / (1 - p) on the surrogate's.
        slope: of that regression.
        intercept: of that regression.
        surrogate_ece: expected calibration error, 15 bins of the largest probability.
        network_ece: likewise.
        per_class: ``kendall_tau`` of the examples of each class [c].
        intervals: name -> (low, high), 95 % of the bootstrap.
    """

    examples: int
    saturated: int
    surrogate_accuracy: float
    network_accuracy: float
    tad: float
    agreement: float
    r_miss: float
    kendall_tau: float
    pearson: float
    r2: float
    slope: float
    intercept: float
    surrogate_ece: float
    network_ece: float
    per_class: list[float]
    intervals: dict[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, as JSON can hold them but for NaN."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (what, value, interval) of each line of a table."""
        lines = []
        for name, text in _SHOWN.items():
            low, high = self.intervals.get(name, (math.nan, math.nan))
            interval = "" if math.isnan(low) else f"{low:.4f} to {high:.4f}"
            lines.append((text, f"{getattr(self, name):.4f}", interval))
        classes = ", ".join(f"{value:.3f}" for value in self.per_class)
        lines.append(("Kendall tau by class", classes, ""))
        lines.append(("saturated", f"{self.saturated:,} of {self.examples:,} left out", ""))
        return lines

    def __str__(self) -> str:
        rows = [("", "value", f"{_LEVEL} % interval"), *self.rows()]
        first, second = (max(len(row[i]) for row in rows[:-2]) for i in (0, 1))
        return "\n".join(f"{a:<{first}}  {b:<{second}}  {c}".rstrip() for a, b, c in rows)


_SHOWN = {
    "kendall_tau": "Kendall tau-b",
    "pearson": "Pearson",
    "r2": "R^2 of logits",
    "surrogate_accuracy": "accuracy, surrogate",
    "network_accuracy": "accuracy, network",
    "tad": "TAD",
    "agreement": "same prediction",
    "r_miss": "R_Miss",
    "surrogate_ece": "ECE, surrogate",
    "network_ece": "ECE, network",
}


def evaluate(
    surrogate_probs: Any,
    network_probs: Any,
    labels: Any,
    *,
    of: str | int = "own",
    bootstrap: int = 1000,
    seed: int = 0,
) -> SurrogateReport:
    """Compare the probabilities of a surrogate with those of its network.

    Args:
        surrogate_probs: [m, c], rows summing to 1: tensor or array.
        network_probs: [m, c], softmax of the logits over classes, not over examples.
        labels: class of each example, int [m].
        of: what p(x) is the probability of: ``own``, the example's own class; or the number of one
            class for all examples, as in the published tables of two classes. There, a pair of
            examples of different classes agrees as soon as both tell the classes apart, so that
            tau is near (1 + tau within classes) / 2: not to be compared with ``own``.
        bootstrap: samples of the examples, for intervals; 0 for none.
        seed: of the bootstrap.

    Raises:
        ConfigError: not probabilities, or of other shapes.
        DataError: labels are missing or none of the classes.
        MissingExtraError: SciPy is not installed.

    Source: Engel, Wang, Frank, Dumitriu, Choudhury, Sarwate, Chiang (2023), Faithful and efficient
    explanations for neural networks via neural tangent kernel surrogate models, section 3,
    https://arxiv.org/abs/2305.14585. Calibration: Guo, Pleiss, Sun, Weinberger (2017), equation 3,
    https://arxiv.org/abs/1706.04599
    """
    ours = check_probabilities(surrogate_probs, "surrogate_probs")
    theirs = check_probabilities(network_probs, "network_probs")
    if ours.shape != theirs.shape:
        raise ConfigError(
            f"surrogate_probs have shape {ours.shape} and network_probs {theirs.shape}; expected "
            "the same examples and classes"
        )
    numbers = _check_numbers(labels, *ours.shape)
    if bootstrap < 0:
        raise ConfigError(f"bootstrap is {bootstrap}; expected a number of samples, 0 for none")
    whole = isinstance(of, (int, np.integer)) and not isinstance(of, bool)
    if of != "own" and (not whole or not 0 <= int(of) < ours.shape[1]):
        raise ConfigError(
            f"of is {of!r}; expected 'own' or the number of a class, 0 to {ours.shape[1] - 1}"
        )
    compared = _Compared(ours, theirs, numbers, of)
    everything = np.arange(len(numbers))
    found = compared.measure(everything)
    return SurrogateReport(
        examples=len(numbers),
        saturated=int((~compared.usable).sum()),
        per_class=[compared.tau(np.flatnonzero(numbers == c)) for c in range(ours.shape[1])],
        intervals=_intervals(compared, bootstrap, seed),
        **found,
    )


# ---- measures ----------------------------------------------------------------------------------


class _Compared:
    """Probabilities of both, and everything about an example that does not depend on others."""

    def __init__(
        self, ours: FloatArray, theirs: FloatArray, numbers: np.ndarray, of: str | int
    ) -> None:
        at = np.arange(len(numbers))
        column = numbers if isinstance(of, str) else np.full_like(numbers, of)
        self.p, self.q = ours[at, column], theirs[at, column]
        self.usable = (self.p > 0) & (self.p < 1) & (self.q > 0) & (self.q < 1)
        predicted, expected = ours.argmax(1), theirs.argmax(1)
        self.right, self.network_right = predicted == numbers, expected == numbers
        self.same = predicted == expected
        self.confidence, self.network_confidence = ours.max(1), theirs.max(1)
        self._tau: Callable[..., Any] = require(
            "scipy.stats", "the comparison with a network"
        ).kendalltau

    def tau(self, chosen: np.ndarray) -> float:
        """Kendall's tau-b of some examples."""
        chosen = chosen[self.usable[chosen]]
        p, q = self.p[chosen], self.q[chosen]
        if len(chosen) < 2 or np.ptp(p) == 0 or np.ptp(q) == 0:
            return math.nan
        method = "auto" if len(chosen) < _FEW else "asymptotic"  # of a p value that nobody asks for
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self._tau(p, q, method=method).statistic)

    def measure(self, chosen: np.ndarray) -> dict[str, float]:
        """All measures of some examples."""
        right, network_right = self.right[chosen], self.network_right[chosen]
        missed = ~network_right
        usable = chosen[self.usable[chosen]]
        p, q = self.p[usable], self.q[usable]
        x, y = _logit(p), _logit(q)
        correlation = _correlation(x, y)
        slope = correlation * y.std() / x.std() if not math.isnan(correlation) else math.nan
        return {
            "surrogate_accuracy": float(right.mean()),
            "network_accuracy": float(network_right.mean()),
            "tad": float(right.mean() - network_right.mean()),
            "agreement": float(self.same[chosen].mean()),
            "r_miss": float((~right[missed]).mean()) if missed.any() else math.nan,
            "kendall_tau": self.tau(chosen),
            "pearson": _correlation(p, q),
            "r2": correlation**2,
            "slope": float(slope),
            "intercept": float(y.mean() - slope * x.mean()) if len(x) else math.nan,
            "surrogate_ece": calibration_error(self.confidence[chosen], right),
            "network_ece": calibration_error(self.network_confidence[chosen], network_right),
        }


def calibration_error(confidence: FloatArray, right: np.ndarray) -> float:
    """Return sum over bins of (share of examples) |accuracy - mean confidence|.

    Args:
        confidence: largest probability of each example [m].
        right: whether its class is the example's [m].

    >>> round(calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([1, 1, 1, 0]) > 0), 12)
    0.15
    """
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _logit(p: FloatArray) -> FloatArray:
    result: FloatArray = np.log(p) - np.log1p(-p)
    return result


def _correlation(x: FloatArray, y: FloatArray) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    x, y = ((v - v.min()) / np.ptp(v) for v in (x, y))  # squares of 1e-200 would vanish
    return float(np.corrcoef(x, y)[0, 1])


def _intervals(compared: _Compared, samples: int, seed: int) -> dict[str, tuple[float, float]]:
    if not samples:
        return {}
    generator, size = np.random.default_rng(seed), len(compared.p)
    drawn = [compared.measure(generator.integers(0, size, size)) for _ in range(samples)]
    edges = (50 - _LEVEL / 2, 50 + _LEVEL / 2)
    result = {}
    for name in drawn[0]:
        values = np.array([measured[name] for measured in drawn])
        values = values[~np.isnan(values)]
        low, high = np.percentile(values, edges) if len(values) else (math.nan, math.nan)
        result[name] = (float(low), float(high))
    return result


# ---- checks ------------------------------------------------------------------------------------


def check_probabilities(values: Any, what: str) -> FloatArray:
    """Return probabilities [m, c].

    Args:
        values: tensor or array.
        what: what messages call them.

    Raises:
        ConfigError: they are none.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    given = np.asarray(values)
    if given.dtype.kind not in "fiub":
        raise ConfigError(f"{what} are {given.dtype}; expected probabilities, real numbers [m, c]")
    probs = given.astype(np.float64)
    if probs.ndim != 2 or probs.shape[1] < 2 or not len(probs):
        raise ConfigError(
            f"{what} have shape {probs.shape}; expected [m, c], one column for each class"
        )
    outside = ~((probs >= 0) & (probs <= 1 + _ROUNDING))  # also NaN
    if outside.any():
        row = int(outside.any(1).argmax())
        raise ConfigError(
            f"{what} hold {probs[row][outside[row]][0]:.6g} in row {row}; expected probabilities, "
            "from 0 to 1: of logits take softmax(1)"
        )
    totals = probs.sum(1)
    row = int(np.abs(totals - 1).argmax())
    if abs(totals[row] - 1) > _SUM:
        raise ConfigError(
            f"{what} sum to {totals[row]:.6g} in row {row}; expected 1: take softmax over the "
            "classes of each example, softmax(1)"
        )
    return probs.clip(max=1)


def _check_numbers(labels: Any, size: int, classes: int) -> np.ndarray:
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    numbers = np.asarray(labels)
    if numbers.shape != (size,) or numbers.dtype.kind not in "iu":
        raise DataError(
            f"labels are {numbers.dtype} of shape {numbers.shape}; expected one class an example, "
            f"integers [{size}]: of one-hot rows take argmax(1)"
        )
    outside = (numbers < 0) | (numbers >= classes)
    if outside.any():
        raise DataError(
            f"labels hold {numbers[outside][0]} in row {int(outside.argmax())}; expected 0 to "
            f"{classes - 1}, the columns of the probabilities: leave examples without a label out"
        )
    return numbers.astype(np.int64)
