"""RowWriter: fill a store row by row, so that a kill at any instant leaves it right."""

import os
import time
from collections.abc import Mapping
from mmap import ALLOCATIONGRANULARITY
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from pntk.errors import StoreError
from pntk.store.create import create_file
from pntk.store.header import StoreHeader, explain_difference
from pntk.store.integrity import row_checksums
from pntk.store.layout import DONE, MISSING, SKIPPED, Array, Layout, map_file, read_layout
from pntk.store.locking import lock, unlock

ArrayLike = npt.ArrayLike | torch.Tensor


class RowWriter:
    """The one writer of a store; make it with ``RowWriter.open``.

    A row's data, columns and checksum are written at once into a memory map. Its ``done`` is set
    only after they have been synced to disk, which happens every ``sync_interval`` seconds, in
    ``sync`` and in ``close``. Not for use from several threads.
    """

    def __init__(self, path: Path, file: BinaryIO, layout: Layout, sync_interval: float) -> None:
        self.path = path
        self._file = file
        self._layout = layout
        self._map = map_file(file, layout, "write")
        self._views = layout.views(self._map)
        self._state = self._views["done"].copy()  # done values, those not yet synced included
        self._pending: list[tuple[Array, Array]] = []  # (indices, done values) not yet synced
        self._sync_interval = sync_interval
        self._synced_at = time.monotonic()
        self._closed = False

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
        created = not os.path.exists(path) and create_file(path, header)
        if not created and not resume:
            raise StoreError(
                f"{path}: the file exists and resume=False; "
                "choose another path, pass resume=True, or delete it"
            )
        layout = read_layout(path)
        different = header.difference(layout.header)
        if different:
            raise StoreError(f"{path}: cannot resume: {explain_difference(different)}")
        try:
            file = open(path, "r+b", buffering=0)  # noqa: SIM115 (kept open for the lock)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be written to ({error.strerror}); check its permissions"
            ) from error
        try:
            lock(file, path, "writing")
            return cls(path, file, layout, sync_interval)
        except BaseException:
            file.close()
            raise

    @property
    def header(self) -> StoreHeader:
        """The header in the file (its ``info`` is that of the creation)."""
        return self._layout.header

    def missing(self) -> npt.NDArray[np.int64]:
        """Return the indices of rows that have not been written, ascending."""
        return np.flatnonzero(self._state == MISSING).astype(np.int64)

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
            rows: [b, k] of the store's dtype.
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
        if self._state[places].any():
            self.forget(places)  # or a kill would leave a done row that is half new
        self._view("features")[places] = data
        for name, values in cells.items():
            self._view(name)[places] = values
        self._view("checksums")[places] = row_checksums(places, state, data, cells)
        self._pending.append((places, state))
        self._state[places] = state
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
        if self._pending:
            first = min(int(places.min()) for places, _ in self._pending)
            last = max(int(places.max()) for places, _ in self._pending)
            for name in ("features", *self.header.columns, "checksums"):
                self._flush(name, first, last)
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
        outside = places[(places < 0) | (places >= rows)]
        if outside.size:
            raise StoreError(f"index {outside[0]} is outside the store's rows 0 to {rows - 1}")
        if np.unique(places).size != places.size:
            raise StoreError("indices name a row twice; write each row once")
        return places.astype(np.int64)

    def _checked_rows(self, rows: ArrayLike, count: int) -> Array:
        data = _to_numpy("rows", rows)
        expected = (count, self.header.width)
        if data.shape != expected:
            raise StoreError(f"rows are {data.shape}, expected {expected}")
        dtype = self._layout.extents["features"].dtype
        if data.dtype != dtype:
            raise StoreError(
                f"rows are {data.dtype}, the store holds {self.header.dtype}; convert them first"
            )
        return np.ascontiguousarray(data, dtype=dtype)

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


def _to_numpy(name: str, values: Any) -> Array:
    try:
        if isinstance(values, torch.Tensor):
            return values.detach().cpu().numpy()
        return np.asarray(values)
    except (TypeError, ValueError) as error:  # bfloat16, ragged lists
        raise StoreError(f"{name} cannot become a NumPy array ({error})") from error
