"""RowWriter: fill a store row by row, so that a kill at any instant leaves it right."""

import os
import time
import weakref
from collections.abc import Mapping
from mmap import ALLOCATIONGRANULARITY
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from pntk.errors import StoreError
from pntk.store.create import create_store
from pntk.store.half import encode
from pntk.store.header import StoreHeader, explain_difference
from pntk.store.integrity import row_checksums
from pntk.store.joined import is_joined
from pntk.store.layout import DONE, MISSING, SKIPPED, Array, Layout, is_present, map_file
from pntk.store.lease import Lease
from pntk.store.locking import lock, unlock
from pntk.store.part import open_part

ArrayLike = npt.ArrayLike | torch.Tensor


class RowWriter:
    """The one writer of a store; make it with ``RowWriter.open``.

    A row's data, columns and checksum go into the system's page cache at once. Its ``done`` is set
    only after they have been synced to disk, which happens every ``sync_interval`` seconds, in
    ``sync`` and in ``close``. Not for use from several threads at a time.
    """

    def __init__(
        self, path: Path, file: BinaryIO, layout: Layout, lease: Lease, sync_interval: float
    ) -> None:
        self.path = path
        self._file = file
        self._lease = lease
        self._layout = layout
        self._map = map_file(file, layout, "write")
        self._views = layout.views(self._map)
        self._state = self._views["done"].copy()  # done values, those not yet synced included
        self._pending: list[tuple[Array, Array]] = []  # (indices, done values) not yet synced
        self._sync_interval = sync_interval
        self._synced_at = time.monotonic()
        self._closed = False
        weakref.finalize(self, lease.release)  # of a writer that is dropped and not closed

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        header: StoreHeader,
        *,
        resume: bool = True,
        sync_interval: float = 5.0,
    ) -> "RowWriter":
        """Create the store, or go on with one whose header is the same.

        Args:
            path: the file; its directory must exist.
            header: what the rows are.
            resume: False refuses an existing file.
            sync_interval: seconds between syncs, at least 0 (0 syncs on each write).

        Raises:
            StoreError: the file exists and must not, is no store, has other rows, is being
                written by another process, or cannot be created (space, permission, directory).
        """
        if not sync_interval >= 0:
            raise StoreError(f"sync_interval is {sync_interval!r}, expected seconds of at least 0")
        path = Path(os.path.abspath(path))
        created = not os.path.exists(path) and create_store(path, header)
        if not created and not resume:
            raise StoreError(
                f"{path}: the file exists and resume=False; "
                "choose another path, pass resume=True, or delete it"
            )
        layout = _writable_layout(path)
        if not created and "selection" in layout.header.info:
            raise StoreError(
                f"{path}: holds rows selected from another store, "
                f"{layout.header.info['selection']}, and cannot be featurized; mend that one, and "
                "export again"
            )
        different = header.difference(layout.header)
        if different:
            raise StoreError(f"{path}: cannot resume: {explain_difference(different)}")
        return cls._open(path, layout, sync_interval)

    @classmethod
    def reopen(cls, path: str | os.PathLike[str], *, sync_interval: float = 5.0) -> "RowWriter":
        """Open a store that exists, whatever its rows are.

        Raises:
            StoreError: it is no store, or is being written by another process.
        """
        path = Path(os.path.abspath(path))
        return cls._open(path, _writable_layout(path), sync_interval)

    @classmethod
    def _open(cls, path: Path, layout: Layout, sync_interval: float) -> "RowWriter":
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
            return cls(path, file, layout, lease, sync_interval)
        except BaseException:
            if lease is not None:
                lease.release()
            file.close()
            raise

    @property
    def header(self) -> StoreHeader:
        """The header in the file (its ``info`` is that of the creation)."""
        return self._layout.header

    def missing(self) -> npt.NDArray[np.int64]:
        """Return the indices of rows that have not been written, ascending."""
        return np.flatnonzero(~is_present(self._state)).astype(np.int64)

    def write(
        self,
        indices: ArrayLike,
        rows: ArrayLike,
        columns: Mapping[str, ArrayLike] | None = None,
        skipped: ArrayLike | None = None,
    ) -> None:
        """Write b rows.

        Args:
            indices: b different integers in [0, n), in any order.
            rows: [b, k] of the store's dtype; float32 where that is float16.
            columns: name -> [b] for every column of the header.
            skipped: bool [b]; rows to be marked as skipped and stored as zeros.

        Raises:
            StoreError: a shape, dtype, index or column is wrong; nothing has been written then.
        """
        places = self._checked_indices(indices)
        data = self._checked_rows(rows, len(places))
        cells = self._checked_columns(columns or {}, len(places))
        state = np.full(len(places), DONE, dtype=np.uint8)
        if skipped is not None:
            mask = _to_numpy("skipped", skipped)
            if mask.shape != places.shape or mask.dtype != bool:
                raise StoreError(
                    f"skipped is {mask.dtype} {mask.shape}, expected bool {places.shape}"
                )
            state[mask] = SKIPPED
            data = np.where(mask[:, None], data.dtype.type(0), data)
        if not len(places):
            return
        where = _as_slice(places)
        if self._state[where].any():
            self.forget(places)  # or a kill would leave a done row that is half new
        if self.header.dtype == "float16":
            data, cells["scales"] = encode(data)
        self._put(where, data)
        for name, values in cells.items():
            self._view(name)[where] = values
        self._view("checksums")[where] = row_checksums(places, state, data, cells)
        self._pending.append((places, state))
        self._state[where] = state
        if time.monotonic() - self._synced_at >= self._sync_interval:
            self.sync()

    def forget(self, indices: ArrayLike) -> None:
        """Mark rows as missing (bad ones that ``verify`` found, say), so that they are redone."""
        places = self._checked_indices(indices)
        self.sync()
        if len(places):
            self._view("done")[places] = MISSING
            self._state[places] = MISSING
            self._flush("done", int(places.min()), int(places.max()))

    def sync(self) -> None:
        """Bring what was written to disk, then mark it as done, and bring that to disk."""
        done = self._view("done")
        self._lease.check()
        if self._pending:
            first = min(int(places.min()) for places, _ in self._pending)
            last = max(int(places.max()) for places, _ in self._pending)
            try:
                for name in ("features", *self._layout.cells, "checksums"):
                    self._flush(name, first, last)
            except StoreError:
                # the system reports a failure once: a second sync would succeed without this data
                for places, _ in self._pending:
                    self._state[places] = MISSING
                self._pending.clear()
                raise
            for places, state in self._pending:
                done[places] = state
            self._flush("done", first, last)
            self._pending.clear()
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync, release the lock and close the file. A second call does nothing."""
        if self._closed:
            return
        try:
            self.sync()
        finally:
            self._closed = True
            self._views.clear()
            del self._map  # unmapped with its last view; a traceback may still hold one
            self._lease.release()
            unlock(self._file)
            self._file.close()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _view(self, name: str) -> Array:
        if self._closed:
            raise StoreError(f"{self.path}: the writer is closed; open it again to resume")
        return self._views[name]

    def _put(self, where: slice | npt.NDArray[np.int64], data: Array) -> None:
        """Bring rows into the file; neighbours without a page fault for each page of the map.

        Written or mapped, they are the same pages of the system's cache.
        """
        view = self._view("features")
        if not isinstance(where, slice) or not hasattr(os, "pwrite"):
            view[where] = data
            return
        extent = self._layout.extents["features"]
        place = extent.offset + where.start * extent.row_bytes
        left = data.reshape(-1).view(np.uint8).data
        try:
            while left:
                count = os.pwrite(self._file.fileno(), left, place)
                left, place = left[count:], place + count
        except OSError as error:
            raise StoreError(
                f"{self.path}: the disk refused the data ({error.strerror}); these rows stay "
                "missing and are computed again on resuming"
            ) from error

    def _flush(self, name: str, first: int, last: int) -> None:
        """Sync rows first to last of a dataset; the range grows to whole pages."""
        extent = self._layout.extents[name]
        start = extent.offset + first * extent.row_bytes
        start -= start % ALLOCATIONGRANULARITY
        end = extent.offset + (last + 1) * extent.row_bytes
        try:
            self._map.flush(start, end - start)
        except OSError as error:
            raise StoreError(
                f"{self.path}: the disk refused the data ({error.strerror}); rows since the last "
                "sync stay missing and are computed again on resuming"
            ) from error

    def _checked_indices(self, indices: ArrayLike) -> npt.NDArray[np.int64]:
        places = _to_numpy("indices", indices)
        if places.size == 0:
            places = places.astype(np.int64)
        if places.ndim != 1 or places.dtype.kind not in "iu":
            raise StoreError(f"indices are {places.dtype} {places.shape}, expected integers [b]")
        rows = self.header.rows
        wide = places.astype(np.int64)
        run = _as_slice(wide)
        if isinstance(run, slice) and 0 <= run.start <= run.stop <= rows:
            return wide
        outside = places[(places < 0) | (places >= rows)]
        if outside.size:
            raise StoreError(f"index {outside[0]} is outside the store's rows 0 to {rows - 1}")
        if np.unique(places).size != places.size:
            raise StoreError("indices name a row twice; write each row once")
        return wide

    def _checked_rows(self, rows: ArrayLike, count: int) -> Array:
        data = _to_numpy("rows", rows)
        expected = (count, self.header.width)
        if data.shape != expected:
            raise StoreError(f"rows are {data.shape}, expected {expected}")
        held = self.header.dtype
        dtype = np.dtype("float32" if held == "float16" else held)
        if data.dtype != dtype:
            of = f"{held}, made of {dtype}" if held == "float16" else held
            raise StoreError(f"rows are {data.dtype}, the store holds {of}; convert them first")
        return np.ascontiguousarray(data, dtype=dtype.newbyteorder("<"))

    def _checked_columns(self, columns: Mapping[str, ArrayLike], count: int) -> dict[str, Array]:
        expected = self.header.columns
        if columns.keys() != expected.keys():
            raise StoreError(f"columns are {sorted(columns)}, expected {sorted(expected)}")
        return {name: self._checked_column(name, columns[name], count) for name in expected}

    def _checked_column(self, name: str, column: ArrayLike, count: int) -> Array:
        values = _to_numpy(f"column {name!r}", column)
        dtype = self._layout.extents[name].dtype
        if values.shape != (count,):
            raise StoreError(f"column {name!r} has shape {values.shape}, expected {(count,)}")
        if count == 0:
            return values.astype(dtype)
        if not np.can_cast(values.dtype, dtype, "same_kind"):
            raise StoreError(f"column {name!r} is {values.dtype}, the store holds {dtype.name}")
        cells = values.astype(dtype)
        if dtype.kind in "iu" and not np.array_equal(cells, values):
            raise StoreError(f"column {name!r} has values that {dtype.name} cannot hold")
        return cells


def _writable_layout(path: Path) -> Layout:
    """The layout of a store that holds its rows itself."""
    if os.path.exists(path) and is_joined(path):
        raise StoreError(
            f"{path}: joins shards and holds no rows itself; write to the shards, which "
            "featurize with the same settings does"
        )
    return open_part(path).layout


def _as_slice(places: npt.NDArray[np.int64]) -> slice | npt.NDArray[np.int64]:
    """Neighbours as a slice, which copies several times faster."""
    if not len(places):
        return slice(0, 0)
    first, stop = int(places[0]), int(places[-1]) + 1
    if stop - first == len(places) and bool((places == np.arange(first, stop)).all()):
        return slice(first, stop)
    return places


def _to_numpy(name: str, values: Any) -> Array:
    try:
        if isinstance(values, torch.Tensor):
            return values.detach().cpu().numpy()
        return np.asarray(values)
    except (TypeError, ValueError) as error:  # bfloat16, ragged lists
        raise StoreError(f"{name} cannot become a NumPy array ({error})") from error
