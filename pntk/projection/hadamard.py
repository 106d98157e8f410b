"""The tile-Hadamard sketch in torch, on a gradient and on its factors.

T_IJ = H_ko D_I G_IJ D'_J H_ki
phi[r, c ^ gamma_I] = sum over I, J of S_IJ[r, c] T_IJ[r ^ rho_J, c ^ gamma_J]

docs/projection.md has the definitions and a worked example; ``tiles`` has the shapes, ``signs`` the
random constants. Factors can be transformed before their product (early: many tiles share a factor)
or their product after it (late: many positions are summed into a tile); both give the same rows.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pntk.projection.signs import GROUP, SignCache, TileSigns
from pntk.projection.sketch import (
    WORKSPACE_BYTES,
    Columns,
    SpecSketch,
    pad_last,
    parts,
    scatter_rows,
)
from pntk.projection.spec import ProjectionSpec
from pntk.projection.tiles import TileLayout

# working set of the loops over tiles, so that a tile is still in cache when it is added
CACHE_BYTES = 4 * 2**20
# up to this many rows a token, an embedding's gradient is cheaper whole
DENSE_LOOKUP = 8
# what moving a number costs, in multiply-adds
MOVE_COST = 8


class HadamardSketch(SpecSketch):
    """Tile-Hadamard sketch of one parameter; see :class:`~pntk.projection.sketch.Sketch`."""

    def __init__(
        self,
        spec: ProjectionSpec,
        name: str,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
        workspace: int = WORKSPACE_BYTES,
        cache: SignCache | None = None,
    ) -> None:
        super().__init__(spec, name, shape, dtype=dtype, device=device, workspace=workspace)
        self.tiles = t = TileLayout.of(shape, self.proj_dim)
        self.signs = TileSigns(
            spec, name, t, dtype=dtype, device=device, cache=cache or SignCache()
        )
        self._cache_bytes = min(workspace, CACHE_BYTES)
        self._h_rows = hadamard_matrix(t.ko, dtype, device)
        self._h_columns = hadamard_matrix(t.ki, dtype, device)
        # on the device from the start: a copy in each batch would wait for it
        self._gamma_rows = torch.tensor(self.signs.gamma_rows, device=device)
        blocks_by_shift: dict[int, list[int]] = {}
        for block, shift in enumerate(self.signs.gamma_rows):
            blocks_by_shift.setdefault(shift, []).append(block)
        self._blocks_by_shift = {
            shift: torch.tensor(blocks, device=device) for shift, blocks in blocks_by_shift.items()
        }

    # ---- on a materialised gradient ----------------------------------------------------------

    def add_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        t = self.tiles
        for part in parts(gradient.shape[0], self._tile_bytes(), self._cache_bytes):
            matrix = self._as_matrix(gradient[part].to(self.dtype))
            total = self._total(out[part])
            for j, block in enumerate(matrix.split(t.ki, dim=2)):
                self._add_product(block, total, j, output)
            self._fold(total, out[part])

    def _as_matrix(self, gradient: Tensor) -> Tensor:
        """View [b, *shape] as [b, O, columns]: kernel position outer, channel inner."""
        t, b = self.tiles, gradient.shape[0]
        if t.vector:
            return pad_last(gradient.reshape(b, -1), t.rows * t.channels).view(b, t.rows, -1)
        by_position = gradient.reshape(b, t.rows, t.channels, t.positions).transpose(2, 3)
        if t.per_position and t.positions > 1:
            by_position = pad_last(by_position, t.padded_channels)
        return by_position.reshape(b, t.rows, -1)

    def _add_product(self, block: Tensor, total: Tensor, j: int, output: int) -> None:
        """Add S_J times the transform of one column block G_J [b, O, <= ki] to ``total``.

        An XOR after a Hadamard transform is a Walsh sign pattern before it, so both shifts go into
        the diagonals.
        """
        t, width = self.tiles, block.shape[2]
        channel = (j % t.channel_blocks) * t.ki
        columns = self.signs.column_diagonal[channel : channel + width]
        columns = columns * _walsh(self._h_columns, GROUP * self.signs.gamma_columns[j])[:width]
        rows = _walsh(self._h_rows, self.signs.rho[j]).repeat(t.row_blocks)
        rows = (rows * self.signs.row_diagonal)[: t.rows]
        right = (block * (rows[:, None] * columns)) @ self._h_columns[:width]
        if t.row_blocks == 1:
            tile = self._h_rows[:, : t.rows] @ right
        else:
            right = _pad_rows(right, t.padded_rows)
            tile = (self._h_rows @ right.view(-1, t.ko, t.ki)).view(-1, t.padded_rows, t.ki)
        total.addcmul_(self.signs.entries(output, j, slice(0, t.padded_rows)), tile)

    def _total(self, out: Tensor) -> Tensor:
        """Return [b, padded rows, ki] to add tiles to: ``out`` itself for one row block."""
        t = self.tiles
        if t.row_blocks == 1:
            return out.view(-1, t.ko, t.ki)
        return out.new_zeros(out.shape[0], t.padded_rows, t.ki)

    def _fold(self, total: Tensor, out: Tensor) -> None:
        """Add the row blocks of ``total`` to ``out`` [b, k], each moved by gamma_I."""
        t = self.tiles
        if t.row_blocks == 1:
            return
        blocks = total.view(-1, t.row_blocks, t.ko, t.ki // GROUP, GROUP)
        rows = out.view(-1, t.ko, t.ki // GROUP, GROUP)
        for shift, members in self._blocks_by_shift.items():
            chosen = blocks.index_select(1, members).sum(1)
            rows += chosen[:, :, self._range(t.ki // GROUP) ^ shift]

    def _range(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device)

    def _tile_bytes(self) -> int:
        """Bytes of one sample's accumulator and tiles of one column block."""
        return 3 * self.tiles.padded_rows * self.tiles.ki * self.dtype.itemsize

    # ---- on factors --------------------------------------------------------------------------

    def _late(self, positions: int) -> bool:
        """Whether to transform products and not factors, by multiply-adds and moves a sample."""
        t = self.tiles
        if positions == 1:
            return False
        width = min(t.ki, t.channels * (1 if t.per_position else t.positions))
        product = t.rows * width * positions
        transform = t.rows * width * t.ki + t.padded_rows * t.ki * min(t.ko, t.rows)
        late = t.column_blocks * (product + transform + MOVE_COST * t.rows * width)
        gathered = MOVE_COST * positions * (t.padded_rows + t.ki)
        early = t.column_blocks * (t.padded_rows * t.ki * positions + gathered)
        early += positions * (t.padded_rows * t.ko + t.padded_channels * t.ki)
        return late < early

    def prepare_rows(self, rows: Tensor, groups: int = 1) -> Tensor:
        """Return H D rows: [b, O, T] -> [b, padded rows, T]; as they are for the late road."""
        rows = rows.to(self.dtype)
        if self.tiles.vector or groups > 1 or self._late(rows.shape[2]):
            return rows.contiguous()
        return _mix(rows, self.signs.row_diagonal, self._h_rows)

    def prepare_columns(self, columns: Columns) -> Columns:
        """Return H D' columns: C -> padded channels (or all P * C together)."""
        t, x, windows = self.tiles, columns.tensor.to(self.dtype), columns.windows
        if windows is not None and windows.groups > 1:
            return Columns(x, windows)
        if windows is not None:
            x, windows = windows.padded(x)
        positions = x.shape[2] if windows is None else math.prod(windows.grid)
        if t.vector or self._late(positions):
            return Columns(x, windows)
        if not t.per_position and windows is not None:
            x, windows = torch.cat(list(windows.patches(x)), dim=1), None
        mixed = _mix(x.flatten(2), self.signs.column_diagonal, self._h_columns)
        return Columns(mixed.view(x.shape[0], t.padded_channels, *x.shape[2:]), windows)

    def add_products(self, rows: Tensor, columns: Columns, out: Tensor, output: int = 0) -> None:
        grouped = columns.windows is not None and columns.windows.groups > 1
        if self.tiles.vector or grouped:  # neither has tiles that are products of factors
            super().add_products(rows, columns, out, output)
            return
        positions = rows.shape[2]
        add = self._add_late if self._late(positions) else self._add_early
        each = self._tile_bytes()
        each += positions * (self.tiles.padded_rows + self.tiles.ki) * self.dtype.itemsize
        for part in parts(rows.shape[0], each, self._cache_bytes):
            total = self._total(out[part])
            add(rows[part], Columns(columns.tensor[part], columns.windows), total, output)
            self._fold(total, out[part])

    def _add_late(self, rows: Tensor, columns: Columns, total: Tensor, output: int) -> None:
        t = self.tiles
        patches = columns.patches()
        if not t.per_position:
            patches = iter([torch.cat(list(patches), dim=1)])
        blocks = (block for patch in patches for block in patch.split(t.ki, dim=1))
        for j, block in enumerate(blocks):
            self._add_product(torch.bmm(rows, block.transpose(1, 2)), total, j, output)

    def _add_early(self, rows: Tensor, columns: Columns, total: Tensor, output: int) -> None:
        """Add S_J times the tile products of every column block, some row blocks at a time."""
        t = self.tiles
        row_bytes = rows.shape[0] * self._tile_bytes() // t.row_blocks
        for blocks in parts(t.row_blocks, row_bytes, self.workspace):
            chosen = slice(blocks.start * t.ko, blocks.stop * t.ko)
            self._add_tiles(rows[:, chosen], columns, total[:, chosen], chosen, output)

    def _add_tiles(
        self, rows: Tensor, columns: Columns, total: Tensor, chosen: slice, output: int
    ) -> None:
        t = self.tiles
        b, count, positions = rows.shape
        tiles = rows.new_empty(b, count, t.ki)
        row_index, group_index = self._range(count), self._range(t.ki // GROUP)
        patches = (block for patch in columns.patches() for block in patch.split(t.ki, dim=1))
        for j, block in enumerate(patches):
            grouped = block.reshape(b, t.ki // GROUP, GROUP * positions)
            shift = group_index ^ self.signs.gamma_columns[j]
            right = grouped.index_select(1, shift).view(b, t.ki, positions)
            left = rows.index_select(1, row_index ^ self.signs.rho[j])
            if positions == 1:
                torch.mul(left, right.transpose(1, 2), out=tiles)
            else:
                torch.bmm(left, right.transpose(1, 2), out=tiles)
            total.addcmul_(self.signs.entries(output, j, chosen), tiles)

    # ---- on look-ups -------------------------------------------------------------------------

    def add_lookup(self, ids: Tensor, delta: Tensor, out: Tensor, output: int = 0) -> None:
        t, tokens = self.tiles, ids.shape[1]
        if t.vector or t.rows <= DENSE_LOOKUP * tokens:
            for part in parts(ids.shape[0], self.size * self.dtype.itemsize, self.workspace):
                dense = scatter_rows(ids[part], delta[part].to(self.dtype), self.shape[0])
                self.add_gradient(dense, out[part], output)
            return
        columns = _mix(
            delta.to(self.dtype).transpose(1, 2), self.signs.column_diagonal, self._h_columns
        ).transpose(1, 2)
        each = 3 * tokens * t.ko * t.ki * self.dtype.itemsize
        for part in parts(ids.shape[0], each, self.workspace):
            for j in range(t.column_blocks):
                block = columns[part, :, j * t.ki : (j + 1) * t.ki]
                self._add_looked_up(ids[part], block, out[part], j, output)

    def _add_looked_up(self, ids: Tensor, block: Tensor, out: Tensor, j: int, output: int) -> None:
        """Add one column block of an embedding: each token is a rank-one tile of its own."""
        t, groups = self.tiles, self.tiles.ki // GROUP
        flat = ids.reshape(-1)
        gamma = self._gamma_rows[flat // t.ko]
        # columns in the order in which gamma_I leaves them
        order = self._range(groups) ^ gamma[:, None]
        shifted = (order ^ self.signs.gamma_columns[j])[..., None].expand(-1, -1, GROUP)
        right = block.reshape(-1, groups, GROUP).gather(1, shifted).view(-1, 1, t.ki)
        r = self._range(t.ko) ^ self.signs.rho[j]
        left = self._h_rows[:, r][flat % t.ko] * self.signs.row_diagonal[flat, None]
        table = self.signs.entries(output, j, slice(0, t.padded_rows))
        entries = table.view(t.row_blocks, t.ko, groups, GROUP)[flat // t.ko]
        entries = entries.gather(2, order[:, None, :, None].expand(-1, t.ko, -1, GROUP))
        tiles = entries.view(-1, t.ko, t.ki).mul_(left[:, :, None]).mul_(right)
        out += tiles.view(*ids.shape, -1).sum(1)


def _mix(x: Tensor, diagonal: Tensor, h: Tensor) -> Tensor:
    """Return H D x over the second axis, block by block: [b, C, L] -> [b, padded C, L]."""
    b, c, length = x.shape
    order, padded = h.shape[0], diagonal.shape[0]
    if length == 1:
        flat = pad_last(x.reshape(b, c) * diagonal[:c], padded)
        return (flat.view(-1, order) @ h).view(b, padded, 1)
    if padded == order:
        return (h[:, :c] * diagonal[:c]) @ x
    blocks = h * diagonal.view(-1, 1, order)  # [blocks, order, order]
    return (blocks @ _pad_rows(x, padded).reshape(b, padded // order, order, length)).view(
        b, padded, length
    )


def _pad_rows(x: Tensor, rows: int) -> Tensor:
    """Zero-pad the second axis of [b, rows, L]."""
    return x if x.shape[1] == rows else F.pad(x, (0, 0, 0, rows - x.shape[1]))


def _walsh(h: Tensor, shift: int) -> Tensor:
    """Return the signs of one row of a Hadamard matrix."""
    return torch.sign(h[shift])


@functools.lru_cache(maxsize=32)
def hadamard_matrix(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the orthonormal Sylvester matrix [order, order]."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < order:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return (h / order**0.5).to(dtype=dtype, device=device)
