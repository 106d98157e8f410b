"""Rows of float32 as float16 and a scale each.

The scale is a power of two that brings the largest entry of a row to between 2^14 and 2^15. So an
entry keeps 11 significant bits down to 2^-28 of the largest; what is smaller loses some.
"""

import numpy as np
import torch
from torch import Tensor

from pntk.store.layout import Array

_TOP = 15
_SMALLEST = -126  # exponent of the smallest normal float32
_LARGEST = 128 - _TOP  # exponent of the scale of rows that reach up to the end of float32
_LAST = np.float32(2.0**128 - 2.0**117)  # the largest with 11 significant bits


def encode(rows: Array) -> tuple[Array, Array]:
    """Return float16 [b, k] and float32 scales [b] for float32 rows [b, k].

    Infinity and NaN stay what they are, and no other number becomes one.
    """
    # NumPy, as torch would start a second pool of threads in the one that writes
    largest = np.where(np.isfinite(rows), np.abs(rows), 0).max(axis=1)
    exponents = np.frexp(largest)[1] - _TOP
    if (exponents == _LARGEST).any():  # or rounding up would give 2^128, which float32 has not
        rows = np.where(np.isfinite(rows), rows.clip(-_LAST, _LAST), rows)
    scales = np.ldexp(np.float32(1), exponents.clip(min=_SMALLEST))
    with np.errstate(invalid="ignore"):  # NaN
        return (rows / scales[:, None]).astype(np.float16), scales


def decode(features: Array, scales: Array) -> Tensor:
    """Return float32 rows [b, k]; what ``encode`` rounded is all that is lost."""
    return torch.from_numpy(features).float().mul_(torch.from_numpy(scales)[:, None])
