"""Symmetric kernels from wherever they are: a matrix, a file, or the rows that they are made of.

Shapes: n samples; k numbers a row; b rows of a block. Everything is handed out in float64, a block
at a time, so that neither kernel nor rows have to fit into memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.ntk.kernel_file import Kernel
from pntk.rows import Rows, as_rows

BLOCK_BYTES = 2**26  # of a block in float64
EPS = torch.finfo(torch.float64).eps
_ZERO = 16  # units in the last place of a kernel that centring leaves where nothing is


class Source(ABC):
    """A symmetric kernel [n, n] that is had in blocks of rows.

    Attributes:
        size: n.
        order: how many eigenvalues may differ from 0.
        eps: relative rounding of the entries.
        zero: Frobenius norm up to which the kernel is zero but for rounding.
    """

    size: int
    order: int
    eps: float
    zero: float = 0.0

    @property
    def step(self) -> int:
        """Rows of a block of the kernel."""
        return max(1, BLOCK_BYTES // (8 * self.size))

    @abstractmethod
    def block(self, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop`` of the kernel, float64 [b, n]."""

    @abstractmethod
    def traces(self) -> tuple[float, float | None]:
        """Return sum_i K[i, i], and sum_ij K[i, j]^2 where one pass gives it.

        Raises:
            ConfigError: an entry is NaN or infinite.
        """

    @abstractmethod
    def gram(self) -> Tensor:
        """Return the matrix [order, order], float64, that has the same eigenvalues but zeros."""

    @abstractmethod
    def apply(self, vector: Tensor) -> Tensor:
        """Return the product [length] with a vector [length] of a matrix that has them too."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Length of the vectors that ``apply`` takes."""

    @abstractmethod
    def centred(self) -> Source:
        """Return H K H, where H = I - 1 1^T / n, without cancellation in float64."""

    def blocks(self, step: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield (start, rows of the kernel), in order."""
        step = self.step if step is None else step
        for start in range(0, self.size, step):
            yield start, self.block(start, min(start + step, self.size))


class Matrix(Source):
    """A kernel whose entries are in memory or on disk.

    Args:
        values: a tensor [n, n], or an open file.
        means: mean of each row [n], which is taken off rows and columns; None for none.
        zero: see :class:`Source`.
    """

    def __init__(
        self, values: Tensor | Kernel, means: Tensor | None = None, zero: float = 0.0
    ) -> None:
        self._values = values
        self._means = means
        self.zero = zero
        if isinstance(values, Kernel):
            self.size, dtype = values.header.shape[0], getattr(torch, values.header.dtype)
        else:
            self.size, dtype = len(values), values.dtype
        self.order = self.size
        self.eps = torch.finfo(dtype).eps

    @property
    def length(self) -> int:
        return self.size

    def block(self, start: int, stop: int) -> Tensor:
        if isinstance(self._values, Kernel):
            block = torch.from_numpy(self._values.read(start, stop).astype(np.float64, copy=False))
        else:
            block = self._values[start:stop].detach().to("cpu", torch.float64)
        if self._means is None:
            return block
        return block - self._means[start:stop, None] - (self._means - self._means.mean())

    def columns(self, start: int, stop: int) -> Tensor:
        """Return columns ``start`` to ``stop`` of a matrix in memory, transposed, [b, n]."""
        assert isinstance(self._values, Tensor)
        return self._values[:, start:stop].T.to("cpu", torch.float64)

    def traces(self) -> tuple[float, float | None]:
        trace = squares = 0.0
        for start, block in self.blocks():
            check_finite(block, start)
            trace += float(block.diagonal(start).sum())
            squares += float(block.square().sum())
        return trace, squares

    def gram(self) -> Tensor:
        whole = torch.empty(self.size, self.size, dtype=torch.float64)
        for start, block in self.blocks():
            whole[start : start + len(block)] = block
        return whole

    def apply(self, vector: Tensor) -> Tensor:
        return torch.cat([block @ vector for _, block in self.blocks()])

    def centred(self) -> Matrix:
        squares, means = 0.0, []
        for start, block in self.blocks():
            check_finite(block, start)
            squares += float(block.square().sum())
            means.append(block.mean(1))
        return Matrix(self._values, torch.cat(means), _ZERO * EPS * squares**0.5)


class RowKernel(Source):
    """The kernel K = Phi Phi^T of rows Phi [n, k]; make it with :func:`from_rows`.

    Args:
        rows: Phi.
        mean: [k], which is taken off each row; None for nothing.
        zero: see :class:`Source`.
    """

    def __init__(self, rows: Rows, mean: Tensor | None = None, zero: float = 0.0) -> None:
        self.rows = rows
        self._mean = mean
        self.zero = zero
        self.size, self.width = rows.shape
        self.order = min(rows.shape)
        self.eps = EPS  # the rows stand for themselves; nothing is rounded before float64
        self._gram: Tensor | None = None
        self._centred: RowKernel | None = None

    @property
    def length(self) -> int:
        return self.width

    @property
    def row_step(self) -> int:
        """Rows of a block of Phi."""
        return max(1, BLOCK_BYTES // (8 * self.width))

    def features(self, step: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield (start, rows of Phi, float64 [b, k])."""
        for start, block in self.rows.blocks(self.row_step if step is None else step):
            yield start, self._exact(block)

    def block(self, start: int, stop: int) -> Tensor:
        left = self._exact(self.rows.block(start, stop))
        return torch.cat([left @ right.T for _, right in self.features()], dim=1)

    @property
    def step(self) -> int:
        return max(1, BLOCK_BYTES // (8 * max(self.size, self.width)))

    def traces(self) -> tuple[float, float | None]:
        trace = 0.0
        for start, block in self.features():
            check_finite(block, start)
            trace += float(block.square().sum())
        return trace, None

    def gram(self) -> Tensor:
        """Return Phi^T Phi [k, k], or K where n is at most k; kept for the next call."""
        if self._gram is None:
            if self.size <= self.width:
                self._gram = torch.cat([block for _, block in self.blocks()])
            else:
                self._gram = self.product(self)
        return self._gram

    def product(self, other: RowKernel) -> Tensor:
        """Return Phi^T Psi [k, k'], float64, where Psi are rows of the same samples."""
        total = torch.zeros(self.width, other.width, dtype=torch.float64)
        if other is self:
            for _, block in self.features():
                total.addmm_(block.T, block)
            return total
        step = min(self.row_step, other.row_step)
        for (_, left), (_, right) in zip(self.features(step), other.features(step), strict=True):
            total.addmm_(left.T, right)
        return total

    def apply(self, vector: Tensor) -> Tensor:
        """Return Phi^T (Phi v) [k]: one pass over the rows."""
        total = torch.zeros_like(vector)
        for _, block in self.features():
            total += block.T @ (block @ vector)
        return total

    def centred(self) -> RowKernel:
        if self._centred is None:
            total, trace = torch.zeros(self.width, dtype=torch.float64), 0.0
            for start, block in self.features():
                check_finite(block, start)
                total += block.sum(0)
                trace += float(block.square().sum())
            self._centred = RowKernel(self.rows, total / self.size, (_ZERO * EPS) ** 2 * trace)
        return self._centred

    def _exact(self, block: Tensor) -> Tensor:
        block = block.to("cpu", torch.float64)
        return block if self._mean is None else block - self._mean


def from_rows(rows: Any) -> RowKernel:
    """Return the kernel K = Phi Phi^T of rows, of which no entry is computed yet.

    Args:
        rows: Phi [n, k]: tensor, array or FeatureStore.

    Raises:
        ConfigError: not two-dimensional, not floating point, or empty.
        StoreError: rows of the store are missing.

    >>> from_rows(torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]])).gram()  # Phi^T Phi
    tensor([[10., 12.],
            [12., 17.]], dtype=torch.float64)
    """
    return RowKernel(as_rows(rows))


def check_finite(block: Tensor, start: int) -> None:
    """Refuse a block [b, m] whose first row is number ``start`` of all, naming the row at fault.

    Raises:
        ConfigError: NaN or infinity.
    """
    finite = block.isfinite().all(1)
    if not bool(finite.all()):
        row = start + int((~finite).nonzero()[0])
        raise ConfigError(
            f"row {row} holds NaN or infinity; expected finite numbers: leave the sample out, or "
            "make it again in higher precision"
        )
