"""The tangent kernel that rows estimate: K[i, j] = <phi(x_i), phi(x_j)>."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from pntk.errors import ConfigError, StoreError
from pntk.projection.dispatch import why_not_gram
from pntk.projection.gpu_ops import launch
from pntk.rows import as_rows, check_same_map, check_widths, inverse_norms

TILE = 1024


def ntk(
    a: Any,
    b: Any = None,
    *,
    normalize: bool = False,
    out: str | os.PathLike[str] | None = None,
    tile: int = TILE,
    device: torch.device | str = "cpu",
    impl: str = "torch",
) -> Tensor | Path:
    """Return the kernel matrix of rows, tile by tile.

    K = A B^T, where E[K] is the kernel of the output that the rows were made of, with no further
    scaling. ``normalize`` gives the cosine, K[i, j] / sqrt(K[i, i] K[j, j]); rows of zeros give
    zeros.

    Args:
        a: rows [n, k]: tensor, array or FeatureStore.
        b: rows [m, k], or None for ``a`` itself, of which only one triangle is computed.
        normalize: whether to divide by the norms of the rows.
        out: HDF5 file to write instead of memory (data set ``ntk``); it must not exist.
        tile: rows of a tile.
        device: where tiles are multiplied.
        impl: ``torch``, or ``triton``: float32 accuracy on the tensor cores of a GPU.

    Returns:
        Tensor [n, m] of the rows' type on the CPU, or the path of ``out``.

    Raises:
        ConfigError: rows of different widths, maps or kinds, or an ``impl`` that cannot make them.
        StoreError: rows are missing, or ``out`` cannot be written.

    >>> ntk(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), normalize=True)
    tensor([[1.0000, 0.8000],
            [0.8000, 1.0000]])
    """
    if tile < 1:
        raise ConfigError(f"tile is {tile}; expected a positive number of rows")
    check_same_map(a, b)
    left = as_rows(a)
    symmetric = b is None
    right = left if symmetric else as_rows(b)
    check_widths(left, right)
    dtype = torch.promote_types(left.dtype, right.dtype)
    multiply = _multiplier(impl, dtype, device)
    left_scale = right_scale = None
    if normalize:
        left_scale = inverse_norms(left, tile)
        right_scale = left_scale if symmetric else inverse_norms(right, tile)
    shape = (left.shape[0], right.shape[0])

    def tiles() -> Iterator[tuple[slice, slice, Tensor]]:
        for i in range(0, shape[0], tile):
            rows = slice(i, min(i + tile, shape[0]))
            x = left[rows].to(device=device, dtype=dtype)
            x_scale = None if left_scale is None else left_scale[rows].to(x)
            for j in range(i if symmetric else 0, shape[1], tile):
                columns = slice(j, min(j + tile, shape[1]))
                y = right[columns].to(device=device, dtype=dtype)
                y_scale = None if right_scale is None else right_scale[columns].to(y)
                block = multiply(x, y, x_scale, y_scale)
                yield rows, columns, block.cpu()

    if out is not None:
        return _write(Path(out), shape, dtype, symmetric, tiles())
    kernel = torch.empty(shape, dtype=dtype)
    for rows, columns, block in tiles():
        if symmetric and rows != columns:
            kernel[columns, rows] = block.T
        elif symmetric:
            block = _mirrored(block)
        kernel[rows, columns] = block
    return kernel


Multiply = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def _multiplier(impl: str, dtype: torch.dtype, device: torch.device | str) -> Multiply:
    """Return what makes a tile x y^T of rows [n, k] and [m, k], times a scale of each row."""
    if impl == "torch":
        return _multiply
    if impl != "triton":
        raise ConfigError(f"impl is {impl!r}; expected 'torch' or 'triton'")
    reason = why_not_gram(dtype, device)
    if reason:
        raise ConfigError(f"impl='triton' cannot be used: {reason}; use impl='torch'")
    return _multiply_on_tensor_cores


def _multiply_on_tensor_cores(
    x: Tensor, y: Tensor, x_scale: Tensor | None, y_scale: Tensor | None
) -> Tensor:
    block = x.new_empty(len(x), len(y))
    launch("gram", "triton", x.contiguous(), y.contiguous(), x_scale, y_scale, block)
    return block


def _multiply(x: Tensor, y: Tensor, x_scale: Tensor | None, y_scale: Tensor | None) -> Tensor:
    block = (x if x_scale is None else x * x_scale[:, None]) @ y.T
    return block if y_scale is None else block.mul_(y_scale)


def _mirrored(block: Tensor) -> Tensor:
    """Return a diagonal tile with its upper triangle copied below, so that K = K^T exactly."""
    return torch.triu(block) + torch.triu(block, 1).T


def _write(
    path: Path,
    shape: tuple[int, int],
    dtype: torch.dtype,
    symmetric: bool,
    tiles: Iterator[tuple[slice, slice, Tensor]],
) -> Path:
    if path.exists():
        raise StoreError(f"{path} exists; give another path for the kernel, or delete it")
    if not path.absolute().parent.is_dir():
        raise StoreError(f"{path}: the directory {path.parent} does not exist; create it first")
    needed = shape[0] * shape[1] * dtype.itemsize
    free = shutil.disk_usage(path.absolute().parent).free
    if needed > free:
        raise StoreError(
            f"a kernel of {shape[0]:,} x {shape[1]:,} takes {needed:,} bytes and {free:,} are free "
            f"in {path.absolute().parent}; take fewer rows, or another disk"
        )
    partial = path.with_name(path.name + ".partial")
    numpy_dtype = np.dtype(str(dtype).removeprefix("torch."))
    try:
        with h5py.File(partial, "w") as file:
            data = file.create_dataset("ntk", shape, numpy_dtype)
            for rows, columns, block in tiles:
                if symmetric and rows == columns:
                    block = _mirrored(block)
                data[rows, columns] = block.numpy()
                if symmetric and rows != columns:
                    data[columns, rows] = block.T.contiguous().numpy()
        os.replace(partial, path)
    except OSError as error:
        raise StoreError(f"cannot write the kernel to {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path
