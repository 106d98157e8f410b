"""Rows as a surrogate uses them: scaled, in blocks, and never copied as a whole.

Shapes: n examples; k numbers a row; c columns of coefficients; b rows of a block. Rows stay as
they are: their scale is put on what is made of them, s * (Phi W) and Phi^T (s * R).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.host import available_memory
from pntk.ntk.sources import check_finite
from pntk.rows import Rows, row_norms
from pntk.store import FeatureStore

NORMALIZE = (True, False, "trntk0")
# Products with few columns reach the speed of memory only where they are tall: with 512 rows of
# 4,096 they take six times as long as with 16,384.
_BLOCK_BYTES, _BLOCK_BYTES_ON_DISK = 2**28, 2**26
_SQUARE_ROWS = 4096  # rows of a product that is wide, or of a copy


class Design:
    """Scaled rows s_i phi_i of examples.

    Args:
        rows: Phi [n, k].
        scale: s, float64 [n].
    """

    def __init__(self, rows: Rows, scale: Tensor) -> None:
        self.rows = rows
        self.scale = scale
        self.size, self.width = rows.shape

    def blocks(self, rows: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield (which examples, their rows [b, k] unscaled), in order."""
        size = _BLOCK_BYTES_ON_DISK if self.on_disk else _BLOCK_BYTES
        size = rows or max(64, size // (self.width * self.rows.dtype.itemsize))
        for start, block in self.rows.blocks(size):
            yield slice(start, start + len(block)), block

    def times(self, right: Tensor) -> Tensor:
        """Return s * (Phi W), float64 [n, c], of W [k, c]."""
        result = torch.empty(self.size, right.shape[1], dtype=torch.float64)
        right = right.to(self.rows.dtype)
        for part, block in self.blocks():
            result[part] = (block @ right).double() * self.scale[part, None]
        return result

    def both(self, right: Tensor, between: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """Return Phi^T (s * R), float64 [k, c], in one pass: R = between(which, s * (Phi W))."""
        total = torch.zeros(self.width, right.shape[1], dtype=torch.float64)
        right = right.to(self.rows.dtype)
        for part, block in self.blocks():
            scale = self.scale[part, None]
            result = between(part, (block @ right).double() * scale)
            total += _transposed_times(block, result * scale)
        return total

    def transposed_times(self, left: Tensor) -> Tensor:
        """Return Phi^T (s * R), float64 [k, c], of R [n, c]."""
        total = torch.zeros(self.width, left.shape[1], dtype=torch.float64)
        for part, block in self.blocks():
            total += _transposed_times(block, left[part] * self.scale[part, None])
        return total

    def gram(self, weights: Tensor) -> Tensor:
        """Return sum_i w_i s_i^2 phi_i phi_i^T, float64 [k, k], of w [n] at least 0."""
        total = torch.zeros(self.width, self.width, dtype=torch.float64)
        factors = (weights.sqrt() * self.scale).to(self.rows.dtype)
        for part, block in self.blocks(_SQUARE_ROWS):
            scaled = block * factors[part, None]
            total += scaled.T @ scaled
        return total

    def squared_norms(self) -> float:
        """Return sum_i s_i^2 |phi_i|^2, the trace of the kernel."""
        return sum(
            float(row_norms(block).double().square() @ self.scale[part].square())
            for part, block in self.blocks(_SQUARE_ROWS)
        )

    def kernel(self, other: Design | None = None) -> Tensor:
        """Return K [n, m], float64, of these examples with others, or with themselves."""
        columns = self if other is None else other
        result = torch.empty(self.size, columns.size, dtype=torch.float64)
        for i, left in self.blocks(_SQUARE_ROWS):
            left = left.double() * self.scale[i, None]
            for j, right in columns.blocks(_SQUARE_ROWS):
                result[i, j] = left @ (right.double() * columns.scale[j, None]).T
        return result

    def sample(self, number: int, seed: int) -> Design:
        """Return some of the examples, drawn without replacement."""
        if number >= self.size:
            return self
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(self.size, generator=generator)[:number].sort().values
        rows = self.rows.source[drawn.numpy() if self.on_disk else drawn]
        return Design(Rows(rows), self.scale[drawn])

    def dense(self) -> Tensor:
        """Return the scaled rows, float64 [n, k]."""
        parts = [
            block.double() * self.scale[part, None] for part, block in self.blocks(_SQUARE_ROWS)
        ]
        return torch.cat(parts)

    @property
    def on_disk(self) -> bool:
        """Whether rows are read anew each time."""
        return isinstance(self.rows.source, FeatureStore)


def _transposed_times(block: Tensor, left: Tensor) -> Tensor:
    """Return Phi^T R, float64 [k, c]; written the other way round it takes six times as long."""
    return (left.to(block.dtype).T @ block).T.double()


def in_memory(rows: Rows) -> Rows:
    """Return the rows of a store as a tensor where a third of the free memory holds them."""
    if not isinstance(rows.source, FeatureStore):
        return rows
    free = available_memory()
    needed = rows.shape[0] * rows.shape[1] * rows.dtype.itemsize
    if free is not None and needed > free // 3:
        return rows
    return Rows(rows.source.read(0, len(rows.source)))


def norms_of(rows: Rows, what: str) -> Tensor:
    """Return |phi_i|, float64 [n].

    Raises:
        ConfigError: a row holds NaN or infinity.
    """
    found = []
    for start, block in rows.blocks(_SQUARE_ROWS):
        norms = row_norms(block)
        if not bool(norms.isfinite().all()):
            try:
                check_finite(block, start)
            except ConfigError as error:
                raise ConfigError(f"{what}: {error}") from None
        found.append(norms.double())
    return torch.cat(found)


def deviation(design: Design) -> float:
    """Return the standard deviation of all n^2 entries of the kernel of examples.

    Raises:
        ConfigError: it is 0.
    """
    ones = torch.ones(design.size, dtype=torch.float64)
    if design.size <= design.width:
        return checked_deviation(design.kernel())
    squares = float(design.gram(ones).square().sum()) / design.size**2
    mean = float(design.transposed_times(ones[:, None]).square().sum()) / design.size**2
    return _checked(squares - mean**2, squares)


def checked_deviation(kernel: Tensor) -> float:
    """Return the standard deviation of the entries of a matrix, which must not be 0."""
    return _checked(float(kernel.var(unbiased=False)), float(kernel.square().mean()))


def _checked(variance: float, squares: float) -> float:
    if variance <= 1e-12 * squares or squares == 0:
        raise ConfigError(
            "normalize='trntk0' divides by the standard deviation of the train kernel, and all its "
            "entries are alike; use normalize=True or False"
        )
    return math.sqrt(variance)
