"""The gradients of many vectors (biases, norms) in one launch.

A vector of n numbers fills a corner of one tile, and a network has two or three vectors a layer: a
launch each would cost more than their arithmetic. Laid end to end, each padded to whole tiles, they
are one long vector whose row blocks have signs of their own. What a vector's map has one of (rho,
gamma_J, the column diagonal) goes onto its numbers as signs, since an XOR after a Hadamard
transform is a Walsh sign pattern before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pntk.projection import gpu_ops
from pntk.projection.gpu_work import add_splits, splits_of
from pntk.projection.signs import GROUP
from pntk.projection.sketch import parts

if TYPE_CHECKING:
    from pntk.projection.hadamard_gpu import GpuHadamardSketch

LARGEST_TILE = 4096  # numbers that a vector is padded to a multiple of
WORD_BITS = 32
SPLIT_TILES = 16


@dataclass(frozen=True)
class LongVector:
    """The map of vectors end to end.

    Attributes:
        places: int64 [n], where the vectors' numbers go; signs: float32 [n], what multiplies them.
        size: of the long vector; diagonals, shifts, tiles: its map, for ``gpu_ops``.
    """

    places: Tensor
    signs: Tensor
    size: int
    diagonals: Tensor
    shifts: Tensor
    tiles: list[int]

    @classmethod
    def of(cls, sketches: list[GpuHadamardSketch]) -> LongVector:
        """Lay out the vectors of sketches."""
        first = sketches[0]
        ko, ki, device = first.tiles.ko, first.tiles.ki, first.device
        places, signs, gamma_rows = [], [], []
        blocks = 0
        for sketch in sketches:
            at = torch.arange(sketch.size, device=device)
            places.append(at + blocks * ko * ki)
            rows, columns = at // ki, at % ki
            rho, gamma = sketch.shifts[0], sketch.shifts[1]
            walsh = _odd(rows % ko & rho) ^ _odd(columns & GROUP * gamma)
            diagonal = sketch.row_diagonal[rows] * sketch.column_diagonal[columns]
            signs.append(diagonal * (1 - 2 * walsh))
            gamma_rows.append(sketch.shifts[2:])
            blocks += sketch.tiles.row_blocks
        return cls(
            torch.cat(places),
            torch.cat(signs),
            blocks * ko * ki,
            torch.ones(blocks * ko + ki, device=device),
            torch.cat([torch.zeros(2, dtype=torch.int32, device=device), *gamma_rows]),
            [blocks * ko, ki, 1, ko, ki, 1, 1],
        )


class VectorBatch:
    """Collects the gradients of vectors, and adds them where it is told to stop."""

    def __init__(self, impl: str, workspace: int) -> None:
        self.impl = impl
        self.workspace = workspace
        self._collecting = False
        self._pending: list[tuple[GpuHadamardSketch, Tensor, Tensor, int]] = []
        self._maps: dict[tuple[str, ...], LongVector] = {}

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep gradients until the end of the context, then add them all."""
        self._collecting = True
        try:
            yield
            self._flush()
        finally:
            self._collecting = False
            self._pending.clear()

    def takes(self, sketch: GpuHadamardSketch) -> bool:
        """Return whether a sketch's gradients are to be given to :meth:`add`."""
        t = sketch.tiles
        whole_words = WORD_BITS <= t.ko * t.ki <= LARGEST_TILE
        return self._collecting and t.vector and whole_words and sketch.size > 0

    def add(self, sketch: GpuHadamardSketch, gradient: Tensor, out: Tensor, output: int) -> None:
        """Keep gradients [b, size] that are to be added to ``out`` [b, k]."""
        self._pending.append((sketch, gradient.reshape(len(gradient), -1), out, output))

    def _flush(self) -> None:
        by_rows: dict[tuple[int, int], list[tuple[GpuHadamardSketch, Tensor, Tensor, int]]] = {}
        for item in self._pending:
            by_rows.setdefault((item[2].data_ptr(), len(item[2])), []).append(item)
        for items in by_rows.values():
            names = tuple(sketch.name for sketch, *_ in items)
            if names not in self._maps:
                self._maps[names] = LongVector.of([sketch for sketch, *_ in items])
            numbers = torch.cat([gradient.float() for _, gradient, _, _ in items], dim=1)
            entries = torch.cat([sketch.entry_signs(output) for sketch, _, _, output in items])
            self._add(self._maps[names], numbers, entries, items[0][2])

    def _add(self, long: LongVector, numbers: Tensor, entries: Tensor, out: Tensor) -> None:
        numbers = numbers * long.signs
        splits = splits_of(long.tiles[0] // long.tiles[3], SPLIT_TILES)
        each = 4 * (long.size + splits * out.shape[1])
        for part in parts(len(out), each, self.workspace):
            laid = numbers.new_zeros(len(out[part]), long.size)
            laid.index_copy_(1, long.places, numbers[part])
            to = out.new_empty(splits, *out[part].shape)
            maps = (long.diagonals, entries, long.shifts, long.tiles)
            gpu_ops.launch("gradient", self.impl, laid, *maps, to)
            add_splits(to, out[part])


def _odd(bits: Tensor) -> Tensor:
    """Return 1 where an odd number of the lowest eight bits is set, else 0."""
    for shift in (4, 2, 1):
        bits = bits ^ (bits >> shift)
    return bits & 1
