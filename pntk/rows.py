"""Rows from wherever they are: a tensor, an array or a store."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.store import FeatureStore


def as_rows(rows: Any, what: str = "rows") -> Tensor:
    """Return rows [n, k] as a floating point tensor; a store's are mapped, not read.

    Raises:
        ConfigError: not two-dimensional, not floating point, or empty.
        StoreError: rows of the store are missing.
    """
    if isinstance(rows, FeatureStore):
        rows.require_complete()
        return rows.torch()
    if isinstance(rows, np.ndarray):
        with warnings.catch_warnings():  # torch warns of arrays that cannot be written to
            warnings.simplefilter("ignore", UserWarning)
            rows = torch.from_numpy(rows)
    if not isinstance(rows, Tensor):
        raise ConfigError(
            f"{what} is a {type(rows).__name__}; expected a tensor or array [n, k], or a "
            "FeatureStore"
        )
    if rows.dim() != 2 or not rows.is_floating_point():
        raise ConfigError(
            f"{what} is {rows.dtype} of shape {tuple(rows.shape)}; expected floating point [n, k]"
        )
    if 0 in rows.shape:
        raise ConfigError(f"{what} is empty: shape {tuple(rows.shape)}; expected at least one row")
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def check_widths(a: Tensor, b: Tensor) -> None:
    """Refuse two sets of rows that are not of one projection's width and type.

    Raises:
        ConfigError: with both shapes.
    """
    if a.shape[1] != b.shape[1]:
        raise ConfigError(
            f"rows are {a.shape[1]} and {b.shape[1]} wide; expected rows of one projection"
        )


def check_same_map(a: Any, b: Any) -> None:
    """Refuse two stores whose rows were made by different maps, outputs or weights.

    Raises:
        ConfigError: naming the field that differs.
    """
    if not (isinstance(a, FeatureStore) and isinstance(b, FeatureStore)):
        return
    for field in ("projection", "output", "params", "weights"):
        ours, theirs = getattr(a.header, field), getattr(b.header, field)
        if ours != theirs:
            shown = f"{ours} and {theirs}" if field != "params" else "other parameters"
            raise ConfigError(
                f"{a.path} and {b.path} differ in {field} ({shown}); rows are comparable only "
                "when made by one model, output and projection"
            )


def inverse_norms(rows: Tensor, tile: int) -> Tensor:
    """Return 1 / |row| [n], and 0 for rows of zeros, a tile at a time."""
    norms = torch.cat([part.norm(dim=1, dtype=torch.float64) for part in rows.split(tile)])
    return torch.where(norms > 0, 1 / norms, torch.zeros_like(norms)).to(rows.dtype)
