"""Rows of targets as scores need them: as they are, of norm 1, or multiplied by an inverse.

Shapes: n training samples; m targets; k width of a row; b rows of a block; C checkpoints.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pntk.attribution.checkpoints import Checkpoint
from pntk.attribution.ridge import Ridge, Solver, gram
from pntk.errors import ConfigError
from pntk.rows import Rows, row_norms

_BLOCK_BYTES = 2**25
_LEAST_BLOCK = 64


class Targets(Protocol):
    """What gives rows of targets."""

    def block(self, checkpoint: int, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop`` [b, k] of a checkpoint."""


class Plain:
    """Rows as they are, or of norm 1.

    Args:
        unit: whether to divide by the norms.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], unit: bool) -> None:
        self._rows = [checkpoint.test for checkpoint in checkpoints]
        self._unit = unit

    def block(self, checkpoint: int, start: int, stop: int) -> Tensor:
        rows = self._rows[checkpoint].block(start, stop)
        return unit_rows(rows) if self._unit else rows


class Solved:
    """Rows multiplied by (G + lambda I)^-1, in memory or in a temporary file.

    Args:
        dtype: in which they are kept.
        budget: bytes that the work may take.
        mean: whether G is divided by n.
        device: where it is solved.

    Attributes:
        ridges: lambda of each checkpoint.

    Raises:
        ConfigError: singular, or a budget that is too small; names one that would do.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        dtype: torch.dtype,
        budget: int,
        ridge: Ridge,
        mean: bool,
        device: torch.device,
    ) -> None:
        self.ridges: list[float] = []
        self._kept: list[Tensor] = []
        m = checkpoints[0].test.shape[0]
        size = sum(m * checkpoint.width * dtype.itemsize for checkpoint in checkpoints)
        needed = check_solvable(max(checkpoint.width for checkpoint in checkpoints), ridge, budget)
        in_memory = size + needed <= budget
        room = budget - size * in_memory - needed
        for checkpoint in checkpoints:
            block = block_rows(checkpoint.width, room)
            solver = solver_of(checkpoint.train, block, ridge, mean, device)
            self.ridges.append(solver.ridge)
            kept = self._room((m, checkpoint.width), dtype, in_memory)
            for start in range(0, m, block):
                rows = checkpoint.test.block(start, start + block)
                kept[start : start + block] = solver(rows).to(dtype)
            self._kept.append(kept)

    @staticmethod
    def _room(shape: tuple[int, int], dtype: torch.dtype, in_memory: bool) -> Tensor:
        if in_memory:
            return torch.empty(shape, dtype=dtype)
        kind = np.float64 if dtype == torch.float64 else np.float32
        with tempfile.TemporaryFile() as file:  # it stays for as long as it is mapped
            return torch.from_numpy(np.memmap(file, kind, "w+", shape=shape))

    def block(self, checkpoint: int, start: int, stop: int) -> Tensor:
        return self._kept[checkpoint][start:stop]


def solver_of(rows: Rows, block: int, ridge: Ridge, mean: bool, device: torch.device) -> Solver:
    """Return what solves with G + lambda I, or G / n + lambda I, of training rows."""
    n, _ = rows.shape
    matrix = gram(rows, block, device)
    return Solver(matrix.div_(n) if mean else matrix, n, ridge)


def block_rows(k: int, room: int) -> int:
    """Return how many rows to solve with at a time, where so many bytes are left."""
    return _LEAST_BLOCK + min(_BLOCK_BYTES, room // 4) // (8 * k)


def check_solvable(k: int, ridge: Ridge, budget: int) -> int:
    """Return the least that solving takes.

    Args:
        budget: half of what the work may take.

    Raises:
        ConfigError: it is more than the budget; names one that would do.
    """
    needed = solver_bytes(k, ridge)
    if needed > budget:
        raise ConfigError(
            f"memory_budget is {2 * budget:,} bytes, of which half is for solving; to invert "
            f"[{k:,}, {k:,}] takes {needed:,}: use memory_budget={2 * needed}"
        )
    return needed


def solver_bytes(k: int, ridge: Ridge) -> int:
    """Return the least that the Gram matrix, its factor or eigenvalues, and blocks of rows take."""
    matrices = 3 if ridge == "auto" else 2
    return 8 * k * (matrices * k + 4 * _LEAST_BLOCK)


def unit_rows(rows: Tensor) -> Tensor:
    """Return rows [b, k] divided by their norms; rows of zeros stay."""
    norms = row_norms(rows)
    return rows / norms.masked_fill(norms == 0, 1)[:, None]
