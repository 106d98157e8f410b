"""The 256 levels of the ``normal`` family: integers, so that every device has the same numbers."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

# 88 makes the largest level 254: integers up to 256 are exact in bfloat16 and float16, so a
# tensor-core product with this table loses nothing on the random side.
LEVEL_SCALE = 88


def _table() -> np.ndarray:
    upper = [round(LEVEL_SCALE * NormalDist().inv_cdf((t + 0.5) / 256)) for t in range(128, 256)]
    return np.array([-level for level in reversed(upper)] + upper, dtype=np.int16)


NORMAL_TABLE = _table()
"""Level t = round(88 * Phi^-1((t + 1/2) / 256)), t = 0..255; antisymmetric, |level| <= 254."""

NORMAL_MEAN_SQUARE = float(np.mean(NORMAL_TABLE.astype(np.float64) ** 2))
"""Mean square of a level; entries of P are level / sqrt(NORMAL_MEAN_SQUARE * k)."""


def dense_scale(family: str, proj_dim: int) -> float:
    """Return what makes E[P^T P] = identity, for signs (``rademacher``) or levels (``normal``)."""
    return 1.0 / math.sqrt(proj_dim * (NORMAL_MEAN_SQUARE if family == "normal" else 1.0))
