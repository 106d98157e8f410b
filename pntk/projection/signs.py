"""The random constants of one parameter's tile-Hadamard sketch, and a cache for the large ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pntk.projection import bits
from pntk.projection.spec import ProjectionSpec
from pntk.projection.tiles import TileLayout

GROUP = 8  # gamma shifts whole groups of eight columns
SIGN_CACHE_BYTES = 256 * 2**20


class SignCache:
    """Keep sign tensors up to a number of bytes; what does not fit is made anew each time."""

    def __init__(self, limit: int = SIGN_CACHE_BYTES) -> None:
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


class TileSigns:
    """Diagonals, shifts and entry signs.

    All columns are moved by gamma of the first row block, c -> c ^ gamma_0, so that a parameter of
    one row block needs no move of its own: ``gamma_rows``, ``gamma_columns`` and the entry signs
    are relative to it.

    Attributes:
        row_diagonal: [padded rows]; column_diagonal: [padded channels].
        rho: row shift of each column block.
        gamma_columns, gamma_rows: shift of each column block and row block, in groups of eight.
        base: gamma_0 itself.
    """

    def __init__(
        self,
        spec: ProjectionSpec,
        name: str,
        tiles: TileLayout,
        *,
        dtype: torch.dtype,
        device: torch.device,
        cache: SignCache | None = None,
    ) -> None:
        self._spec, self._name, self._tiles = spec, name, tiles
        self._dtype, self._device, self._cache = dtype, device, cache or SignCache()
        self.row_diagonal = self._signs("row_diagonal", 0, tiles.padded_rows)
        self.column_diagonal = self._signs("column_diagonal", 0, tiles.padded_channels)
        self.rho = self._uniform("row_shift", tiles.column_blocks, tiles.ko)
        gamma_rows = self._uniform("block_shift", tiles.row_blocks, tiles.ki // GROUP)
        gamma_columns = self._uniform("column_shift", tiles.column_blocks, tiles.ki // GROUP)
        self.base = gamma_rows[0]
        self.gamma_rows = [gamma ^ self.base for gamma in gamma_rows]
        self.gamma_columns = [gamma ^ self.base for gamma in gamma_columns]

    @property
    def diagonals(self) -> Tensor:
        """The diagonals one after the other, as compiled kernels take them."""
        return torch.cat([self.row_diagonal, self.column_diagonal])

    @property
    def shifts(self) -> Tensor:
        """Int32: rho, gamma of the columns, gamma of the rows, not relative to ``base``."""
        gammas = [gamma ^ self.base for gamma in self.gamma_columns + self.gamma_rows]
        return torch.tensor(self.rho + gammas, dtype=torch.int32, device=self._device)

    def entries(self, output: int, column_block: int, rows: slice) -> Tensor:
        """Return S_J [rows, ki] of one column block."""
        t = self._tiles
        whole = t.column_blocks * t.padded_rows * t.ki
        table = self._cache.get(
            (self._name, output),
            whole * self._dtype.itemsize,
            lambda: self._moved(self._signs("entries", 0, whole, output)),
        )
        if table is not None:
            return table.view(t.column_blocks, t.padded_rows, t.ki)[column_block, rows]
        start = (column_block * t.padded_rows + rows.start) * t.ki
        count = (rows.stop - rows.start) * t.ki
        return self._moved(self._signs("entries", start, count, output))

    def _moved(self, signs: Tensor) -> Tensor:
        groups = self._tiles.ki // GROUP
        order = torch.arange(groups, device=self._device) ^ self.base
        return signs.view(-1, groups, GROUP)[:, order].view(-1, self._tiles.ki)

    def _signs(self, role: str, start: int, count: int, output: int = 0) -> Tensor:
        stream = self._stream(role, output)
        return bits.signs(
            self._spec.seed, stream, start, count, dtype=self._dtype, device=self._device
        )

    def _uniform(self, role: str, count: int, below: int) -> list[int]:
        words = bits.philox_words_numpy(self._spec.seed, self._stream(role, 0), 0, count)
        return (words % below).tolist()

    def _stream(self, role: str, output: int) -> int:
        assert self._spec.proj_dim is not None
        return bits.stream_id(self._spec.family, self._spec.proj_dim, role, output, self._name)
