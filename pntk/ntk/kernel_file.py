"""Kernels on disk: one HDF5 file that is filled tile by tile, and has its name once it is whole.

Until then it is called ``path + ".partial"``: datasets ``ntk`` [n, m, *entry], ``done`` and
``checksums`` [tile rows, tile columns], and a header that says which kernel it is. A tile is
written with its checksum by ordinary writes, synced, and marked as done after that. A symmetric
kernel has marks for the upper triangle until it is whole; they stand for the mirror images too.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import h5py
import numpy as np
import numpy.typing as npt
from torch import Tensor
from xxhash import xxh3_64

from pntk.errors import StoreError
from pntk.host import sync_directory
from pntk.store.create import allocate, create_file, describe
from pntk.store.hdf5 import check_format, open_hdf5, read_attribute, read_extent, read_text
from pntk.store.layout import CHECKSUM, DONE, Array, Extent
from pntk.store.lease import Lease
from pntk.store.locking import lock, unlock

FORMAT = "pntk-kernel"
FORMAT_VERSION = 1
SYNC_INTERVAL = 5.0  # seconds between syncs: the work that a kill can lose

_ALIKE = ("shape", "entry", "components", "dtype", "normalize", "symmetric")
_SUMS = (".header_crc32", ".content")
_DTYPES = ("float32", "float64")
_PIECE = 2**20  # bytes that are read, written or copied at a time
# the disk, the quota or the limit on the size of files; Windows knows no quota
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))

Side = dict[str, str | int | float | None]
Extents = dict[str, Extent]


@dataclass(frozen=True)
class KernelHeader:
    """What a kernel is, of which rows, and how it is cut into tiles.

    Args:
        shape: (n, m).
        dtype: "float32" or "float64".
        normalize: whether the entries are cosines.
        symmetric: whether the columns are the rows themselves.
        tile: rows and columns of a tile; the last ones may have fewer.
        rows: what identifies the rows, by name; ``content`` is a fingerprint of the numbers.
        columns: the same of the columns; None if they are the rows.
        entry: shape of what two samples have: nothing for a number.
        components: names along the first axis of ``entry``, if that is components.

    Raises:
        StoreError: a value has the wrong type or range.
    """

    shape: tuple[int, int]
    dtype: str
    normalize: bool
    symmetric: bool
    tile: int
    rows: Side
    columns: Side | None
    entry: tuple[int, ...] = ()
    components: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = self.shape
        if not isinstance(shape, (tuple, list)) or len(shape) != 2 or not all(map(_counts, shape)):
            raise StoreError(f"header: shape is {shape!r}, expected two positive integers")
        object.__setattr__(self, "shape", tuple(shape))
        if self.dtype not in _DTYPES:
            raise StoreError(f"header: dtype is {self.dtype!r}, expected one of {_DTYPES}")
        if not _counts(self.tile):
            raise StoreError(f"header: tile is {self.tile!r}, expected a positive integer")
        if type(self.normalize) is not bool or type(self.symmetric) is not bool:
            raise StoreError("header: normalize and symmetric must be true or false")
        right = self.columns is None if self.symmetric else _is_side(self.columns)
        if not (_is_side(self.rows) and right) or (self.symmetric and shape[0] != shape[1]):
            raise StoreError(f"header: rows and columns do not fit symmetric = {self.symmetric}")
        entry, names = self.entry, self.components
        if not isinstance(entry, (tuple, list)) or not all(map(_counts, entry)):
            raise StoreError(f"header: entry is {entry!r}, expected positive integers")
        if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
            raise StoreError(f"header: components is {names!r}, expected names")
        if names and (not entry or len(names) != entry[0]):
            raise StoreError(f"header: {len(names)} components do not fit entry = {entry!r}")
        object.__setattr__(self, "entry", tuple(entry))
        object.__setattr__(self, "components", tuple(names))

    @property
    def grid(self) -> tuple[int, int]:
        """Number of tiles, (rows, columns)."""
        return -(-self.shape[0] // self.tile), -(-self.shape[1] // self.tile)

    @property
    def to_compute(self) -> int:
        """Number of tiles that are computed; the others are mirror images."""
        rows, columns = self.grid
        return rows * (rows + 1) // 2 if self.symmetric else rows * columns

    @property
    def nbytes(self) -> int:
        """Bytes of the kernel and of what is known of its tiles."""
        return sum(
            int(np.prod(shape, dtype=object)) * dtype.itemsize
            for shape, dtype in self.datasets().values()
        )

    def datasets(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and little-endian dtype of each dataset."""
        return {
            "ntk": (self.shape + self.entry, np.dtype(self.dtype).newbyteorder("<")),
            "done": (self.grid, np.dtype("u1")),
            "checksums": (self.grid, np.dtype("<u8")),
        }

    def to_json(self) -> str:
        """Return the header as one JSON object with sorted keys, ASCII only."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> KernelHeader:
        """Read what ``to_json`` wrote.

        Raises:
            StoreError: not JSON, a field is missing or unknown, or a value is wrong.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"header: not valid JSON ({error})") from error
        expected = {entry.name for entry in fields(cls)}
        if not isinstance(values, dict) or set(values) != expected:
            raise StoreError(f"header: expected the fields {sorted(expected)}")
        return cls(**values)

    def difference(self, other: KernelHeader) -> str | None:
        """Return an entry that differs and both its values, ``tile`` aside."""
        ours, theirs = self._entries(), other._entries()
        names = dict.fromkeys([*ours, *theirs])
        for name in sorted(names, key=lambda name: name.endswith(_SUMS)):  # what says most first
            if ours.get(name) != theirs.get(name):
                return f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} now"
        return None

    def _entries(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in _ALIKE}
        for name, side in (("rows", self.rows), ("columns", self.columns or {})):
            found |= {f"{name}.{key}": value for key, value in side.items()}
        return found


# ---- writing -----------------------------------------------------------------------------------


class KernelWriter:
    """The one writer of a kernel; make it with ``KernelWriter.open``.

    Attributes:
        header: that of the file, whose tiles may be others than those that were asked for.
    """

    def __init__(self, out: Path, file: BinaryIO, lease: Lease) -> None:
        self.out = out
        self.path = partial_path(out)
        self.header, self._extents = _read_layout(self.path)
        self._file = file
        self._lease = lease
        self._pending: list[tuple[int, int]] = []  # tiles that were written and are not marked
        self._synced_at = time.monotonic()
        self._closed = False

    @classmethod
    def open(cls, out: str | os.PathLike[str], header: KernelHeader) -> KernelWriter:
        """Create the kernel's file, or go on with the one of an earlier call.

        Raises:
            StoreError: ``out`` exists, its beginning is of another kernel or is being written by
                another process, or it cannot be created (space, permission, directory).
        """
        out = Path(os.path.abspath(out))
        check_new(out)
        path = partial_path(out)
        created = not os.path.lexists(path) and _create(path, header)
        try:
            file = open(path, "r+b", buffering=0)  # noqa: SIM115 (kept open for the lock)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be written to ({error.strerror}); check its permissions"
            ) from error
        lease = None
        try:
            lock(file, path, "writing")
            lease = Lease(path)
            if created and out.exists():  # another process has finished it just before
                path.unlink()
            check_new(out)
            writer = cls(out, file, lease)
            different = header.difference(writer.header)
            if different:
                raise StoreError(
                    f"{path}: is the beginning of another kernel: {different}; go on with the "
                    "arguments that it was begun with, or delete it to start anew"
                )
            return writer
        except BaseException:
            if lease is not None:
                lease.release()
            file.close()
            raise

    def missing(self, i: int) -> list[int]:
        """Return j of each tile (i, j) that is still to be computed, ascending."""
        done = _read_band(self._file, self.path, self._extents["done"], i)
        first = i if self.header.symmetric else 0
        return [j for j in range(first, len(done)) if done[j] != DONE]

    def write(self, i: int, j: int, tile: Tensor, mirrored: Tensor | None = None) -> None:
        """Write a tile [b, c, *entry], and its mirror image where it has one.

        Args:
            mirrored: its mirror image [c, b, *entry]; None for ``tile.T``.

        Raises:
            StoreError: the disk refuses it.
        """
        try:
            self._put(i, j, tile)
            if self.header.symmetric and i != j:
                self._put(j, i, tile.T if mirrored is None else mirrored)
            self._pending.append((i, j))
        except OSError as error:
            raise self._refused(error) from error
        if time.monotonic() - self._synced_at >= SYNC_INTERVAL:
            self.sync()

    def sync(self) -> None:
        """Bring tiles to disk, then mark them as done, and bring that to disk."""
        try:
            if self._pending:
                os.fsync(self._file.fileno())
                for i, j in self._pending:
                    self._set("done", i, j, [DONE])
                os.fsync(self._file.fileno())
                self._pending.clear()
        except OSError as error:
            self._pending.clear()  # a second sync would succeed, without what this one has lost
            raise self._refused(error) from error
        self._synced_at = time.monotonic()

    def finish(self) -> Path:
        """Give the file its name.

        Raises:
            StoreError: a tile is missing, or something else has that name by now.
        """
        self.sync()
        check_new(self.out)
        rows, columns = self.header.grid
        for i in range(rows):
            if missing := self.missing(i):
                raise StoreError(
                    f"{self.path}: tile ({i}, {missing[0]}) is missing; write it first"
                )
        try:
            for i in range(rows):
                self._set("done", i, 0, [DONE] * columns)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error
        if sys.platform == "win32":
            self.close()  # an open file cannot be renamed there
        try:
            os.replace(self.path, self.out)
        except OSError as error:
            raise StoreError(
                f"{self.path}: is whole and cannot be renamed ({error.strerror}); rename it to "
                f"{self.out.name}"
            ) from error
        self.close()
        sync_directory(self.out.parent)
        return self.out

    def close(self) -> None:
        """Sync, release the lock and close the file. A second call does nothing."""
        if self._closed:
            return
        try:
            self.sync()
        finally:
            self._closed = True
            self._lease.release()
            unlock(self._file)
            self._file.close()

    def __enter__(self) -> KernelWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _put(self, i: int, j: int, tile: Tensor) -> None:
        """Write a tile, also a transposed one, a piece at a time, and its checksum."""
        extent = self._extents["ntk"]
        each = math.prod(extent.shape[2:])  # numbers that two samples have
        columns, size = extent.shape[1] * each, extent.dtype.itemsize
        first, left = i * self.header.tile, j * self.header.tile * each
        checksum = xxh3_64(seed=_place(self.header, i, j))
        step = max(1, _PIECE // (tile.shape[1] * each * size))
        for start in range(0, len(tile), step):
            piece = tile[start : start + step].contiguous().numpy().astype(extent.dtype, copy=False)
            piece = piece.reshape(len(piece), -1)
            checksum.update(piece.data)
            offset = extent.offset + ((first + start) * columns + left) * size
            if piece.shape[1] == columns:
                _write_at(self._file, offset, piece)
                continue
            for line in piece:
                _write_at(self._file, offset, line)
                offset += columns * size
        self._set("checksums", i, j, [checksum.intdigest()])

    def _set(self, name: str, i: int, j: int, values: list[int]) -> None:
        """Write what is kept about tiles (i, j), (i, j + 1), ..."""
        extent = self._extents[name]
        offset = extent.offset + i * extent.row_bytes + j * extent.dtype.itemsize
        _write_at(self._file, offset, np.array(values, extent.dtype))

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self.path}: the disk refused the data ({error.strerror}); the tiles that were "
            "synced are kept, and the same call goes on from there"
        )


def check_new(out: Path) -> None:
    """Refuse a path where there is something.

    Raises:
        StoreError: saying so.
    """
    if os.path.lexists(out):
        raise StoreError(f"{out} exists; give another path for the kernel, or delete it")


def partial_path(out: Path) -> Path:
    """Return where a kernel is until it is whole."""
    return out.with_name(out.name + ".partial")


def tiles_there(out: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return how many tiles of an unfinished kernel are there, and of how many.

    Raises:
        StoreError: the file is damaged.
    """
    path = partial_path(Path(os.path.abspath(out)))
    if not path.exists():
        return None
    header, extents = _read_layout(path)
    there = 0
    with _opened(path) as file:
        for i in range(header.grid[0]):
            done = _read_band(file, path, extents["done"], i)
            there += int((done[i if header.symmetric else 0 :] == DONE).sum())
    return there, header.to_compute


# ---- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A kernel on disk.

    Attributes:
        path: the file.
        header: what it is.
        values: [n, m, *entry], read-only; the file is mapped, not read.
    """

    path: Path
    header: KernelHeader
    values: npt.NDArray[Any]
    extents: Extents

    def read(self, start: int, stop: int) -> Array:
        """Return rows [start:stop], [b, m, *entry], as an array of their own, and keep nothing.

        Raises:
            StoreError: the file has been truncated, or cannot be read.
        """
        extent = self.extents["ntk"]
        rows = range(extent.shape[0])[start:stop]
        offset = extent.offset + rows.start * extent.row_bytes
        with _opened(self.path) as file:
            return _read_at(file, self.path, offset, (len(rows), *extent.shape[1:]), extent.dtype)

    def check(self) -> None:
        """Compare every tile with its checksum.

        Raises:
            StoreError: naming the first one that is damaged.
        """
        tile, (rows, columns) = self.header.tile, self.header.grid
        step = max(1, _PIECE // self.extents["ntk"].row_bytes)
        with _opened(self.path) as file:
            for i in range(rows):
                found = [xxh3_64(seed=_place(self.header, i, j)) for j in range(columns)]
                last = min((i + 1) * tile, self.header.shape[0])
                for start in range(i * tile, last, step):
                    band = self.read(start, min(start + step, last))
                    for j, checksum in enumerate(found):
                        part = band[:, j * tile : (j + 1) * tile]
                        checksum.update(np.ascontiguousarray(part).data)
                stored = _read_band(file, self.path, self.extents["checksums"], i)
                for j, checksum in enumerate(found):
                    if checksum.intdigest() != stored[j]:
                        raise StoreError(
                            f"{self.path}: the tile of rows {i * tile} to {last - 1} and columns "
                            f"from {j * tile} is damaged (its checksum does not match); delete the "
                            "file and make it again"
                        )


def open_kernel(path: str | os.PathLike[str]) -> Kernel:
    """Open a kernel that is whole, for reading.

    Raises:
        StoreError: no such file, no kernel, of another version, damaged, or not whole yet.
    """
    path = Path(os.path.abspath(path))
    header, extents = _read_layout(path)
    with _opened(path) as file:
        for i in range(header.grid[0]):
            done = _read_band(file, path, extents["done"], i)
            if not (done == DONE).all():
                raise StoreError(
                    f"{path}: tile ({i}, {int((done != DONE).argmax())}) is missing; make the "
                    "kernel again with the same arguments"
                )
    extent = extents["ntk"]
    try:
        values = np.memmap(path, extent.dtype, "r", extent.offset, extent.shape)
    except (OSError, ValueError, OverflowError) as error:
        raise StoreError(
            f"{path}: cannot map {extent.nbytes:,} bytes into memory ({error}); check the limit on "
            "address space (ulimit -v)"
        ) from error
    return Kernel(path, header, values, extents)


# ---- private -----------------------------------------------------------------------------------


def _create(path: Path, header: KernelHeader) -> bool:
    """Make the file with all of its space, or return False if someone else has made it."""

    def write(file: h5py.File) -> None:
        free = shutil.disk_usage(path.parent).free
        if free < header.nbytes:
            raise _no_space(path, header, free)
        describe(file, FORMAT, FORMAT_VERSION, header.to_json())
        file.attrs["checksum"] = np.bytes_(CHECKSUM)
        allocate(file, header.datasets())

    try:
        return create_file(path, write)
    except StoreError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _FULL:
            raise _no_space(path, header, shutil.disk_usage(path.parent).free) from cause
        raise


def _no_space(path: Path, header: KernelHeader, free: int) -> StoreError:
    rows, columns = header.shape
    return StoreError(
        f"{path}: a kernel of {rows:,} x {columns:,} takes {header.nbytes:,} bytes and {free:,} "
        f"are free in {path.parent}; take fewer rows, or another disk"
    )


def _read_layout(path: Path) -> tuple[KernelHeader, Extents]:
    """Read what a kernel is and where its datasets are, believing nothing."""
    with open_hdf5(path) as file:
        check_format(path, file, FORMAT, "a pntk kernel", FORMAT_VERSION)
        checksum = read_attribute(file, "checksum")
        if checksum != CHECKSUM:
            raise StoreError(f"{path}: checksum {checksum!r}, this pntk knows {CHECKSUM!r}")
        try:
            header = KernelHeader.from_json(read_text(path, file, "header"))
        except StoreError as error:
            raise StoreError(f"{path}: {error}") from error
        extents = {
            name: read_extent(path, file, name, shape, dtype)
            for name, (shape, dtype) in header.datasets().items()
        }
    size = path.stat().st_size
    end = max(extent.offset + extent.nbytes for extent in extents.values())
    if size < end:
        raise StoreError(
            f"{path}: the file is truncated: {size:,} bytes long, its datasets end at {end:,}. "
            "Copy it again, or delete it and make it again"
        )
    return header, extents


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error


def _read_band(file: BinaryIO, path: Path, extent: Extent, i: int) -> Array:
    """Row i of a dataset with an entry for each tile."""
    offset = extent.offset + i * extent.row_bytes
    return _read_at(file, path, offset, (1, extent.shape[1]), extent.dtype)[0]


def _read_at(
    file: BinaryIO, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    result = np.empty(shape, dtype)
    left = result.reshape(-1).view(np.uint8).data
    try:
        file.seek(offset)
        while left:
            count = file.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise StoreError(f"{path}: the file has been truncated since it was opened")
            left = left[count:]
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    return result


def _write_at(file: BinaryIO, offset: int, values: Array) -> None:
    left = values.reshape(-1).view(np.uint8).data
    file.seek(offset)
    while left:
        left = left[file.write(left) :]


def _place(header: KernelHeader, i: int, j: int) -> int:
    """Number of a tile, which seeds its checksum, so that one in the wrong place is found."""
    return i * header.grid[1] + j


def _counts(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_side(value: object) -> bool:
    return isinstance(value, dict) and all(
        entry is None or isinstance(entry, (str, int, float)) for entry in value.values()
    )
