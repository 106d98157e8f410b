"""The tangent kernel that rows estimate: K[i, j] = <phi(x_i), phi(x_j)>."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import torch
from torch import Tensor
from tqdm import tqdm

from pntk.errors import ConfigError, OutOfMemoryError
from pntk.host import available_memory
from pntk.memory import required_bytes
from pntk.ntk.kernel_file import KernelHeader, KernelWriter, check_new
from pntk.projection.dispatch import why_not_gram
from pntk.projection.gpu_ops import launch
from pntk.rows import Rows, as_rows, check_same_map, check_widths, identify, inverse_norms

if TYPE_CHECKING:
    from pntk.ntk.variance import VarianceRatio

Multiply = Callable[[Tensor, Tensor, Tensor, bool], None]

_UNIT = 64  # tiles are a multiple of it where the budget allows
_LEAST = 8  # with fewer rows, what is kept about tiles would outgrow them
_STRIP = 2**20  # bytes of rows that are read at a time
_SQUARE = 256  # rows of a diagonal tile that are mirrored at a time
_PIECE, _PIECE_ON_GPU = 2048, 8192  # rows of one product; by it BLAS takes memory of its own


class Sink(Protocol):
    """What takes the tiles of a kernel: memory or a file."""

    def missing(self, i: int) -> list[int]:
        """Return j of each tile (i, j) that is to be computed, ascending."""

    def write(self, i: int, j: int, tile: Tensor) -> None:
        """Take a tile, and its mirror image where the kernel is symmetric."""


@overload
def ntk(
    a: Any, b: Any = ..., *, with_std: Literal[True], **options: Any
) -> tuple[Tensor, Tensor]: ...
@overload
def ntk(
    a: Any, b: Any = ..., *, with_std: Literal[False] = ..., **options: Any
) -> Tensor | Path: ...
def ntk(  # type: ignore[misc]  # its overloads leave the other arguments to it
    a: Any,
    b: Any = None,
    *,
    normalize: bool = False,
    out: str | os.PathLike[str] | None = None,
    memory_budget: int | str = "1GB",
    device: torch.device | str = "cpu",
    impl: str = "torch",
    progress: bool = False,
    with_std: bool = False,
    variance_ratio: float | VarianceRatio = 1.0,
) -> Tensor | Path | tuple[Tensor, Tensor]:
    """Return the kernel matrix of rows, tile by tile.

    K = A B^T, where E[K] is the kernel of the output that the rows were made of, with no further
    scaling. ``normalize`` gives the cosine, K[i, j] / sqrt(K[i, i] K[j, j]); rows of zeros give
    zeros.

    With ``out``, both the rows of stores and the kernel may be larger than memory. The kernel is
    built in ``out + ".partial"``, where the same call goes on after a stop of any kind, and gets
    its name when it is whole; read it with :func:`pntk.ntk.kernel_file.open_kernel` or any HDF5
    reader.

    Args:
        a: rows [n, k]: tensor, array or FeatureStore.
        b: rows [m, k], or None for ``a`` itself, of which only one triangle is computed.
        normalize: whether to divide by the norms of the rows.
        out: HDF5 file to write instead of memory (data set ``ntk``); it must not exist.
        memory_budget: bytes, or a text such as "500MB", that the work takes beside rows and a
            kernel that are in memory; on a GPU, of its memory too. With more, rows are read less
            often.
        device: where tiles are multiplied.
        impl: ``torch``, or ``triton``: float32 accuracy on the tensor cores of a GPU.
        progress: whether to show a progress bar.
        with_std: whether to return the standard error of each entry too, in memory alone.
        variance_ratio: what the projection's noise is a multiple of, for ``with_std``; see
            :func:`pntk.ntk.uncertainty.kernel_std`.

    Returns:
        Tensor [n, m] of the rows' type on the CPU, or the path of ``out``; with ``with_std`` the
        pair of kernel and standard errors.

    Raises:
        ConfigError: rows of different widths, maps or kinds, an ``impl`` that cannot make them, or
            a budget that is too small; names one that would do.
        OutOfMemoryError: memory cannot hold the kernel.
        StoreError: rows are missing or damaged, ``out`` cannot be written, or its beginning is that
            of another kernel.

    >>> ntk(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), normalize=True)
    tensor([[1.0000, 0.8000],
            [0.8000, 1.0000]])
    """
    if with_std:
        from pntk.ntk.uncertainty import kernel_std

        return kernel_std(
            a,
            b,
            normalize=normalize,
            variance_ratio=variance_ratio,
            out=out,
            memory_budget=memory_budget,
            device=device,
            impl=impl,
            progress=progress,
        )
    budget = required_bytes(memory_budget)
    check_same_map(a, b)
    left = as_rows(a)
    right = None if b is None else as_rows(b)
    if right is not None:
        check_widths(left, right)
    dtype = left.dtype if right is None else torch.promote_types(left.dtype, right.dtype)
    multiply = _multiplier(impl, dtype, device)
    need = Need(left, right, dtype, torch.device(device), normalize)
    tile = choose_tile(need, budget)
    if out is None:
        _check_room(need)
        memory = _Memory(need, tile)
        _compute(need, tile, multiply, memory, progress)
        return memory.kernel
    check_new(Path(out))
    header = KernelHeader(
        shape=need.shape,
        dtype=str(dtype).removeprefix("torch."),
        normalize=normalize,
        symmetric=right is None,
        tile=tile,
        rows=identify(left),
        columns=None if right is None else identify(right),
    )
    with KernelWriter.open(out, header) as writer:
        if need.bytes(writer.header.tile) > budget:
            raise ConfigError(
                f"memory_budget is {budget:,} bytes; {writer.path} was begun with tiles of "
                f"{writer.header.tile} rows, which take {need.bytes(writer.header.tile):,}: use "
                f"memory_budget={need.bytes(writer.header.tile)}, or delete it to start anew"
            )
        _compute(need, writer.header.tile, multiply, writer, progress)
        writer.finish()
    return Path(out)


# ---- memory ------------------------------------------------------------------------------------


class Need:
    """Rows of both sides, and what memory their kernel needs.

    Args:
        left: rows [n, k].
        right: rows [m, k]; None for ``left`` itself.
        dtype: of the kernel.
        device: where tiles are multiplied.
        normalize: whether rows are divided by their norms.
    """

    def __init__(
        self,
        left: Rows,
        right: Rows | None,
        dtype: torch.dtype,
        device: torch.device,
        normalize: bool,
    ) -> None:
        self.sides = [left] if right is None else [left, right]
        self.symmetric = right is None
        self.shape = (left.shape[0], self.sides[-1].shape[0])
        self.width = left.shape[1]
        self.dtype = dtype
        self.device = device
        self.normalize = normalize

    def viewed(self, rows: Rows) -> bool:
        """Whether blocks of rows are used where they are, without a copy."""
        return (
            not self.normalize
            and not rows.copied
            and isinstance(rows.source, Tensor)
            and (rows.dtype, rows.source.device) == (self.dtype, self.device)
            and rows.source.is_contiguous()
        )

    def bytes(self, tile: int) -> int:
        """Return what the work takes with tiles of so many rows."""
        size = self.dtype.itemsize
        heights = [min(tile, rows.shape[0]) for rows in self.sides]
        copied = [0 if self.viewed(rows) else min(tile, rows.shape[0]) for rows in self.sides]
        if self.symmetric and tile < self.shape[0]:
            copied *= 2
        # rows as they are stored, as they are decoded, and a copy of them while they are checked
        strips = 3 * max(_STRIP, size * self.width)
        norms = size * sum(rows.shape[0] for rows in self.sides) * self.normalize
        entries = sum(copied) * self.width + heights[0] * heights[-1]
        return size * entries + strips + norms + _workspace(size)


def choose_tile(need: Need, budget: int) -> int:
    """Return the largest tile within the budget, or one that gives as many tiles of equal size.

    Raises:
        ConfigError: there is none; says which budget would do.
    """
    most = max(need.shape)
    if need.bytes(most) <= budget:
        return most
    least = min(_LEAST, most)
    if need.bytes(least) > budget:
        enough = min(need.bytes(least), need.bytes(most))
        raise ConfigError(
            f"memory_budget is {budget:,} bytes; rows of {need.width:,} numbers need at least "
            f"{enough:,}: use memory_budget={enough}"
        )
    low, high = least, most  # the first fits and the second does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if need.bytes(middle) <= budget else (low, middle)
    if low < _UNIT:
        return low
    low -= low % _UNIT
    even = -(-most // -(-most // low))
    return -(-even // _UNIT) * _UNIT


def _workspace(size: int) -> int:
    """What BLAS takes for a product of pieces, and code when it is first run, by measurement."""
    return 16 * 2**20 + size * (5 * 2**18 + torch.get_num_threads() * 2**17)


def _check_room(need: Need) -> None:
    """Refuse a kernel that memory cannot hold."""
    rows, columns = need.shape
    needed, free = rows * columns * need.dtype.itemsize, available_memory()
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"a kernel of {rows:,} x {columns:,} takes {needed:,} bytes and {free:,} are available "
            "in memory; write it to a file with out="
        )


# ---- tiles -------------------------------------------------------------------------------------


class _Memory:
    """A kernel in memory, as a sink of tiles."""

    def __init__(self, need: Need, tile: int) -> None:
        self.kernel = torch.empty(need.shape, dtype=need.dtype)
        self._symmetric = need.symmetric
        self._tile = tile

    def missing(self, i: int) -> list[int]:
        return list(range(i if self._symmetric else 0, -(-self.kernel.shape[1] // self._tile)))

    def write(self, i: int, j: int, tile: Tensor) -> None:
        rows, columns = (slice(k * self._tile, (k + 1) * self._tile) for k in (i, j))
        self.kernel[rows, columns] = tile
        if self._symmetric and i != j:
            self.kernel[columns, rows] = tile.T


def _compute(need: Need, tile: int, multiply: Multiply, sink: Sink, progress: bool) -> None:
    """Compute the tiles that a sink lacks."""
    bands = range(-(-need.shape[0] // tile))
    lacking = sum(len(sink.missing(i)) for i in bands)
    if not lacking:
        return
    total = (
        sum(len(bands) - i for i in bands)
        if need.symmetric
        else (len(bands) * -(-need.shape[1] // tile))
    )
    blocks = _Blocks(need, tile)
    room = torch.empty(
        min(tile, need.shape[0]) * min(tile, need.shape[1]), dtype=need.dtype, device=need.device
    )
    bar = tqdm(total=total, initial=total - lacking, unit="tile", desc="ntk", disable=not progress)
    with bar:
        for i, j in _snake(sink, bands):
            x = blocks.rows(i)
            diagonal = need.symmetric and i == j
            y = x if diagonal else blocks.columns(j)
            block = room[: len(x) * len(y)].view(len(x), len(y))
            multiply(x, y, block, diagonal)
            if diagonal:
                mirror_upper(block)
            sink.write(i, j, block.cpu())
            bar.update()


def _snake(sink: Sink, bands: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Missing tiles, band by band, there and back: bands share the columns where one turns."""
    forward = True
    for i in bands:
        columns = sink.missing(i)
        yield from ((i, j) for j in (columns if forward else reversed(columns)))
        forward ^= bool(columns)


class _Blocks:
    """Blocks of rows on the device, each scaled to norm 1 if wanted; two are kept.

    They are scaled before they are multiplied, as products of tiny rows would vanish.
    """

    def __init__(self, need: Need, tile: int) -> None:
        self._need = need
        self._tile = tile
        self._step = max(1, _STRIP // (need.width * need.dtype.itemsize))
        self._scales = [self._scale(rows) if need.normalize else None for rows in need.sides]
        self._buffers: list[Tensor | None] = [None, None]
        self._blocks: list[Tensor | None] = [None, None]
        self._held: list[tuple[int, int] | None] = [None, None]  # side and number of each block
        self._slot = 0  # of the rows; columns are in the other

    def _scale(self, rows: Rows) -> Tensor:
        """1 / |row| [n] on the device."""
        scale = torch.empty(rows.shape[0], dtype=self._need.dtype)
        for start in range(0, len(scale), self._step):  # without a list that would cut up the heap
            part = rows.block(start, start + self._step)
            scale[start : start + self._step] = inverse_norms(part, self._step)
        return scale.to(self._need.device)

    def rows(self, i: int) -> Tensor:
        """Return block i of the rows [b, k]."""
        key = (0, i)
        if key in self._held:  # it has been a block of columns
            self._slot = self._held.index(key)
        return self._get(key, self._slot)

    def columns(self, j: int) -> Tensor:
        """Return block j of the columns [c, k], which is not that of the rows."""
        return self._get((len(self._need.sides) - 1, j), 1 - self._slot)

    def _get(self, key: tuple[int, int], slot: int) -> Tensor:
        block = self._blocks[slot]
        if block is None or self._held[slot] != key:
            self._blocks[slot] = block = self._load(*key, slot)
            self._held[slot] = key
        return block

    def _load(self, side: int, index: int, slot: int) -> Tensor:
        need, rows, scale = self._need, self._need.sides[side], self._scales[side]
        first, last = index * self._tile, min((index + 1) * self._tile, rows.shape[0])
        if need.viewed(rows):
            return rows.block(first, last)
        buffer = self._buffers[slot]
        if buffer is None:
            most = min(self._tile, rows.shape[0])
            buffer = torch.empty(most, need.width, dtype=need.dtype, device=need.device)
            self._buffers[slot] = buffer
        for start in range(first, last, self._step):
            stop = min(start + self._step, last)
            part = buffer[start - first : stop - first]
            part.copy_(rows.block(start, stop))
            if scale is not None:
                part.mul_(scale[start:stop, None])
        return buffer[: last - first]


# ---- products ----------------------------------------------------------------------------------


def _multiplier(impl: str, dtype: torch.dtype, device: torch.device | str) -> Multiply:
    """Return what writes a tile x y^T of rows [n, k] and [m, k]; of a square, the upper half."""
    if impl == "torch":
        return _multiply
    if impl != "triton":
        raise ConfigError(f"impl is {impl!r}; expected 'torch' or 'triton'")
    reason = why_not_gram(dtype, device)
    if reason:
        raise ConfigError(f"impl='triton' cannot be used: {reason}; use impl='torch'")
    return _multiply_on_tensor_cores


def _multiply(x: Tensor, y: Tensor, block: Tensor, upper: bool) -> None:
    piece = _PIECE if x.device.type == "cpu" else _PIECE_ON_GPU
    for i in range(0, len(x), piece):
        for j in range(i if upper else 0, len(y), piece):
            part = block[i : i + piece, j : j + piece]
            torch.mm(x[i : i + piece], y[j : j + piece].T, out=part)


def _multiply_on_tensor_cores(x: Tensor, y: Tensor, block: Tensor, upper: bool) -> None:
    launch("gram", "triton", x, y, None, None, block)


def mirror_upper(block: Tensor) -> None:
    """Copy the upper half of a square [b, b] to the lower one, so that K = K^T exactly."""
    for start in range(0, len(block), _SQUARE):
        stop = start + _SQUARE
        square = block[start:stop, start:stop]
        square.copy_(torch.triu(square) + torch.triu(square, 1).T)
        block[stop:, start:stop] = block[start:stop, stop:].T
