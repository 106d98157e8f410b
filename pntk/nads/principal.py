"""Principal directions of rows: of their covariance, of their Gram matrix, or by sketching.

Shapes: n rows; d numbers in a row; k width of a sketch; r directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pntk.errors import DataError
from pntk.projection.dispatch import Projector
from pntk.projection.spec import ProjectionSpec

EXACT = 4096  # rows or columns up to which the eigenproblem is solved as it is
BLOCK = 2**24  # numbers of rows that are in memory at a time
POWER_ITERATIONS = 2
NEGLIGIBLE = 1e-7  # of the largest singular value: what rounding makes of zero


class Principal(NamedTuple):
    """Right singular vectors of rows.

    Attributes:
        directions: float64 [r, d], orthonormal; the entry of largest magnitude is positive.
        singular_values: float64 [r], descending.
    """

    directions: Tensor
    singular_values: Tensor


def principal_directions(
    rows: Tensor, *, centered: bool, proj_dim: int | None = None, seed: int = 0
) -> Principal:
    """Return the principal directions of rows, their mean taken off where ``centered``.

    Rows are read block by block, so they may be mapped from a file. Where d <= n and d <= 4096 the
    covariance [d, d] is summed in float64; where n is at most 4096 the Gram matrix [n, n]; both are
    exact. Otherwise, or with ``proj_dim``, the rows are projected to that many numbers, the range
    is refined by two power iterations, and the better half of the directions is returned.

    Args:
        rows: [n, d].
        proj_dim: k of the sketch, a power of two; None chooses, 1024 where one is needed.
        seed: of the sketch.

    Raises:
        DataError: all rows are zero, or equal where ``centered``.

    Source: Halko, Martinsson, Tropp (2011), Finding structure with randomness, algorithm 4.4,
        https://arxiv.org/abs/0909.4061

    Example:
        >>> found = principal_directions(torch.tensor([[3.0, 0.0], [0.0, -2.0]]), centered=False)
        >>> found.singular_values
        tensor([3., 2.], dtype=torch.float64)
    """
    n, d = rows.shape
    mean = rows.new_zeros(d, dtype=torch.float64)
    if centered:
        for block in _row_blocks(rows):
            mean += block.sum(0)
        mean /= n
    if proj_dim is None and min(n, d) <= EXACT:
        found = _by_covariance(rows, mean) if d <= n else _by_gram(rows, mean)
    else:
        spec = ProjectionSpec("hadamard", proj_dim or min(1024, EXACT), seed)
        found = _by_sketch(rows, mean, spec)
    most = n - 1 if centered else n
    directions, values = found.directions[:most], found.singular_values[:most]
    if not len(values) or not float(values[0]) > 0:
        what = "equal, and centered=True takes their mean off" if centered else "zero"
        raise DataError(
            f"the {n} gradients are all {what}, so there is no direction; check that the networks "
            "depend on their input" + (", or pass centered=False" if centered else "")
        )
    if d > n or proj_dim is not None:  # here nothing belongs to a singular value of zero
        kept = values > NEGLIGIBLE * values[0]
        directions, values = directions[kept], values[kept]
    return Principal(_with_signs(directions), values)


def _by_covariance(rows: Tensor, mean: Tensor) -> Principal:
    covariance = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for block in _row_blocks(rows):
        centred = block - mean
        covariance.addmm_(centred.T, centred)
    values, vectors = torch.linalg.eigh(covariance)
    return Principal(vectors.T.flip(0), values.flip(0).clamp(min=0).sqrt())


def _by_gram(rows: Tensor, mean: Tensor) -> Principal:
    n, d = rows.shape
    gram = rows.new_zeros(n, n, dtype=torch.float64)
    for columns in _column_blocks(rows):
        block = rows[:, columns].double() - mean[columns]
        gram.addmm_(block, block.T)
    values, left = torch.linalg.eigh(gram)
    singular = values.flip(0).clamp(min=0).sqrt()
    directions = rows.new_empty(n, d, dtype=torch.float64)
    scaled = left.flip(1) / singular.clamp(min=float(singular[0]) * 1e-12 + 1e-300)
    for columns in _column_blocks(rows):
        directions[:, columns] = scaled.T @ (rows[:, columns].double() - mean[columns])
    return Principal(directions, singular)


def _by_sketch(rows: Tensor, mean: Tensor, spec: ProjectionSpec) -> Principal:
    n, d = rows.shape
    name = "input"
    projector = Projector(spec, {name: (d,)}, dtype=torch.float64, device=rows.device)
    sketch = projector.empty_rows(n)
    start = 0
    for block in _row_blocks(rows):
        stop = start + len(block)
        projector.sketch(name).add_gradient(block - mean, sketch[start:stop])
        start = stop
    basis = torch.linalg.qr(sketch).Q  # [n, k]
    for _ in range(POWER_ITERATIONS):
        back = torch.linalg.qr(_transposed_product(rows, mean, basis)).Q  # [d, k]
        parts = [(block - mean) @ back for block in _row_blocks(rows)]
        basis = torch.linalg.qr(torch.cat(parts)).Q
    inner = _transposed_product(rows, mean, basis)  # [d, k]
    vectors, values, _ = torch.linalg.svd(inner, full_matrices=False)
    best = min(len(values), max(1, (spec.proj_dim or d) // 2))
    return Principal(vectors.T[:best], values[:best])


def _transposed_product(rows: Tensor, mean: Tensor, left: Tensor) -> Tensor:
    """Return (rows - mean)^T left, [d, k]."""
    total = rows.new_zeros(rows.shape[1], left.shape[1], dtype=torch.float64)
    start = 0
    for block in _row_blocks(rows):
        total.addmm_((block - mean).T, left[start : start + len(block)])
        start += len(block)
    return total


def _with_signs(directions: Tensor) -> Tensor:
    """Return directions whose entry of largest magnitude is positive."""
    places = directions.abs().argmax(1, keepdim=True)
    signs = torch.sign(directions.gather(1, places))
    return directions * torch.where(signs == 0, torch.ones_like(signs), signs)


def _row_blocks(rows: Tensor) -> Iterator[Tensor]:
    step = max(1, BLOCK // rows.shape[1])
    for start in range(0, len(rows), step):
        yield rows[start : start + step].double()


def _column_blocks(rows: Tensor) -> Iterator[slice]:
    step = max(1, BLOCK // len(rows))
    for start in range(0, rows.shape[1], step):
        yield slice(start, start + step)
