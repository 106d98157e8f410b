"""Per-sample gradients of one parameter and one output, kept in the form in which they arise.

Shapes: b samples; O and Q rows and columns of the parameter's matrix; G [b, O, Q] its gradients; g
groups of its rows; T positions that one sample sums over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pntk.gradients.rules import Target
from pntk.projection.sketch import Columns, Windows, scatter_rows


@dataclass(frozen=True)
class Product:
    """G = sum_t rows[:, :, t] columns[:, :, t]^T, of each group of rows its own.

    Attributes:
        rows: [b * m, O, T].
        columns: [b * m, g * Q, T], perhaps through windows.
        batch: b.
    """

    rows: Tensor
    columns: Columns
    batch: int

    @property
    def groups(self) -> int:
        return 1 if self.columns.windows is None else self.columns.windows.groups

    @property
    def positions(self) -> int:
        return self.rows.shape[2] * (self.rows.shape[0] // self.batch)

    @property
    def height(self) -> int:
        """O."""
        return self.rows.shape[1]

    @property
    def width(self) -> int:
        """Q."""
        windows = self.columns.windows
        kernel = 1 if windows is None else math.prod(windows.kernel)
        return self.columns.tensor.shape[1] // self.groups * kernel

    def row_factor(self, part: slice) -> Tensor:
        """Return [s, O, T] of some samples."""
        return self._merged(self._owned(self.rows, part))

    def column_factor(self, part: slice) -> Tensor:
        """Return [s, g * Q, T] of some samples."""
        windows, tensor = self.columns.windows, self._owned(self.columns.tensor, part)
        return self._merged(tensor if windows is None else unfolded(tensor, windows))

    def gradient(self, part: slice, first: int, last: int) -> Tensor:
        """Return rows ``first`` to ``last`` of G, [s, last - first, Q]; whole groups of them."""
        columns, groups = self.column_factor(part), self.groups
        rows = self.row_factor(part)[:, first:last]
        if groups == 1:
            return torch.bmm(rows, columns.mT)
        s, _, t = rows.shape
        high = self.height // groups
        low, count = first // high, (last - first) // high
        columns = columns.unflatten(1, (groups, self.width))[:, low : low + count]
        found = torch.bmm(rows.reshape(s * count, high, t), columns.flatten(0, 1).mT)
        return found.view(s, last - first, self.width)

    def _owned(self, x: Tensor, part: slice) -> Tensor:
        m = x.shape[0] // self.batch
        return x[part.start * m : part.stop * m]

    def _merged(self, x: Tensor) -> Tensor:
        """Return [s, f, m * T] of [s * m, f, T]."""
        m = self.rows.shape[0] // self.batch
        if m == 1:
            return x
        return x.unflatten(0, (-1, m)).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Lookup:
    """G[:, ids[b, t]] += delta[b, t].

    Attributes:
        ids: int64 [b, T].
        delta: [b, T, Q].
        height: O.
    """

    ids: Tensor
    delta: Tensor
    height: int

    @property
    def positions(self) -> int:
        return self.ids.shape[1]

    @property
    def width(self) -> int:
        return self.delta.shape[2]

    def gradient(self, part: slice, first: int, last: int) -> Tensor:
        """Return rows ``first`` to ``last`` of G, [s, last - first, Q]."""
        ids, delta = self.ids[part] - first, self.delta[part]
        inside = (ids >= 0) & (ids < last - first)
        return scatter_rows(ids.clamp(0, last - first - 1), delta * inside[..., None], last - first)


@dataclass(frozen=True)
class Dense:
    """G itself.

    Attributes:
        values: [b, O, Q].
    """

    values: Tensor

    positions = 1

    @property
    def height(self) -> int:
        return self.values.shape[1]

    @property
    def width(self) -> int:
        return self.values.shape[2]

    def gradient(self, part: slice, first: int, last: int) -> Tensor:
        """Return rows ``first`` to ``last`` of G, [s, last - first, Q]."""
        return self.values[part, first:last]


Piece = Product | Lookup | Dense


class Kept(Target):
    """Keep what a rule gives, for one parameter and one output.

    Args:
        name, shape: of the parameter.
        batch: b.
        dtype: float32 or float64.
        pieces: list to append to.
        absorbs: whether an affine map's bias is left to the weight, as one more column of ones.
        unfolds: whether columns are taken out of their windows once, for all outputs.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        batch: int,
        dtype: torch.dtype,
        pieces: list[Piece],
        *,
        absorbs: bool = False,
        unfolds: bool = False,
    ) -> None:
        self.name, self.shape, self.batch, self.dtype, self.pieces = (
            name,
            shape,
            batch,
            dtype,
            pieces,
        )
        self.absorbs, self.unfolds = absorbs, unfolds
        self.biases: list[str] = []  # names of biases that came with the weight

    def gradient(self, gradient: Tensor) -> None:
        if len(gradient) != self.batch:
            gradient = gradient.unflatten(0, (self.batch, -1)).sum(1, dtype=self.dtype)
        self.pieces.append(Dense(as_matrices(gradient.to(self.dtype), self.shape)))

    def products(self, rows: Tensor, columns: Columns) -> None:
        self.pieces.append(Product(rows, columns, self.batch))

    def affine(self, bias: Target | None, rows: Tensor, columns: Columns) -> None:
        self.products(rows, columns)
        if isinstance(bias, Kept) and not self.absorbs:
            bias.gradient(rows.sum(2, dtype=self.dtype))
            self.biases.append(bias.name)

    def prepare_columns(self, columns: Columns) -> Columns:
        if not self.unfolds or columns.windows is None or columns.windows.groups > 1:
            return columns
        return Columns(unfolded(columns.tensor, columns.windows))

    def lookup(self, ids: Tensor, delta: Tensor) -> None:
        ids, delta = (x.reshape(self.batch, -1, *x.shape[2:]) for x in (ids, delta))
        self.pieces.append(Lookup(ids, delta, self.shape[0]))


def unfolded(x: Tensor, windows: Windows) -> Tensor:
    """Return what windows see of [b, C, *spatial] as [b, C * P, T]."""
    if len(windows.kernel) == 2:
        options = (windows.kernel, windows.dilation, windows.padding or 0, windows.stride)
        found = F.unfold(x, *options)
        if found.shape[2] == math.prod(windows.grid):  # a transposed one may leave an edge out
            return found
    return torch.stack(list(windows.patches(x)), dim=2).flatten(1, 2)


def as_matrices(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return gradients [b, *shape] as matrices [b, O, Q]; of vectors and scalars Q is 1."""
    height = shape[0] if shape else 1
    return gradient.reshape(len(gradient), height, -1)
