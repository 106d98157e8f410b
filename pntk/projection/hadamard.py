"""The tile-Hadamard sketch in torch, on a gradient and on its factors.

T_IJ = H_ko D_I G_IJ D'_J H_ki
phi[r, c ^ gamma_I] = sum over I, J of S_IJ[r, c] T_IJ[r ^ rho_J, c ^ gamma_J]

docs/projection.md has the definitions and a worked example; ``tiles`` has the shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pntk.projection import bits
from pntk.projection.sketch import WORKSPACE_BYTES, Columns, Sketch, pad_last, parts, scatter_rows
from pntk.projection.spec import ProjectionSpec
from pntk.projection.tiles import TileLayout

GROUP = 8  # gamma shifts whole groups of eight columns
DENSE_LOOKUP = 8  # up to this many rows a token, an embedding's gradient is cheaper whole


class SignCache:
    """Keep sign tensors up to a number of bytes; what does not fit is made anew each time."""

    def __init__(self, limit: int = 256 * 2**20) -> None:
        self.left = limit
        self._kept: dict[object, Tensor] = {}

    def get(self, key: object, nbytes: int, make: Callable[[], Tensor]) -> Tensor | None:
        """Return the tensor of this key, made once; None when there is no room to keep it."""
        if key not in self._kept:
            if nbytes > self.left:
                return None
            self.left -= nbytes
            self._kept[key] = make()
        return self._kept[key]


class HadamardSketch(Sketch):
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
        super().__init__(name, shape, dtype=dtype, device=device, workspace=workspace)
        assert spec.proj_dim is not None
        self.spec = spec
        self.tiles = t = TileLayout.of(shape, spec.proj_dim)
        self._cache = cache if cache is not None else SignCache()
        self._h_rows = hadamard_matrix(t.ko, dtype, device)
        self._h_columns = hadamard_matrix(t.ki, dtype, device)
        self._row_diagonal = self._signs("row_diagonal", 0, t.padded_rows)
        self._column_diagonal = self._signs("column_diagonal", 0, t.padded_channels)
        self._rho = self._uniform("row_shift", t.column_blocks, t.ko)
        self._gamma_columns = self._uniform("column_shift", t.column_blocks, t.ki // GROUP)
        self._gamma_rows = self._uniform("block_shift", t.row_blocks, t.ki // GROUP)
        self._blocks_by_shift: dict[int, list[int]] = {}
        for block, shift in enumerate(self._gamma_rows):
            self._blocks_by_shift.setdefault(shift, []).append(block)

    # ---- random bits -------------------------------------------------------------------------

    def _stream(self, role: str, output: int = 0) -> int:
        assert self.spec.proj_dim is not None
        return bits.stream_id(self.spec.family, self.spec.proj_dim, role, output, self.name)

    def _signs(self, role: str, start: int, count: int, output: int = 0) -> Tensor:
        stream = self._stream(role, output)
        return bits.signs(
            self.spec.seed, stream, start, count, dtype=self.dtype, device=self.device
        )

    def _uniform(self, role: str, count: int, below: int) -> list[int]:
        words = bits.philox_words_numpy(self.spec.seed, self._stream(role), 0, count)
        return (words % below).tolist()

    def _entry_signs(self, output: int, column_block: int, rows: slice) -> Tensor:
        """Return S_J [rows, ki] of one column block."""
        t = self.tiles
        whole = t.column_blocks * t.padded_rows * t.ki
        table = self._cache.get(
            (self.name, output),
            whole * self.dtype.itemsize,
            lambda: self._signs("entries", 0, whole, output),
        )
        if table is not None:
            return table.view(t.column_blocks, t.padded_rows, t.ki)[column_block, rows]
        start = (column_block * t.padded_rows + rows.start) * t.ki
        count = (rows.stop - rows.start) * t.ki
        return self._signs("entries", start, count, output).view(-1, t.ki)

    # ---- on a materialised gradient ----------------------------------------------------------

    def add_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        t = self.tiles
        nbytes = 4 * t.padded_rows * t.ki * self.dtype.itemsize
        for part in parts(gradient.shape[0], nbytes, self.workspace):
            matrix = self._as_matrix(gradient[part].to(self.dtype))
            total = matrix.new_zeros(matrix.shape[0], t.padded_rows, t.ki)
            for j in range(t.column_blocks):
                block = matrix[:, :, j * t.ki : (j + 1) * t.ki]
                tile = self._transform_tiles(block, j)
                total.addcmul_(self._entry_signs(output, j, slice(0, t.padded_rows)), tile)
            self._fold(total, out[part])

    def _as_matrix(self, gradient: Tensor) -> Tensor:
        """View [b, *shape] as [b, O, padded columns]; kernel position outer, channel inner."""
        t, b = self.tiles, gradient.shape[0]
        if len(t.shape) < 2:
            return pad_last(gradient.reshape(b, -1), t.rows * t.ki).view(b, t.rows, t.ki)
        by_position = gradient.reshape(b, t.rows, t.channels, t.positions).transpose(2, 3)
        if t.per_position:
            by_position = pad_last(by_position, t.padded_channels)
        return pad_last(by_position.reshape(b, t.rows, -1), t.column_blocks * t.ki)

    def _transform_tiles(self, block: Tensor, j: int) -> Tensor:
        """Return T_IJ[r ^ rho_J, c ^ gamma_J], [b, padded rows, ki], of a block [b, O, ki].

        An XOR after a Hadamard transform is a Walsh sign pattern before it, so both shifts go into
        the diagonals.
        """
        t = self.tiles
        channel = (j % t.channel_blocks) * t.ki
        columns = self._column_diagonal[channel : channel + t.ki]
        columns = columns * self._walsh(t.ki, GROUP * self._gamma_columns[j])
        rows = self._walsh(t.ko, self._rho[j]).repeat(t.row_blocks) * self._row_diagonal
        right = (block * (rows[: t.rows, None] * columns)) @ self._h_columns
        if t.rows < t.ko:
            return self._h_rows[:, : t.rows] @ right
        if t.rows < t.padded_rows:
            right = pad_last(right.transpose(1, 2), t.padded_rows).transpose(1, 2)
        tiles = right.reshape(-1, t.ko, t.ki)
        return (self._h_rows @ tiles).view(-1, t.padded_rows, t.ki)

    def _walsh(self, order: int, shift: int) -> Tensor:
        h = self._h_columns if order == self.tiles.ki else self._h_rows
        return torch.sign(h[shift])

    def _fold(self, total: Tensor, out: Tensor) -> None:
        """Add the row blocks of [b, padded rows, ki] to ``out`` [b, k], each shifted by gamma_I."""
        t = self.tiles
        blocks = total.view(-1, t.row_blocks, t.ko, t.ki // GROUP, GROUP)
        rows = out.view(-1, t.ko, t.ki // GROUP, GROUP)
        for shift, members in self._blocks_by_shift.items():
            chosen = blocks[:, members[0]] if len(members) == 1 else blocks[:, members].sum(1)
            rows += chosen[:, :, self._xor(t.ki // GROUP, shift)]

    def _xor(self, count: int, shift: int) -> Tensor:
        return torch.arange(count, device=self.device) ^ shift

    # ---- on factors --------------------------------------------------------------------------

    def prepare_rows(self, rows: Tensor) -> Tensor:
        """Return H D rows: [b, O, T] -> [b, padded rows, T]."""
        t = self.tiles
        b, _, positions = rows.shape
        signed = rows.to(self.dtype) * self._row_diagonal[: t.rows, None]
        if positions == 1:
            flat = pad_last(signed.view(b, t.rows), t.padded_rows)
            return (flat.view(-1, t.ko) @ self._h_rows).view(b, t.padded_rows, 1)
        if t.rows < t.ko:
            return self._h_rows[:, : t.rows] @ signed
        if t.rows < t.padded_rows:
            signed = pad_last(signed.transpose(1, 2), t.padded_rows).transpose(1, 2)
        return (self._h_rows @ signed.reshape(-1, t.ko, positions)).view(b, t.padded_rows, -1)

    def prepare_columns(self, columns: Columns) -> Columns:
        """Return H D' columns: the last axis C -> padded channels (or all P * C together)."""
        t, x, windows = self.tiles, columns.tensor.to(self.dtype), columns.windows
        if not t.per_position and windows is not None:
            x, windows = torch.cat(list(windows.patches(x)), dim=-1), None
        width = x.shape[-1]
        signed = pad_last(x * self._column_diagonal[:width], t.padded_channels)
        mixed = signed.reshape(-1, t.ki) @ self._h_columns
        return Columns(mixed.view(*x.shape[:-1], t.padded_channels), windows)

    def add_products(self, rows: Tensor, columns: Columns, out: Tensor, output: int = 0) -> None:
        t = self.tiles
        positions = rows.shape[2]
        itemsize = self.dtype.itemsize
        # of each sample: accumulator, finished tiles and gathered rows
        row_bytes = t.ko * (2 * t.ki + positions) * itemsize
        for part in parts(rows.shape[0], t.row_blocks * row_bytes, self.workspace):
            left, right = rows[part], columns.tensor[part]
            total = left.new_zeros(left.shape[0], t.padded_rows, t.ki)
            for blocks in parts(t.row_blocks, left.shape[0] * row_bytes, self.workspace):
                chosen = slice(blocks.start * t.ko, blocks.stop * t.ko)
                whole = chosen.start == 0 and chosen.stop == t.padded_rows
                self._add_tiles(
                    left if whole else left[:, chosen],
                    Columns(right, columns.windows),
                    total if whole else total[:, chosen],
                    chosen,
                    output,
                )
            self._fold(total, out[part])

    def _add_tiles(
        self, rows: Tensor, columns: Columns, total: Tensor, chosen: slice, output: int
    ) -> None:
        """Add S_J times the tile products of every column block to ``total`` [b, rows, ki]."""
        t = self.tiles
        b, count, positions = rows.shape
        finished = rows.new_empty(b, count, t.ki)
        row_index = torch.arange(count, device=self.device)
        windows = columns.windows
        patches = [columns.tensor] if windows is None else windows.patches(columns.tensor)
        j = 0
        for patch in patches:
            grouped = patch.view(b, positions, -1, t.ki // GROUP, GROUP)
            for block in range(grouped.shape[2]):
                shift = self._xor(t.ki // GROUP, self._gamma_columns[j])
                right = grouped[:, :, block].index_select(2, shift).view(b, positions, t.ki)
                left = rows.index_select(1, row_index ^ self._rho[j])
                if positions == 1:
                    torch.mul(left, right, out=finished)
                else:
                    torch.bmm(left, right, out=finished)
                total.addcmul_(self._entry_signs(output, j, chosen), finished)
                j += 1

    def add_lookup(self, ids: Tensor, delta: Tensor, out: Tensor, output: int = 0) -> None:
        t = self.tiles
        if t.rows <= DENSE_LOOKUP * ids.shape[1]:
            nbytes = self.size * self.dtype.itemsize
            for part in parts(ids.shape[0], nbytes, self.workspace):
                dense = scatter_rows(ids[part], delta[part].to(self.dtype), t.rows)
                self.add_gradient(dense, out[part], output)
            return
        columns = self.prepare_columns(Columns(delta)).tensor
        for part in parts(ids.shape[0], 2 * ids.shape[1] * t.ko * t.ki * 4, self.workspace):
            for j in range(t.column_blocks):
                self._add_looked_up(ids[part], columns[part], out[part], j, output)

    def _add_looked_up(
        self, ids: Tensor, columns: Tensor, out: Tensor, j: int, output: int
    ) -> None:
        """Add one column block of an embedding: each token is a rank-one tile of its own."""
        t = self.tiles
        b, tokens = ids.shape
        flat, blocks = ids.reshape(-1), ids.reshape(-1) // t.ko
        gamma = torch.tensor(self._gamma_rows, device=self.device)[blocks]
        groups = torch.arange(t.ki // GROUP, device=self.device)
        # columns, in the order in which gamma_I leaves them: c -> c ^ gamma_I ^ gamma_J
        order = groups ^ gamma[:, None]
        right = columns[..., j * t.ki : (j + 1) * t.ki].reshape(-1, t.ki // GROUP, GROUP)
        shifted = (order ^ self._gamma_columns[j])[..., None].expand(-1, -1, GROUP)
        right = right.gather(1, shifted).view(-1, 1, t.ki)
        # rows: D H[r ^ rho_J, id % ko]
        r = torch.arange(t.ko, device=self.device) ^ self._rho[j]
        left = self._h_rows[:, r][flat % t.ko] * self._row_diagonal[flat, None]
        signs = self._entry_signs(output, j, slice(0, t.padded_rows))
        signs = signs.view(t.row_blocks, t.ko, t.ki // GROUP, GROUP)[blocks]
        signs = signs.gather(2, order[:, None, :, None].expand(-1, t.ko, -1, GROUP))
        tiles = signs.view(-1, t.ko, t.ki) * left[:, :, None]
        out += tiles.mul_(right).view(b, tokens, -1).sum(1)


@functools.lru_cache(maxsize=32)
def hadamard_matrix(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the orthonormal Sylvester matrix [order, order]."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < order:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return (h / order**0.5).to(dtype=dtype, device=device)
