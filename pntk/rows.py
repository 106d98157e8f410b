"""Rows from wherever they are, a block at a time: a tensor, an array or a store."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_64, xxh3_64_hexdigest

from pntk.errors import ConfigError
from pntk.store import FeatureStore
from pntk.store.joined import open_parts
from pntk.store.layout import text_checksum

_HALF = (torch.float16, torch.bfloat16)
# Larger allocations come from the system and go back to it. Of smaller ones that one thread makes
# and another frees, glibc keeps tens of megabytes.
_FROM_SYSTEM = 2**25
_STRIP = 2**20  # bytes that are read at a time to tell rows from others
_SAFE = (1e-15, 1e15)  # norms whose squares float32 holds with all digits


@dataclass(frozen=True)
class Rows:
    """Rows [n, k] that are had in blocks, of which a store keeps none in memory.

    Attributes:
        source: a tensor [n, k], or a store without missing rows.
    """

    source: Tensor | FeatureStore

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k)."""
        n, k = self.source.shape
        return n, k

    @property
    def dtype(self) -> torch.dtype:
        """Type of the blocks: float32 or float64."""
        return torch.float32 if self.source.dtype in _HALF else self.source.dtype

    @property
    def copied(self) -> bool:
        """Whether a block takes memory of its own."""
        return isinstance(self.source, FeatureStore) or self.source.dtype in _HALF

    @property
    def skipped(self) -> np.ndarray:
        """Rows that a store marks as left out, ascending."""
        if isinstance(self.source, FeatureStore):
            return self.source.skipped
        return np.empty(0, dtype=np.int64)

    def block(self, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop``; a view where a tensor holds them as they are."""
        if isinstance(self.source, FeatureStore):
            return self.source.read(start, min(stop, len(self.source)))
        return self.source[start:stop].to(self.dtype)

    def blocks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (start, rows) in order; where blocks are large the next one is read meanwhile.

        Args:
            size: rows of a block, of which a store has three in memory at most.
        """
        n, width = self.shape
        starts = range(0, n, size)
        large = size * width * self.dtype.itemsize > _FROM_SYSTEM and len(starts) > 1
        if not (isinstance(self.source, FeatureStore) and large):
            for start in starts:
                yield start, self.block(start, start + size)
            return
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self.block, 0, size)
            for start in starts:
                block = coming.result()
                if start + size < n:
                    coming = reader.submit(self.block, start + size, start + 2 * size)
                yield start, block


def as_rows(rows: Any, what: str = "rows") -> Rows:
    """Return rows [n, k] that are had in blocks.

    Raises:
        ConfigError: not two-dimensional, not floating point, or empty.
        StoreError: rows of the store are missing.
    """
    if isinstance(rows, Rows):
        return rows
    if isinstance(rows, FeatureStore):
        rows.require_complete()
        return Rows(rows)
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
    return Rows(rows.detach())


def check_widths(a: Rows, b: Rows) -> None:
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


def row_norms(block: Tensor) -> Tensor:
    """Return |row| [b] of a block [b, k], in its type, also where squares would not fit it."""
    norms = torch.linalg.vector_norm(block, dim=1)
    if not len(norms):
        return norms
    least, most = _SAFE
    low, high = norms.aminmax()
    if block.dtype == torch.float64 or (least < float(low) and float(high) < most):
        return norms
    unsafe = ~((norms > least) & (norms < most))  # also those that are NaN
    exact = torch.linalg.vector_norm(block[unsafe], dim=1, dtype=torch.float64)
    norms[unsafe] = exact.to(norms.dtype)
    return norms


def inverse_norms(rows: Rows | Tensor, tile: int) -> Tensor:
    """Return 1 / |row| [n], and 0 for rows of zeros, a tile at a time."""
    rows = as_rows(rows)
    starts = range(0, rows.shape[0], tile)
    norms = torch.cat([row_norms(rows.block(i, i + tile)) for i in starts]).double()
    return torch.where(norms > 0, 1 / norms, torch.zeros_like(norms)).to(rows.dtype)


def identify(rows: Rows) -> dict[str, str | int | float | None]:
    """Return what tells these rows from others: of a store its header, and of all the numbers."""
    digest = xxh3_64()
    about: dict[str, str | int | float | None]
    if not isinstance(rows.source, FeatureStore):
        step = max(1, _STRIP // (rows.shape[1] * rows.dtype.itemsize))
        for start in range(0, rows.shape[0], step):
            digest.update(rows.block(start, start + step).contiguous().cpu().numpy().data)
        about = {"dtype": str(rows.dtype).removeprefix("torch.")}
    else:
        header = rows.source.header
        for part in open_parts(rows.source.path)[1]:
            rows_there, step = part.layout.header.rows, _STRIP // 8
            for start in range(0, rows_there, step):
                last = min(start + step, rows_there)
                digest.update(part.read("checksums", start, last).data)
        about = {
            f"{name}.{key}": value if isinstance(value, (str, int, float)) else json.dumps(value)
            for name in ("projection", "output")
            for key, value in getattr(header, name).items()
        }
        about |= {
            "params": xxh3_64_hexdigest(json.dumps(header.params).encode()),
            "weights": header.weights,
            "header_crc32": text_checksum(header.to_json()),
        }
    return {"rows": rows.shape[0], "width": rows.shape[1], **about, "content": digest.hexdigest()}
