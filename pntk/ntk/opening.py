"""Open whatever stands for a kernel: a matrix, a file, a store, or rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pntk.errors import ConfigError, StoreError
from pntk.ntk import kernel_file
from pntk.ntk.kernel_file import Kernel, open_kernel
from pntk.ntk.sources import Matrix, Source, check_finite, from_rows
from pntk.store import FeatureStore, layout
from pntk.store.hdf5 import open_hdf5, read_attribute

_SYMMETRIC = 64  # units in the last place by which two products of the same rows may differ


def as_source(kernel: Any, what: str = "kernel") -> Source:
    """Return a kernel that is had in blocks.

    Args:
        kernel: tensor or array [n, n]; an open :class:`pntk.ntk.kernel_file.Kernel`; a FeatureStore
            or what :func:`from_rows` returns; or the path of a kernel or store.
        what: what messages call it.

    Raises:
        ConfigError: not floating point, not square, or not symmetric.
        StoreError: the file cannot be read, or is neither a kernel nor a whole store.
    """
    if isinstance(kernel, (str, os.PathLike)):
        kernel = open_file(kernel)
    if isinstance(kernel, Source):
        return kernel
    if isinstance(kernel, FeatureStore):
        return from_rows(kernel)
    if isinstance(kernel, Kernel):
        header = kernel.header
        if header.entry:
            raise ConfigError(
                f"{kernel.path} holds {' x '.join(map(str, header.entry))} numbers for two samples "
                "(outputs or components); expected one: make it with kind='trace' or 'pntk' and "
                "without components"
            )
        if not header.symmetric and header.rows != header.columns:
            raise ConfigError(
                f"{kernel.path} is the {header.shape[0]:,} x {header.shape[1]:,} kernel between "
                "two sets of rows; expected that of one with itself: pntk.ntk(rows, out=...)"
            )
        return Matrix(kernel)
    if isinstance(kernel, np.ndarray):
        kernel = torch.from_numpy(np.array(kernel))  # torch warns of what cannot be written to
    if not isinstance(kernel, Tensor):
        raise ConfigError(
            f"{what} is a {type(kernel).__name__}; expected a tensor or array [n, n], a kernel or "
            "store, the path of one, or from_rows(rows)"
        )
    if kernel.dim() != 2 or kernel.shape[0] != kernel.shape[1] or not len(kernel):
        raise ConfigError(
            f"{what} has shape {tuple(kernel.shape)}; expected [n, n]: the kernel of rows [n, k] "
            "is from_rows(rows)"
        )
    if not kernel.is_floating_point():
        raise ConfigError(f"{what} is {kernel.dtype}; expected floating point: use .double()")
    matrix = Matrix(kernel.detach())
    _check_symmetric(matrix, what)
    return matrix


def open_file(path: str | os.PathLike[str]) -> Kernel | FeatureStore:
    """Open a kernel, or a store, whichever the file is.

    Raises:
        StoreError: neither of them, or damaged.
    """
    path = Path(os.path.abspath(path))
    with open_hdf5(path) as file:
        found = read_attribute(file, "format")
    if found == kernel_file.FORMAT:
        return open_kernel(path)
    if found == layout.FORMAT:
        return FeatureStore(path)
    raise StoreError(
        f"{path}: is an HDF5 file but neither a pntk kernel nor a pntk store (its attribute "
        f"'format' is {found!r}); choose another path"
    )


def _check_symmetric(matrix: Matrix, what: str) -> None:
    """Refuse a matrix that differs from its transpose by more than rounding."""
    most, at, largest = 0.0, (0, 0), 0.0
    for start, block in matrix.blocks():
        check_finite(block, start)
        mirrored = matrix.columns(start, start + len(block))
        gap = (block - mirrored).abs_()
        largest = max(largest, float(block.abs().max()))
        if float(gap.max()) > most:
            most = float(gap.max())
            i, j = divmod(int(gap.argmax()), matrix.size)
            at = (start + i, j)
    if most > _SYMMETRIC * matrix.eps * largest:
        i, j = at
        raise ConfigError(
            f"{what} is not symmetric: entries [{i}, {j}] and [{j}, {i}] differ by {most:.3g}; "
            "expected K = K^T: use (K + K.T) / 2 where the difference is rounding"
        )
