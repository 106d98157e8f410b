"""What every projection of one parameter can do, and how to do it through a whole gradient.

Shapes: b batch; k row width; O, C rows and columns of the parameter's matrix; T positions that are
summed (tokens, pixels); P kernel positions.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pntk.projection.bits import stream_id
from pntk.projection.spec import ProjectionSpec

WORKSPACE_BYTES = 64 * 2**20
AXES = 3  # that kernels give every convolution


@dataclass(frozen=True)
class Windows:
    """The sliding windows of a convolution.

    Attributes:
        kernel, stride, dilation: one number an axis.
        grid: size of the output grid; T = prod(grid).
        padding: zeros on both sides of the input, one number an axis; empty for none.
        groups: into which rows and channels are cut; C counts the channels of one.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    grid: tuple[int, ...]
    padding: tuple[int, ...] = ()
    groups: int = 1

    def padded(self, columns: Tensor) -> tuple[Tensor, Windows]:
        """Return columns with their zeros, and the windows without padding over them."""
        if not any(self.padding):
            return columns, self
        twice = [p for p in reversed(self.padding) for _ in range(2)]
        return F.pad(columns, twice), replace(self, padding=())

    def sizes(self) -> list[int]:
        """Return padding, kernel, stride, dilation and grid, each of three axes."""
        missing = AXES - len(self.kernel)
        padding = self.padding or (0,) * len(self.kernel)
        sizes = [0] * missing + list(padding)
        for given in (self.kernel, self.stride, self.dilation, self.grid):
            sizes += [1] * missing + list(given)
        return sizes

    def slices(self) -> Iterator[tuple[slice, ...]]:
        """Yield, for each kernel position in row-major order, what it sees of the input."""
        for offset in itertools.product(*map(range, self.kernel)):
            yield tuple(
                slice(o * d, o * d + s * (n - 1) + 1, s)
                for o, d, s, n in zip(offset, self.dilation, self.stride, self.grid, strict=True)
            )

    def patches(self, columns: Tensor) -> Iterator[Tensor]:
        """Yield [b, C, T] for each kernel position of ``columns`` [b, C, *spatial]."""
        b, c = columns.shape[:2]
        columns, _ = self.padded(columns)
        for at in self.slices():
            yield columns[(slice(None), slice(None), *at)].reshape(b, c, -1)


@dataclass(frozen=True)
class Columns:
    """The column factor of a gradient: [b, C, T], or [b, groups * C, *spatial] through windows.

    ``image`` holds the spatial sizes where a prepared tensor has lost them.
    """

    tensor: Tensor
    windows: Windows | None = None
    image: tuple[int, ...] = ()

    def patches(self) -> Iterator[Tensor]:
        """Yield [b, C, T] for each kernel position; the tensor itself where there are none."""
        return iter([self.tensor]) if self.windows is None else self.windows.patches(self.tensor)


class Sketch(ABC):
    """Add one parameter's projected gradients to rows.

    The three ``add_*`` methods take the same gradient in three forms; all add to ``out`` [b, k].
    This class brings factors and look-ups down to :meth:`add_gradient`, a few samples at a time.

    Args:
        name: qualified name of the parameter; with ``shape`` it decides the map.
        shape: shape of the parameter.
        dtype: float32 or float64, in which sums are taken.
        device: where the factors are.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
        workspace: int = WORKSPACE_BYTES,
    ) -> None:
        self.name = name
        self.shape = shape
        self.size = math.prod(shape)
        self.dtype = dtype
        self.device = device
        self.workspace = workspace

    @abstractmethod
    def add_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        """Add A g for gradients [b, *shape] to ``out`` [b, k]."""

    def queue_gradient(self, gradient: Tensor, out: Tensor, output: int = 0) -> None:
        """Add A g as :meth:`add_gradient` does, but where a projector collects: at the end."""
        self.add_gradient(gradient, out, output)

    def prepare_rows(self, rows: Tensor, groups: int = 1) -> Tensor:
        """Return row factors [b, O, T] as :meth:`add_products` wants them.

        Args:
            groups: of the columns that they will meet.
        """
        return rows

    def prepare_columns(self, columns: Columns) -> Columns:
        """Return column factors as :meth:`add_products` wants them; good for all outputs."""
        return columns

    def add_products(self, rows: Tensor, columns: Columns, out: Tensor, output: int = 0) -> None:
        """Add A G for G = sum_t rows[:, :, t] columns[:, :, t]^T, prepared as above."""

        def gradient(part: slice) -> Tensor:
            left = rows[part].to(self.dtype)
            right = Columns(columns.tensor[part].to(self.dtype), columns.windows)
            groups = 1 if columns.windows is None else columns.windows.groups
            b, o, t = left.shape
            left = left.reshape(b * groups, o // groups, t)
            products = [
                torch.bmm(left, patch.reshape(b * groups, patch.shape[1] // groups, t).mT)
                for patch in right.patches()
            ]
            return torch.stack(products, dim=-1)

        self._add_in_parts(gradient, rows.shape[0], out, output)

    def add_affine(
        self, bias: Sketch, rows: Tensor, columns: Columns, out: Tensor, output: int = 0
    ) -> None:
        """Add A G of an affine map's weight, and A' g of its bias with g = sum_t rows[:, :, t].

        Args:
            rows: [b, O, T], not prepared.
            columns: prepared.
        """
        groups = 1 if columns.windows is None else columns.windows.groups
        self.add_products(self.prepare_rows(rows, groups), columns, out, output)
        bias.queue_gradient(rows.sum(2, dtype=self.dtype), out, output)

    def add_lookup(self, ids: Tensor, delta: Tensor, out: Tensor, output: int = 0) -> None:
        """Add A G for G[ids[b, t]] += delta[b, t]; ids [b, T] int64, delta [b, T, d]."""

        def gradient(part: slice) -> Tensor:
            return scatter_rows(ids[part], delta[part].to(self.dtype), self.shape[0])

        self._add_in_parts(gradient, ids.shape[0], out, output)

    def _add_in_parts(
        self, gradient: Callable[[slice], Tensor], batch: int, out: Tensor, output: int
    ) -> None:
        for part in parts(batch, self.size * self.dtype.itemsize, self.workspace):
            shaped = gradient(part).reshape(-1, *self.shape)
            self.add_gradient(shaped, out[part], output)


class SpecSketch(Sketch):
    """A sketch whose map a ProjectionSpec with a width names: all but the identity's.

    Args:
        spec: family, k and seed.
    """

    def __init__(
        self,
        spec: ProjectionSpec,
        name: str,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
        workspace: int = WORKSPACE_BYTES,
    ) -> None:
        super().__init__(name, shape, dtype=dtype, device=device, workspace=workspace)
        assert spec.proj_dim is not None
        self.spec = spec
        self.proj_dim = spec.proj_dim

    def stream(self, output: int) -> int:
        """Return the stream of the entries of an output's map."""
        return stream_id(self.spec.family, self.proj_dim, "entries", output, self.name)


def scatter_rows(ids: Tensor, delta: Tensor, rows: int) -> Tensor:
    """Return [b, rows, d] with delta[b, t] added to row ids[b, t]."""
    dense = delta.new_zeros(ids.shape[0], rows, delta.shape[-1])
    return dense.scatter_add_(1, ids.unsqueeze(-1).expand_as(delta), delta)


def parts(count: int, bytes_each: int, limit: int) -> Iterator[slice]:
    """Cut range(count) into slices of about ``limit`` bytes, at least one item each."""
    step = max(1, limit // max(1, bytes_each))
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def pad_last(x: Tensor, size: int) -> Tensor:
    """Zero-pad the last axis to ``size``; no copy when it has that size."""
    return x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))
