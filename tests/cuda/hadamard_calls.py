"""The Hadamard kernels' arguments, made from a parameter's shape as the sketch makes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pntk.projection.bits import philox_words_numpy, stream_id
from pntk.projection.cuda import TYPES
from pntk.projection.hadamard import HadamardSketch
from pntk.projection.signs import TileSigns
from pntk.projection.sketch import Columns, Windows
from pntk.projection.spec import ProjectionSpec
from pntk.projection.tiles import TileLayout, padded

NAME = "layer.weight"
CPU = torch.device("cpu")


@dataclass
class Map:
    """One parameter's map, as the kernels of ``module`` take it and as float64 reference."""

    module: Any
    shape: tuple[int, ...]
    proj_dim: int
    seed: int = 7

    def __post_init__(self) -> None:
        spec = ProjectionSpec("hadamard", self.proj_dim, seed=self.seed)
        self.layout = t = TileLayout.of(self.shape, self.proj_dim)
        self.reference = HadamardSketch(
            spec, NAME, self.shape, dtype=torch.float64, device=CPU, workspace=1 << 20
        )
        signs = TileSigns(spec, NAME, t, dtype=torch.float32, device=CPU)
        gammas = [g ^ signs.base for g in signs.gamma_columns + signs.gamma_rows]
        self.row_diagonal, self.column_diagonal = signs.row_diagonal, signs.column_diagonal
        self.diagonals = torch.cat([signs.row_diagonal, signs.column_diagonal])
        self.shifts = torch.tensor(signs.rho + gammas, dtype=torch.int32)
        count = t.column_blocks * t.padded_rows * t.ki
        stream = stream_id("hadamard", self.proj_dim, "entries", 0, NAME)
        words = philox_words_numpy(self.seed, stream, 0, -(-count // 32))
        self.signs = torch.from_numpy(words.view(np.int32).copy())
        sizes = [t.rows, t.channels, t.positions, t.ko, t.ki]
        self.tiles = [*sizes, int(t.per_position), int(t.vector)]
        self._signs = self.shifts.data_ptr(), self.signs.data_ptr()
        self._map = self.tiles, self.diagonals.data_ptr(), *self._signs

    def empty(self, splits: int, batch: int) -> Tensor:
        """Return what a kernel must write whole."""
        return torch.full((splits, batch, self.proj_dim), math.nan)

    def gradient(self, g: Tensor, splits: int) -> Tensor:
        to = self.empty(splits, g.shape[0])
        flat = g.reshape(g.shape[0], -1).contiguous()
        self.module.gradient(
            *self._map, flat.data_ptr(), TYPES[g.dtype], *flat.shape, splits, to.data_ptr(), 0, 0
        )
        return to.sum(0)

    def products(
        self, rows: Tensor, columns: Columns, planes: int, splits: tuple[int, int]
    ) -> Tensor:
        """Return the sketch of sum_t rows[:, :, t] columns[:, :, t]^T, [b, k]."""
        t, x, windows = self.layout, columns.tensor, columns.windows
        if not t.per_position and windows is not None:
            x, windows = torch.cat(list(windows.patches(x)), dim=1), None
        windows = windows or Windows((1,), (1,), (1,), (rows.shape[2],))
        size = [1] * (5 - x.dim()) + list(x.shape[2:])
        left = mix(self.module, rows, self.row_diagonal, t.ko, planes, last=True)
        right = mix(self.module, x.flatten(2), self.column_diagonal, t.ki, planes, last=False)
        to = self.empty(splits[0] * splits[1], rows.shape[0])
        shape = [rows.shape[0], left.shape[2], rows.shape[2], left.shape[3]]
        self.module.products(
            *(self.tiles, *self._signs),
            *(left.data_ptr(), shape, right.data_ptr(), right.shape[3], planes),
            *(size, windows.sizes(), *splits, to.data_ptr(), 0, 0),
        )
        return to.sum(0)

    def call_products(self, shape: list[int], size: list[int]) -> None:
        """Call the kernel with sizes that it must refuse before it reads anything."""
        windows = [0] * 3 + [1] * 9 + size
        given = self.tiles, *self._signs
        self.module.products(*given, 0, shape, 0, 64, 1, size, windows, 1, 1, 0, 0, 0)

    def lookup(self, ids: Tensor, delta: Tensor, planes: int, splits: int) -> Tensor:
        t = self.layout
        right = mix(
            self.module, delta.transpose(1, 2), self.column_diagonal, t.ki, planes, last=False
        )
        to = self.empty(splits, ids.shape[0])
        self.module.lookup(
            *(*self._map, ids.data_ptr(), right.data_ptr(), planes, *ids.shape, right.shape[3]),
            *(splits, to.data_ptr(), 0, 0),
        )
        return to.sum(0)


def mix(module: Any, x: Tensor, diagonal: Tensor, order: int, planes: int, *, last: bool) -> Tensor:
    """Return H D x in bfloat16 planes: [planes, b, C, T] if ``last``, or [planes, b, T, C]."""
    b, _, t = x.shape
    channels, positions = padded(diagonal.shape[0], 64), padded(t, 8)
    shape = (planes, b, channels, positions) if last else (planes, b, t, channels)
    y = torch.full(shape, math.nan, dtype=torch.bfloat16)
    module.mix(
        *(x.data_ptr(), TYPES[x.dtype], list(x.shape), list(x.stride()), diagonal.data_ptr()),
        *(order, channels, positions, last, planes, y.data_ptr(), 0, 0),
    )
    return y


def error(found: Tensor, expected: Tensor, size: Tensor | None = None) -> float:
    """Return the largest distance of a row from the expected one, relative to its length.

    Args:
        size: length of a row whose terms do not cancel, [b]; used where it is larger.
    """
    distance, length = (found.double() - expected).norm(dim=1), expected.norm(dim=1)
    if size is not None:
        length = torch.maximum(length, size)
    return float((distance / length).nan_to_num(nan=math.inf).max())


def product_size(rows: Tensor, columns: Columns) -> Tensor:
    """Return the root of the summed squares of the products' lengths, [b]."""
    patches = torch.cat(list(columns.patches()), dim=1)
    squares = rows.double().square().sum(1) * patches.double().square().sum(1)
    return squares.sum(1).sqrt()
