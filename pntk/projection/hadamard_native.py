"""The tile-Hadamard sketch by the compiled CPU kernels: see csrc/cpu/hadamard.h.

The kernels take factors as the layers left them, in any memory order, and transform them a sample
at a time in cache; so nothing is prepared here and nothing of a gradient's size is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pntk.projection import ops
from pntk.projection.signs import TileSigns
from pntk.projection.sketch import AXES, WORKSPACE_BYTES, Columns, Sketch, SpecSketch, Windows
from pntk.projection.spec import ProjectionSpec
from pntk.projection.tiles import TileLayout


class NativeHadamardSketch(SpecSketch):
    """Tile-Hadamard sketch of one parameter, float32 on the CPU; see ``HadamardSketch``."""

    def __init__(
        self,
        spec: ProjectionSpec,
        name: str,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
        workspace: int = WORKSPACE_BYTES,
    ) -> None:
        super().__init__(spec, name, shape, dtype=dtype, device=device, workspace=workspace)
        self.tiles = TileLayout.of(shape, self.proj_dim)
        signs = TileSigns(spec, name, self.tiles, dtype=dtype, device=device)
        self._map = signs.diagonals, signs.shifts, self.tiles.numbers

    def _stream(self, output: int) -> tuple[int, int]:
        return ops.signed(self.spec.seed), ops.signed(self.stream(output))

    def add_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        flat = gradient.reshape(gradient.shape[0], self.size).to(self.dtype).contiguous()
        torch.ops.pntk.hadamard_gradient(flat, *self._map, *self._stream(output), out)

    def prepare_rows(self, rows: Tensor, groups: int = 1) -> Tensor:
        return rows.to(self.dtype)

    def prepare_columns(self, columns: Columns) -> Columns:
        return Columns(columns.tensor.to(self.dtype), columns.windows)

    def add_products(self, rows: Tensor, columns: Columns, out: Tensor, output: int = 0) -> None:
        if self.tiles.vector:  # one row: its products are the gradient itself
            super().add_products(rows, columns, out, output)
        elif rows.shape[2]:
            factors = self._factors(rows, columns)
            torch.ops.pntk.hadamard_factors(*factors, *self._stream(output), out)

    def add_affine(
        self, bias: Sketch, rows: Tensor, columns: Columns, out: Tensor, output: int = 0
    ) -> None:
        if self.tiles.vector or not isinstance(bias, NativeHadamardSketch):
            super().add_affine(bias, rows, columns, out, output)
        elif rows.shape[2]:
            factors = self._factors(rows.to(self.dtype), columns)
            beside = (*bias._map, bias._stream(output)[1])
            torch.ops.pntk.hadamard_affine(*factors, *beside, *self._stream(output), out)

    def _factors(self, rows: Tensor, columns: Columns) -> tuple[Any, ...]:
        windows = columns.windows or Windows((1,), (1,), (1,), (rows.shape[2],))
        b, c, *spatial = columns.tensor.shape
        image = columns.tensor.view(b, c, *[1] * (AXES - len(spatial)), *spatial)
        return rows, image, *self._map, windows.sizes(), windows.groups

    def add_lookup(self, ids: Tensor, delta: Tensor, out: Tensor, output: int = 0) -> None:
        if self.tiles.vector:
            super().add_lookup(ids, delta, out, output)
            return
        delta = delta.to(self.dtype).contiguous()
        torch.ops.pntk.hadamard_lookup(
            ids.contiguous(), delta, *self._map, *self._stream(output), out
        )
