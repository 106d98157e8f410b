import math

import pytest

from pntk.projection.tiles import TileLayout, tile_shape


@pytest.mark.parametrize(
    ("k", "expected"),
    [(8, (1, 8)), (16, (2, 8)), (32, (4, 8)), (64, (8, 8)), (128, (8, 16)), (4096, (64, 64))],
)
def test_tile_shape(k, expected):
    assert tile_shape(k) == expected


@pytest.mark.parametrize("log_k", range(3, 21))
def test_tiles_have_k_entries_and_are_about_square(log_k):
    ko, ki = tile_shape(2**log_k)
    assert ko * ki == 2**log_k
    assert ki == max(8, 2 ** math.ceil(log_k / 2))


@pytest.mark.parametrize(
    ("shape", "k", "rows", "channels", "blocks", "per_position"),
    [
        ((), 64, 1, 1, (1, 1), True),
        ((5,), 64, 1, 5, (1, 1), True),
        ((100,), 64, 13, 8, (2, 1), True),
        ((10, 7), 64, 10, 7, (2, 1), True),
        ((70, 40), 1024, 70, 40, (3, 2), True),
        ((16, 3, 3, 3), 64, 16, 3, (2, 4), False),  # 27 columns together: 3 < 8 / 2
        ((16, 4, 3, 3), 64, 16, 4, (2, 9), True),  # 4 channels padded to 8 for each position
        ((16, 20, 5), 64, 16, 20, (2, 15), True),
        ((16, 1, 1, 1), 64, 16, 1, (2, 1), True),  # one position
        ((3, 2, 2, 3, 2), 128, 3, 2, (1, 2), False),
    ],
)
def test_layout(shape, k, rows, channels, blocks, per_position):
    t = TileLayout.of(shape, k)
    assert (t.rows, t.channels, t.per_position) == (rows, channels, per_position)
    assert (t.row_blocks, t.column_blocks) == blocks
    assert t.padded_rows == blocks[0] * t.ko >= rows
    columns = t.channels if per_position else t.channels * t.positions
    assert t.padded_channels >= columns and t.padded_channels % t.ki == 0


def test_one_row_is_a_vector():
    """Read as a kernel, a position embedding would have a tile for each of its last axis."""
    tiles = TileLayout.of((1, 197, 768), 4096)
    assert tiles.vector and tiles.column_blocks == 1 and tiles.row_blocks == 37
