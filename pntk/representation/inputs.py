"""Two representations of the same samples, as matrices to compare.

Shapes: n samples; d, e neurons of x and of y.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pntk.errors import DataError

EPS = torch.finfo(torch.float64).eps
_ZERO = 16  # units in the last place that centring leaves where nothing is


def as_tensor(x: Any, name: str = "x") -> Tensor:
    """Return activations as a tensor that needs no gradient, where it is.

    Raises:
        DataError: no numbers, no samples, NaN or infinite entries.
    """
    if not isinstance(x, Tensor):
        try:
            x = torch.from_numpy(np.array(x))  # torch warns of what cannot be written to
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{name} is a {type(x).__name__}; expected a tensor or array [n, d] of activations"
            ) from error
    if x.is_complex() or x.dim() < 2 or 0 in x.shape:
        raise DataError(
            f"{name} is {x.dtype} of shape {tuple(x.shape)}; expected real activations [n, d], or "
            "maps such as [n, c, h, w]: one neuron is x[:, None]"
        )
    x = x.detach()
    if not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
        raise DataError(f"{name} holds NaN or infinity, first in row {row}; leave such samples out")
    return x


def centred_pair(x: Any, y: Any, least: int = 2) -> tuple[Tensor, Tensor]:
    """Return x [n, d] and y [n, e] in float64, each column less its mean.

    Raises:
        DataError: not matrices of as many rows, fewer than ``least`` rows, or rows that are all
            equal.
    """
    first, second = matrix_pair(x, y, least)
    return _centred(first, _eps(x), "x"), _centred(second, _eps(y), "y")


def matrix_pair(x: Any, y: Any, least: int = 2) -> tuple[Tensor, Tensor]:
    """Return x [n, d] and y [n, e] in float64.

    Raises:
        DataError: as in :func:`centred_pair`, but for equal rows.
    """
    x, y = as_tensor(x, "x"), as_tensor(y, "y")
    for z, name in ((x, "x"), (y, "y")):
        if z.dim() != 2:
            raise DataError(
                f"{name} has shape {tuple(z.shape)}; expected [n, d]: pntk.representation."
                "similarity makes matrices of maps"
            )
    if len(x) != len(y):
        raise DataError(
            f"x has {len(x):,} rows and y {len(y):,}; expected the same samples in the same order"
        )
    if len(x) < least:
        raise DataError(f"x and y have {len(x)} rows; expected at least {least} samples")
    return x.double(), y.to(x.device).double()


def _centred(x: Tensor, eps: float, name: str) -> Tensor:
    centred = x - x.mean(0)
    if float(centred.abs().max()) <= _ZERO * eps * float(x.abs().max()):
        raise DataError(
            f"the rows of {name} are all equal, and its similarity to others undefined; expected "
            "activations that differ between samples"
        )
    return centred


def rounding(x: Any) -> float:
    """Return |x|_F times the precision that x was given in, which bounds how wrong x is."""
    return _eps(x) * float(as_tensor(x).double().norm())


def _eps(x: Any) -> float:
    dtype = as_tensor(x).dtype
    return torch.finfo(dtype).eps if dtype.is_floating_point else EPS


def narrow(x: Tensor) -> Tensor:
    """Return rows [n, n] with the same products, where there are more neurons than samples."""
    return x if x.shape[1] <= len(x) else torch.linalg.qr(x.T, mode="r")[1].T


def squared_distances(x: Tensor) -> Tensor:
    """Return |x_i - x_j|^2 of centred rows, [n, n]."""
    gram = x @ x.T
    norms = gram.diagonal()
    found = (norms[:, None] + norms - (gram + gram.T)).clamp_(min=0)
    return found.fill_diagonal_(0)
