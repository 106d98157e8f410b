"""What a surrogate is given: rows, or blocks of a kernel, checked and scaled.

Shapes: n train and m other examples; k numbers a row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.ntk.opening import as_source
from pntk.ntk.sources import check_finite
from pntk.rows import as_rows
from pntk.store import FeatureStore
from pntk.surrogate.design import (
    Design,
    checked_deviation,
    deviation,
    in_memory,
    norms_of,
)

_UNIT = 1e-3  # by which cosines of half precision may differ from 1


def open_rows(
    rows: Any, normalize: bool | str, factor: float | None = None
) -> tuple[Design, float]:
    """Return (scaled rows, factor of the kernel).

    Args:
        rows: [n, k].
        normalize: as in :class:`KernelSurrogate`.
        factor: of the kernel of train rows, for others; None for train rows themselves.

    Raises:
        ConfigError: not rows, NaN, or skipped ones.
    """
    opened = as_rows(rows)
    if len(opened.skipped):
        raise ConfigError(
            f"{len(opened.skipped):,} rows of {opened.source.path} were skipped as non-finite and "  # type: ignore[union-attr]
            f"hold zeros, such as row {opened.skipped[0]}; leave them out with pntk export --rows"
        )
    opened = in_memory(opened)
    norms = norms_of(opened, "rows")
    if normalize is True:
        scale = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
        return Design(opened, scale), 1.0
    design = Design(opened, torch.ones_like(norms))
    if normalize == "trntk0" and factor is None:
        factor = 1 / deviation(design)
    factor = 1.0 if factor is None else factor
    return Design(opened, design.scale * math.sqrt(factor)), factor


def open_train_kernel(kernel: Any, normalize: bool | str) -> tuple[Tensor, float]:
    """Return (K times the factor, float64 [n, n]; the factor).

    Raises:
        ConfigError: not a symmetric finite kernel, or not of cosines where they are expected.
    """
    if isinstance(kernel, FeatureStore):
        raise ConfigError(
            f"{kernel.path} is a store of rows, and kernel='precomputed' expects a kernel [n, n]; "
            "use kernel='rows'"
        )
    whole = as_source(kernel).gram()
    check_finite(whole, 0)
    if normalize is True:
        diagonal = whole.diagonal()
        low, high = float(diagonal.min()), float(diagonal.max())
        if abs(low - 1) > _UNIT or abs(high - 1) > _UNIT:
            raise ConfigError(
                f"the kernel's diagonal goes from {low:.6g} to {high:.6g}, and normalize=True "
                "expects cosines, whose diagonal is 1: make it with pntk.ntk(rows, "
                "normalize=True), or use normalize=False"
            )
    if normalize != "trntk0":
        return whole, 1.0
    factor = 1 / checked_deviation(whole)
    return whole * factor, factor


def open_kernel_block(kernel: Any, size: int, normalize: bool | str, factor: float) -> Tensor:
    """Return the kernel between m examples and the n train examples, times the factor.

    Raises:
        ConfigError: of another width, not finite, or not cosines where they are expected.
    """
    if isinstance(kernel, Tensor):
        kernel = kernel.detach().cpu().numpy()
    block = torch.from_numpy(np.array(kernel, dtype=np.float64))
    if block.dim() != 2 or block.shape[1] != size:
        raise ConfigError(
            f"the kernel has shape {tuple(block.shape)}; expected [m, {size}], one column for each "
            "train example: pntk.ntk(rows, train_rows)"
        )
    check_finite(block, 0)
    largest = float(block.abs().max()) if block.numel() else 0.0
    if normalize is True and largest > 1 + _UNIT:
        raise ConfigError(
            f"the kernel holds {largest:.6g} and normalize=True expects cosines, from -1 to 1: "
            "make it with pntk.ntk(rows, train_rows, normalize=True)"
        )
    return block * factor
