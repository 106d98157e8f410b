"""The tiling out of an operator's list of integers."""

from __future__ import annotations

from collections.abc import Sequence

from pntk.projection.tiles import TileLayout


def tile_layout(tiles: Sequence[int]) -> TileLayout:
    """Return the tiling of rows O, channels C, positions P, ko, ki, per_position, vector."""
    rows, channels, positions, ko, ki = tiles[:5]
    per_position, vector = map(bool, tiles[5:])
    return TileLayout((), rows, channels, positions, ko, ki, per_position, vector)
