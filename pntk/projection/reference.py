"""Float64 matrices of every projection, written from the formulas alone.

Slow and explicit on purpose: these are what each implementation is tested against.
"""

from __future__ import annotations

import math

import numpy as np

from pntk.projection.bits import philox_words_numpy, stream_id
from pntk.projection.quantiles import NORMAL_TABLE
from pntk.projection.spec import ProjectionSpec
from pntk.projection.tiles import TileLayout


def projection_matrix(
    spec: ProjectionSpec, name: str, shape: tuple[int, ...], output: int = 0
) -> np.ndarray:
    """Return A_{w,c}: the map from a parameter's flattened gradient to its share of a row.

    Args:
        spec: family, k and seed.
        name: qualified name of the parameter.
        shape: its shape; n = number of elements, in row-major order.
        output: the output coordinate c.

    Returns:
        Array [k, n], float64 ([n, n] for the identity).
    """
    if spec.family == "hadamard":
        return _hadamard(spec, name, shape, output)
    if spec.family == "identity":
        return np.eye(math.prod(shape))
    return _dense(spec, name, math.prod(shape), output)


def hadamard_matrix(order: int) -> np.ndarray:
    """Return the orthonormal Sylvester matrix: H[i, j] = (-1)^popcount(i & j) / sqrt(order)."""
    index = np.arange(order)
    parity = np.array([[(i & j).bit_count() & 1 for j in index.tolist()] for i in index.tolist()])
    return (1.0 - 2.0 * parity) / math.sqrt(order)


def _hadamard(spec: ProjectionSpec, name: str, shape: tuple[int, ...], output: int) -> np.ndarray:
    assert spec.proj_dim is not None
    t = TileLayout.of(shape, spec.proj_dim)
    ko, ki = t.ko, t.ki

    def stream(role: str, output: int = 0) -> int:
        return stream_id(spec.family, spec.proj_dim or 0, role, output, name)

    def signs(role: str, count: int, output: int = 0) -> np.ndarray:
        words = philox_words_numpy(spec.seed, stream(role, output), 0, -(-count // 32))
        bits = (words[:, None] >> np.arange(32, dtype=np.uint32)) & 1
        return 1.0 - 2.0 * bits.reshape(-1)[:count]

    def uniform(role: str, count: int, below: int) -> np.ndarray:
        return philox_words_numpy(spec.seed, stream(role), 0, count).astype(np.int64) % below

    d_rows = signs("row_diagonal", t.padded_rows)
    d_columns = signs("column_diagonal", t.padded_channels)
    rho = uniform("row_shift", t.column_blocks, ko)
    gamma_j = 8 * uniform("column_shift", t.column_blocks, ki // 8)
    gamma_i = 8 * uniform("block_shift", t.row_blocks, ki // 8)
    entry_signs = signs("entries", t.column_blocks * t.padded_rows * ki, output)
    s = entry_signs.reshape(t.column_blocks, t.row_blocks, ko, ki)  # [J, I, r, c]

    h_o, h_i = hadamard_matrix(ko), hadamard_matrix(ki)
    r, c = np.arange(ko), np.arange(ki)
    matrix = np.zeros((ko, ki, math.prod(shape)))
    for element in range(math.prod(shape)):
        row, column = _place(t, element)
        block_i, block_j = row // ko, column // ki
        diagonal = column if not t.per_position else column % t.padded_channels
        # T_IJ[r, c] of a gradient that is one at this element and zero elsewhere
        tile = (
            h_o[:, row % ko, None] * d_rows[row] * d_columns[diagonal] * h_i[column % ki, None, :]
        )
        shifted = tile[r ^ rho[block_j]][:, c ^ gamma_j[block_j]]
        matrix[:, c ^ gamma_i[block_i], element] += s[block_j, block_i] * shifted
    return matrix.reshape(ko * ki, -1)


def _place(t: TileLayout, element: int) -> tuple[int, int]:
    """Return (row, padded column) of a row-major element index."""
    if t.vector:
        return divmod(element, t.ki)
    row, rest = divmod(element, t.channels * t.positions)
    channel, position = divmod(rest, t.positions)
    if t.per_position:
        return row, position * t.padded_channels + channel
    return row, position * t.channels + channel


def _dense(spec: ProjectionSpec, name: str, size: int, output: int) -> np.ndarray:
    """P[j, i]: word (i // per_word) * k4 + j, its (i % per_word)-th bit or byte, low end first."""
    assert spec.proj_dim is not None
    k = spec.proj_dim
    k4 = -(-k // 4) * 4
    stream = stream_id(spec.family, k, "entries", output, name)
    per_word = 32 if spec.family == "rademacher" else 4
    words = philox_words_numpy(spec.seed, stream, 0, -(-size // per_word) * k4).reshape(-1, k4)
    matrix = np.empty((k, size))
    for i in range(size):
        word = words[i // per_word, :k]
        if spec.family == "rademacher":
            matrix[:, i] = 1.0 - 2.0 * ((word >> np.uint32(i % 32)) & 1)
        else:
            byte = (word >> np.uint32(8 * (i % 4))) & 0xFF
            matrix[:, i] = NORMAL_TABLE[byte]
    if spec.family == "normal":
        matrix /= math.sqrt(float(np.mean(NORMAL_TABLE.astype(np.float64) ** 2)))
    return matrix / math.sqrt(k)
