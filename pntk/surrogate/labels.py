"""Labels of a surrogate: what they must be, and how much each example counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pntk.errors import ConfigError, DataError


def check_labels(labels: Any, size: int, what: str = "labels") -> np.ndarray:
    """Return one label an example, [n].

    Args:
        labels: integers or strings [n]: tensor, array or list.
        size: n.
        what: what messages call them.

    Raises:
        DataError: of another length or shape, missing (-1), or not classes.
    """
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    found = np.asarray(labels)
    if found.ndim == 2 and found.shape[1] > 1:
        raise DataError(
            f"{what} have shape {found.shape}; expected one class an example, [n]: of one-hot rows "
            "take labels.argmax(1)"
        )
    if found.shape not in ((size,), (size, 1)):
        raise DataError(
            f"{what} have shape {found.shape} and there are {size:,} rows; expected one label a "
            "row, in their order"
        )
    found = found.reshape(size)
    if found.dtype.kind == "f":
        if not (np.isfinite(found) & (found == np.floor(found))).all():
            raise DataError(f"{what} hold numbers such as {found[0]!r}; expected classes, integers")
        found = found.astype(np.int64)
    if found.dtype.kind not in "iubUS":
        raise DataError(f"{what} are {found.dtype}; expected integers or strings")
    if found.dtype.kind == "i" and (found < 0).any():
        missing = int((found < 0).sum())
        raise DataError(
            f"{missing:,} of {size:,} {what} are negative, which stands for none; leave those "
            "rows out: pntk export --rows, or rows[labels >= 0]"
        )
    return found


def encode(labels: np.ndarray, classes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (classes [c] ascending, number of the class of each example [n]).

    Args:
        labels: [n].
        classes: those that there are; None for those of the labels.

    Raises:
        DataError: only one class, or a label that is none of them.
    """
    if classes is None:
        classes, numbers = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise DataError(
                f"all {len(labels):,} labels are {classes[0].item()!r}; expected at least two "
                "classes to tell apart"
            )
        return classes, numbers
    unknown = ~np.isin(labels, classes)
    if unknown.any():
        raise DataError(
            f"label {labels[unknown][0].item()!r} is none of the {len(classes)} classes that the "
            f"surrogate was fit to ({classes.tolist()[:10]}); fit it to rows of all classes"
        )
    return classes, np.searchsorted(classes, labels)


def one_hot(numbers: np.ndarray, classes: int) -> Tensor:
    """Return targets, float64 [n, c]."""
    return torch.eye(classes, dtype=torch.float64)[torch.from_numpy(numbers)]


def example_weights(numbers: np.ndarray, classes: int, class_weight: str | None) -> Tensor:
    """Return how much each example counts, float64 [n]: 1, or n / (c n_class) where balanced.

    Raises:
        ConfigError: ``class_weight`` is neither None nor ``balanced``.

    >>> example_weights(np.array([0, 0, 0, 1]), 2, "balanced")
    tensor([0.6667, 0.6667, 0.6667, 2.0000], dtype=torch.float64)
    """
    if class_weight not in (None, "balanced"):
        raise ConfigError(f"class_weight is {class_weight!r}; expected None or 'balanced'")
    if class_weight is None:
        return torch.ones(len(numbers), dtype=torch.float64)
    counts = np.bincount(numbers, minlength=classes)
    return torch.from_numpy(len(numbers) / (classes * counts[numbers].astype(np.float64)))
