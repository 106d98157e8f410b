"""The tile-Hadamard sketch by the GPU kernels: see ``gpu_ops`` for what they take."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.projection import gpu_ops, ops
from pntk.projection.gpu_vectors import VectorBatch
from pntk.projection.gpu_work import add_splits, as_floats, splits_of
from pntk.projection.signs import SignCache, TileSigns
from pntk.projection.sketch import (
    AXES,
    WORKSPACE_BYTES,
    Columns,
    Sketch,
    SpecSketch,
    Windows,
    parts,
)
from pntk.projection.spec import ProjectionSpec
from pntk.projection.tiles import PANEL, TileLayout, padded

PLANES = {"fp32": 2, "bf16": 1}
# Work of one split, in multiply-adds: some ten microseconds of a multiprocessor, against which
# writing and adding up its k numbers is little.
SPLIT_PRODUCTS = 2**24
SPLIT_PANELS = 16  # panels of 64 x 64 numbers of a gradient
SPLIT_LOOKUPS = 64  # tokens times column blocks


class GpuHadamardSketch(SpecSketch):
    """Tile-Hadamard sketch of one parameter, float32 sums; see ``HadamardSketch``.

    Args:
        impl: ``cuda`` or ``triton``.
        precision: ``fp32`` (factors as two bfloat16 numbers) or ``bf16`` (as one).
        vectors: what may collect the gradients of all vectors of a model.
    """

    def __init__(
        self,
        spec: ProjectionSpec,
        name: str,
        shape: tuple[int, ...],
        *,
        impl: str,
        precision: str,
        dtype: torch.dtype,
        device: torch.device,
        workspace: int = WORKSPACE_BYTES,
        cache: SignCache | None = None,
        vectors: VectorBatch | None = None,
    ) -> None:
        super().__init__(spec, name, shape, dtype=dtype, device=device, workspace=workspace)
        if precision not in PLANES:
            known = " or ".join(PLANES)
            raise ConfigError(f"precision is {precision!r}; hadamard on a GPU has {known}")
        self.impl = impl
        self.planes = PLANES[precision]
        self.tiles = TileLayout.of(shape, self.proj_dim)
        signs = TileSigns(spec, name, self.tiles, dtype=torch.float32, device=device)
        self.row_diagonal, self.column_diagonal = signs.row_diagonal, signs.column_diagonal
        self._diagonals, self.shifts = signs.diagonals, signs.shifts
        self._sizes = self.tiles.numbers
        self._cache = cache or SignCache()
        self._vectors = vectors or VectorBatch(impl, workspace)

    # ---- on a materialised gradient ----------------------------------------------------------

    def add_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        t = self.tiles
        panels = -(-t.padded_rows // PANEL) * -(-t.column_blocks * t.ki // PANEL)
        splits = splits_of(panels, SPLIT_PANELS)
        for part in self._parts(len(gradient), splits, gradient.itemsize * self.size):
            flat = as_floats(gradient[part]).reshape(-1, self.size).contiguous()
            to = self._partial(splits, len(flat))
            gpu_ops.launch("gradient", self.impl, flat, *self._map(output), to)
            add_splits(to, out[part])

    def queue_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        if self._vectors.takes(self):
            self._vectors.add(self, gradient, out, output)
        else:
            self.add_gradient(gradient, out, output)

    # ---- on factors --------------------------------------------------------------------------

    def prepare_rows(self, rows: Tensor, groups: int = 1) -> Tensor:
        """Return H D rows: [b, O, T] -> [b, planes, padded rows, padded T]."""
        if self.tiles.vector or groups > 1:
            return rows.to(self.dtype)
        b, _, positions = rows.shape
        shape = (b, padded(self.tiles.padded_rows, PANEL), padded(positions, 8))
        return self._mixed(rows, self.row_diagonal, self.tiles.ko, shape, positions_last=True)

    def prepare_columns(self, columns: Columns) -> Columns:
        """Return H D' columns: [b, planes, pixels, padded channels]."""
        t, x, windows = self.tiles, columns.tensor, columns.windows
        if t.vector or (windows is not None and windows.groups > 1):
            return Columns(x.to(self.dtype), windows)
        if windows is not None and not t.per_position:
            x, windows = torch.cat(list(windows.patches(x)), dim=1), None
        image = (1,) * (AXES + 2 - x.dim()) + tuple(x.shape[2:])
        flat = x.flatten(2)
        shape = (len(x), flat.shape[2], padded(t.padded_channels, PANEL))
        mixed = self._mixed(flat, self.column_diagonal, t.ki, shape, positions_last=False)
        return Columns(mixed, windows, image)

    def add_products(self, rows: Tensor, columns: Columns, out: Tensor, output: int = 0) -> None:
        grouped = columns.windows is not None and columns.windows.groups > 1
        if self.tiles.vector or grouped:
            super().add_products(rows, columns, out, output)
            return
        windows = columns.windows or Windows((1,), (1,), (1,), (columns.tensor.shape[2],))
        if not math.prod(windows.grid):  # no positions to sum
            return
        by_rows, by_columns = self._product_splits(windows)
        signs = self.entry_signs(output)
        for part in self._parts(len(rows), by_rows * by_columns, 0):
            to = self._partial(by_rows * by_columns, len(rows[part]))
            gpu_ops.launch(
                "products",
                self.impl,
                rows[part].transpose(0, 1).contiguous(),
                columns.tensor[part].transpose(0, 1).contiguous(),
                signs,
                self.shifts,
                self._sizes,
                columns.image,
                windows.sizes(),
                by_rows,
                to,
            )
            add_splits(to, out[part])

    def add_affine(
        self, bias: Sketch, rows: Tensor, columns: Columns, out: Tensor, output: int = 0
    ) -> None:
        groups = 1 if columns.windows is None else columns.windows.groups
        for part in self._parts(len(rows), 1, 2 * self.planes * rows[0].numel()):
            prepared = self.prepare_rows(rows[part], groups)
            some = Columns(columns.tensor[part], columns.windows, columns.image)
            self.add_products(prepared, some, out[part], output)
        bias.queue_gradient(rows.sum(2, dtype=self.dtype), out, output)

    def _product_splits(self, windows: Windows) -> tuple[int, int]:
        """Return into how many ranges rows, and columns, are cut."""
        t = self.tiles
        rows = -(-t.padded_rows // PANEL)
        columns = math.prod(windows.kernel) * -(-t.padded_channels // PANEL)
        # each panel of 64 x 64 is summed over the positions, rounded up to one tensor-core step
        work = rows * columns * PANEL**2 * padded(math.prod(windows.grid), 16)
        wanted = splits_of(work, SPLIT_PRODUCTS)
        by_rows = min(max(1, rows // 2), wanted)  # two rows of panels can share what they read
        return by_rows, min(columns, -(-wanted // by_rows))

    def _mixed(
        self,
        x: Tensor,
        diagonal: Tensor,
        order: int,
        shape: tuple[int, ...],
        *,
        positions_last: bool,
    ) -> Tensor:
        y = torch.empty(self.planes, *shape, dtype=torch.bfloat16, device=self.device)
        gpu_ops.launch("mix", self.impl, as_floats(x), diagonal, order, y, positions_last)
        return y.transpose(0, 1)  # samples first, as everywhere

    # ---- on look-ups -------------------------------------------------------------------------

    def add_lookup(self, ids: Tensor, delta: Tensor, out: Tensor, output: int = 0) -> None:
        t = self.tiles
        if t.vector:
            super().add_lookup(ids, delta.to(self.dtype), out, output)
            return
        splits = min(ids.shape[1], splits_of(ids.shape[1] * t.column_blocks, SPLIT_LOOKUPS))
        each = ids.shape[1] * (2 * self.planes * t.padded_channels + delta.itemsize)
        for part in self._parts(len(ids), splits, each):
            right = self.prepare_columns(Columns(delta[part].transpose(1, 2))).tensor
            to = self._partial(splits, len(right))
            gpu_ops.launch(
                "lookup",
                self.impl,
                ids[part].contiguous(),
                right.transpose(0, 1).contiguous(),
                *self._map(output),
                to,
            )
            add_splits(to, out[part])

    # ---- what the kernels are given ----------------------------------------------------------

    def _map(self, output: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        return self._diagonals, self.entry_signs(output), self.shifts, self._sizes

    def entry_signs(self, output: int) -> Tensor:
        """Return the bits of S, int32, 32 a word: kept where there is room, else made anew."""
        t = self.tiles
        count = -(-t.column_blocks * t.padded_rows * t.ki // 32)

        def make() -> Tensor:
            words = torch.empty(count, dtype=torch.int32, device=self.device)
            seed, stream = ops.signed(self.spec.seed), ops.signed(self.stream(output))
            gpu_ops.launch("bits", self.impl, seed, stream, words)
            return words

        kept = self._cache.get((self.name, output), 4 * count, make)
        return make() if kept is None else kept

    def _partial(self, splits: int, batch: int) -> Tensor:
        return torch.empty(splits, batch, self.proj_dim, device=self.device)

    def _parts(self, batch: int, splits: int, each: int) -> Iterator[slice]:
        """Cut a batch so that partial sums and ``each`` more bytes a sample fit the workspace."""
        return parts(batch, 4 * splits * self.proj_dim + each, self.workspace)
