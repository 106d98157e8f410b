"""How the work of GPU kernels is shared out: by shapes alone, so that a batch changes no row.

Each split of a sample's work writes k numbers of its own, and they are added in order.
"""

from __future__ import annotations

from torch import Tensor

from pntk.projection.gpu_ops import FLOATS

MOST_SPLITS = 64


def splits_of(work: int, each: int) -> int:
    """Return into how many splits to cut work of which one does well with ``each``."""
    return min(MOST_SPLITS, max(1, work // each))


def add_splits(to: Tensor, out: Tensor) -> None:
    """Add partial sums [splits, b, k] to rows [b, k]."""
    out += to[0] if len(to) == 1 else to.sum(0)


def as_floats(x: Tensor) -> Tensor:
    """Return a tensor of a type that the kernels read."""
    return x if x.dtype in FLOATS else x.float()
