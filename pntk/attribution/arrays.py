"""Arrays as they are given: checked, and ranked.

Shapes: n training samples; m targets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pntk.errors import ConfigError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def as_numpy(name: str, values: Any) -> npt.NDArray[Any]:
    """Return a tensor, array or list as an array."""
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ConfigError(f"{name} is no array ({error})") from None


def as_matrix(name: str, values: Any) -> Floats:
    """Return finite numbers as float64 [n, m]; [n] is one column."""
    array = as_numpy(name, values)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.dtype.kind not in "fiu" or 0 in array.shape:
        raise ConfigError(
            f"{name} is {array.dtype} of shape {array.shape}; expected numbers [n, m]"
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ConfigError(f"{name} holds NaN or infinity; leave such rows or columns out")
    return array


def ranks(values: Floats) -> Floats:
    """Return the ranks of each column of [s, m], from 0; equals get the mean of theirs.

    >>> ranks(np.array([[5.0], [1.0], [5.0]]))[:, 0]
    array([1.5, 0. , 1.5])
    """
    count, columns = values.shape
    order = np.argsort(values, axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, axis=0)
    new = np.ones(values.shape, dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    place = np.arange(count)[:, None]
    first = np.maximum.accumulate(np.where(new, place, 0), axis=0)
    ends = np.ones(values.shape, dtype=bool)
    ends[:-1] = new[1:]
    last = np.minimum.accumulate(np.where(ends, place, count)[::-1], axis=0)[::-1]
    result = np.empty((count, columns))
    np.put_along_axis(result, order, (first + last) / 2, axis=0)
    return result
