"""The numbers in a report that are computed from its contents.

Shapes: m samples; r eigenvalues.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def cosine_kernel(kernel: NDArray[Any]) -> FloatArray:
    """Divide each entry by the norms of its two samples; a sample of norm 0 becomes 0.

    Args:
        kernel: [m, m], raw or already normalised.

    Example:
        >>> cosine_kernel(np.array([[4.0, 3.0], [3.0, 9.0]]))
        array([[1. , 0.5],
               [0.5, 1. ]])
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    norms = np.sqrt(np.clip(np.diagonal(kernel), 0, None))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    cosine: FloatArray = kernel * inverse[:, None] * inverse[None, :]
    return cosine


def kernel_caption(cosine: FloatArray, labels: NDArray[Any] | None) -> str:
    """Say what the heat map of a cosine kernel shows.

    Args:
        cosine: [m, m].
        labels: [m] ints, or None.
    """
    samples = len(cosine)
    caption = f"Cosine similarity between the gradients of {count(samples, 'sample')}"
    pairs = ~np.eye(samples, dtype=bool)
    if not pairs.any():
        return f"{caption}."
    if labels is None:
        return f"{caption}; the mean over pairs is {cosine[pairs].mean():.3f}."
    same = labels[:, None] == labels[None, :]
    parts = [
        f"{cosine[pairs & mask].mean():.3f} {where}"
        for mask, where in ((same, "within classes"), (~same, "across classes"))
        if (pairs & mask).any()
    ]
    return f"{caption}, sorted by class; the mean over pairs is {' and '.join(parts)}."


def cumulative_share(spectrum: FloatArray) -> FloatArray:
    """Share of the trace that the first 1, 2, ... eigenvalues hold.

    Example:
        >>> cumulative_share(np.array([6.0, 3.0, 1.0]))
        array([0.6, 0.9, 1. ])
    """
    share: FloatArray = np.cumsum(spectrum) / np.sum(spectrum)
    return share


def significant_spectrum(spectrum: NDArray[Any]) -> FloatArray:
    """Sort descending and drop what is zero up to rounding.

    The threshold is that of a numerical rank: the largest eigenvalue times r times the machine
    epsilon of the dtype.

    Args:
        spectrum: [r] eigenvalues, at least one of them positive.
    """
    spectrum = np.asarray(spectrum)
    dtype = spectrum.dtype if np.issubdtype(spectrum.dtype, np.floating) else np.float64
    floor = float(spectrum.max()) * spectrum.size * float(np.finfo(dtype).eps)
    kept: FloatArray = np.sort(spectrum[spectrum > floor].astype(np.float64))[::-1]
    return kept


def spectrum_caption(spectrum: NDArray[Any]) -> str:
    """Say how fast the eigenvalues fall.

    The effective rank is the participation ratio (sum of eigenvalues)^2 / sum of their squares.

    Args:
        spectrum: [r] eigenvalues, at least one of them positive.
    """
    kept = significant_spectrum(spectrum)
    first_90 = int(np.searchsorted(cumulative_share(kept), 0.9)) + 1
    rank = kept.sum() ** 2 / np.square(kept).sum()
    verb = "holds" if first_90 == 1 else "hold"
    caption = (
        f"{count(len(kept), 'eigenvalue')}, the largest {kept[0]:.3g}. The first "
        f"{first_90} {verb} 90% of their sum; the effective rank is {rank:.1f}."
    )
    dropped = np.size(spectrum) - len(kept)
    if dropped:
        verb = "is" if dropped == 1 else "are"
        caption += f" {dropped:,} more {verb} zero up to rounding, and not drawn."
    return caption


@dataclass(frozen=True)
class CoverageGroup:
    """The parameters that one rule captures."""

    rule: str
    rows: list[Mapping[str, Any]]
    count: int
    share: float


def coverage_groups(coverage: Sequence[Mapping[str, Any]]) -> list[CoverageGroup]:
    """Group parameters by rule, the rule with the most entries first."""
    total = sum(int(row["count"]) for row in coverage)
    by_rule: dict[str, list[Mapping[str, Any]]] = {}
    for row in coverage:
        by_rule.setdefault(str(row["rule"]), []).append(row)
    groups = []
    for rule, rows in by_rule.items():
        entries = sum(int(row["count"]) for row in rows)
        groups.append(CoverageGroup(rule, rows, entries, entries / max(total, 1)))
    return sorted(groups, key=lambda group: -group.count)


def agreement(label: str | None, other: str | None) -> bool | None:
    """Whether two classes agree; None where one of them is unknown."""
    return None if label is None or other is None else label == other


def class_order(labels: Iterable[str | None]) -> list[str]:
    """Return the distinct classes, numbers by value and before names.

    Example:
        >>> class_order(["10", "cat", None, "9", "10"])
        ['9', '10', 'cat']
    """
    known = {label for label in labels if label is not None}
    return sorted(
        known, key=lambda label: (0, int(label), "") if label.isdecimal() else (1, 0, label)
    )


def format_score(score: float) -> str:
    """Write a cosine with three decimals and a large or tiny score in scientific notation.

    Example:
        >>> [format_score(x) for x in (0.98765, -12.5, 0.0, 123456.0, 2.5e-6)]
        ['0.988', '-12.500', '0.000', '1.23e+05', '2.50e-06']
    """
    plain = score == 0 or 1e-3 <= abs(score) < 1e4
    return f"{score:.3f}" if plain else f"{score:.2e}"


def format_share(share: float) -> str:
    """Write a share as a percentage, and keep a small one from looking like none.

    Example:
        >>> [format_share(x) for x in (1.0, 0.1234, 0.0002, 0.0)]
        ['100.0%', '12.3%', '<0.1%', '0.0%']
    """
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def format_shape(shape: object) -> str:
    """Write a shape with multiplication signs.

    Example:
        >>> format_shape((64, 3, 3, 3)), format_shape([10]), format_shape(())
        ('64 × 3 × 3 × 3', '10', 'scalar')
    """
    if isinstance(shape, str):
        return shape
    if isinstance(shape, Sequence):
        return " × ".join(str(size) for size in shape) or "scalar"
    return str(shape)


def count(number: int, noun: str) -> str:
    """Write a number with its noun.

    Example:
        >>> count(1, "sample"), count(2000, "sample")
        ('1 sample', '2,000 samples')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
