"""Where the tiles of an exact kernel go: memory or a file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from pntk.ntk.columns import Axes
from pntk.ntk.kernel_file import KernelHeader, KernelWriter

Kernels = Tensor | dict[str, Tensor]


class MemorySink:
    """Kernels in memory.

    Args:
        shape: (n, m).
        axes: of the outputs.
        tile: samples of a tile.
        symmetric: whether tiles stand for their mirror images too.
        named: whether the result is a dict of components.
    """

    def __init__(
        self, shape: tuple[int, int], axes: Axes, tile: int, *, symmetric: bool, named: bool
    ) -> None:
        self.tile = tile
        self._n, self._m = shape
        self._symmetric, self._named = symmetric, named
        self._pairs = axes.pairs * len(axes.kept)
        self._kernels: dict[str, Tensor] = {}

    def missing(self, i: int) -> list[int]:
        return list(range(i if self._symmetric else 0, -(-self._m // self.tile)))

    def write(self, i: int, j: int, kernels: dict[str, Tensor]) -> None:
        rows, columns = (slice(k * self.tile, (k + 1) * self.tile) for k in (i, j))
        for name, kernel in kernels.items():
            if kernel.shape[:2] == (self._n, self._m):
                self._kernels[name] = kernel.cpu()
                continue
            if name not in self._kernels:
                shape = (self._n, self._m, *kernel.shape[2:])
                self._kernels[name] = torch.empty(shape, dtype=kernel.dtype)
            whole = self._kernels[name]
            whole[rows, columns] = kernel.cpu()
            if self._symmetric and i != j:
                whole[columns, rows] = transposed(kernel, self._pairs).cpu()

    def finish(self) -> Kernels:
        return self._kernels if self._named else self._kernels[""]

    def close(self) -> None:
        """Nothing is held."""


class FileSink:
    """Kernels in an HDF5 file; components stand beside each other, [n, m, component, *entry].

    Args:
        out: file to create, or to go on with.
        header: what it is.
        axes: of the outputs.
    """

    def __init__(self, out: str | os.PathLike[str], header: KernelHeader, axes: Axes) -> None:
        self._writer = KernelWriter.open(out, header)
        self.tile = self._writer.header.tile
        self._pairs = axes.pairs * len(axes.kept)
        self._names = header.components

    def missing(self, i: int) -> list[int]:
        return self._writer.missing(i)

    def write(self, i: int, j: int, kernels: dict[str, Tensor]) -> None:
        if self._names:
            kernel = torch.stack([kernels[name] for name in self._names], dim=2)
        else:
            kernel = kernels[""]
        self._writer.write(i, j, kernel.cpu(), transposed(kernel, self._pairs).cpu())

    def finish(self) -> Path:
        return self._writer.finish()

    def close(self) -> None:
        self._writer.close()


def transposed(kernel: Tensor, axes: int) -> Tensor:
    """Return K[j, i, ..., c', c] of K[i, j, ..., c, c'], where c and c' are so many axes each."""
    kernel = kernel.transpose(0, 1)
    if not axes:
        return kernel
    last = kernel.dim()
    first, second = range(last - 2 * axes, last - axes), range(last - axes, last)
    return kernel.permute(*range(last - 2 * axes), *second, *first)
