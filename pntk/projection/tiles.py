"""How a parameter of any shape is viewed as a matrix and cut into ko x ki tiles.

Shapes: O rows of the matrix, C channels, P positions (kernel positions of a convolution, else 1);
I, J number row blocks and column blocks; ko * ki = k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pntk.projection.spec import MIN_TILE_COLUMNS

# Of the GPU kernels: the largest ko and ki, and what rows and channels are padded to a multiple of.
MAX_ORDER, PANEL = 256, 64


def padded(size: int, multiple: int) -> int:
    """Return the least multiple that is not below a size.

    >>> padded(65, 64)
    128
    """
    return -(-size // multiple) * multiple


def tile_shape(proj_dim: int) -> tuple[int, int]:
    """Return (ko, ki) with ko * ki = k, both powers of two, ki = 2^ceil(log2(k)/2) >= 8.

    >>> tile_shape(4096), tile_shape(2048), tile_shape(8)
    ((64, 64), (32, 64), (1, 8))
    """
    ki = max(MIN_TILE_COLUMNS, 1 << ((proj_dim.bit_length() - 1 + 1) // 2))
    return proj_dim // ki, ki


@dataclass(frozen=True)
class TileLayout:
    """The tiling of one parameter; a function of its shape and k alone.

    A ``vector``, as what has one row only is, is cut into rows of ki numbers. A tensor of three or
    more axes is read as a convolution kernel [O, C, *P]. ``per_position`` says whether each
    position's channels are padded to a multiple of ki on their own (when C >= ki / 2), or all P * C
    columns are taken together, position outer and channel inner.
    """

    shape: tuple[int, ...]
    rows: int
    channels: int
    positions: int
    ko: int
    ki: int
    per_position: bool
    vector: bool

    @classmethod
    def of(cls, shape: tuple[int, ...], proj_dim: int) -> TileLayout:
        """Return the layout of a parameter with this shape."""
        ko, ki = tile_shape(proj_dim)
        if len(shape) < 2 or shape[0] == 1:
            size = math.prod(shape)
            return cls(shape, -(-size // ki), min(size, ki), 1, ko, ki, True, True)
        rows, channels, positions = shape[0], shape[1], math.prod(shape[2:])
        per_position = 2 * channels >= ki or positions == 1
        return cls(shape, rows, channels, positions, ko, ki, per_position, False)

    @property
    def numbers(self) -> list[int]:
        """The layout as compiled kernels take it."""
        flags = [int(self.per_position), int(self.vector)]
        return [self.rows, self.channels, self.positions, self.ko, self.ki, *flags]

    @property
    def row_blocks(self) -> int:
        """Number of tiles on top of each other."""
        return -(-self.rows // self.ko)

    @property
    def channel_blocks(self) -> int:
        """Number of blocks that have a column diagonal of their own."""
        columns = self.channels if self.per_position else self.channels * self.positions
        return -(-columns // self.ki)

    @property
    def column_blocks(self) -> int:
        """Number of tiles beside each other; J = position * channel_blocks + block."""
        return self.channel_blocks * (self.positions if self.per_position else 1)

    @property
    def padded_rows(self) -> int:
        """Rows after padding to whole tiles."""
        return self.row_blocks * self.ko

    @property
    def padded_channels(self) -> int:
        """Columns of one position after padding to whole tiles."""
        return self.channel_blocks * self.ki
