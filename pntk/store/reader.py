"""FeatureStore: read the rows of a store, which is one file or several joined ones."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pntk.errors import ConfigError, StoreError
from pntk.host import available_memory
from pntk.store.half import decode
from pntk.store.integrity import VerifyReport, damaged_rows, verify
from pntk.store.joined import open_parts
from pntk.store.layout import SKIPPED, Array, is_present, map_file
from pntk.store.part import Part

Index = int | slice | Sequence[int] | npt.NDArray[Any] | Tensor
_BLOCK_BYTES = 2**22


class FeatureStore:
    """A store opened for reading; also while a writer is filling it.

    One file of float32 or float64 is memory-mapped: opening is instant, rows are read from disk
    when touched, and workers that are forked or spawned share them. Joined shards, and rows of
    float16, are read when asked for: use ``read`` for a range of them. Where a row is missing, it
    and its columns may hold anything.

    Args:
        path: the file; of joined shards, the one that joins them.
        check: compare rows with their checksums whenever ``read`` or indexing reads them.

    Raises:
        StoreError: the file is missing, no store, of another version, truncated or damaged; a
            shard is not where it was, or not what it was, when the shards were joined.

    Attributes:
        path: absolute path of the file.
        header: what the rows are.
    """

    def __init__(self, path: str | os.PathLike[str], *, check: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self.header, self._parts = open_parts(self.path)
        self._check = check
        self._views: dict[str, Array] = {}
        self._tensor: Tensor | None = None
        self._closed = False
        if len(self._parts) == 1 and self.header.dtype != "float16":
            self._map(self._parts[0])

    def _map(self, part: Part) -> None:
        with open(part.path, "rb") as file:
            self._views = part.layout.views(map_file(file, part.layout, "read"))
            # PyTorch has no read-only tensors: give it a map whose writes stay in memory.
            private = part.layout.views(map_file(file, part.layout, "private"))
        self._tensor = torch.from_numpy(private["features"])

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, width), or (n, k)."""
        return self.header.rows, self.header.width

    @property
    def dtype(self) -> torch.dtype:
        """Type of the rows that are read; float32 where they are stored as float16."""
        return torch.float64 if self.header.dtype == "float64" else torch.float32

    @property
    def files(self) -> list[Path]:
        """The files that hold the rows, in their order."""
        return [part.path for part in self._parts]

    @property
    def done(self) -> npt.NDArray[np.uint8]:
        """State of each row at this moment, uint8 [n]: MISSING, DONE or SKIPPED; a copy.

        Under a live writer a view would change while NumPy goes through it.
        """
        state = self._column("done").copy()
        state.flags.writeable = False
        return state

    @property
    def num_done(self) -> int:
        """Number of rows that are there (skipped ones count)."""
        return int(np.count_nonzero(is_present(self.done)))

    @property
    def complete(self) -> bool:
        """No row is missing."""
        return self.num_done == len(self)

    @property
    def skipped(self) -> npt.NDArray[np.int64]:
        """Indices of rows that were left out as non-finite; their features are zeros."""
        return np.flatnonzero(self.done == SKIPPED).astype(np.int64)

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """Labels, int64 [n] with -1 for none, or None if the store has no such column."""
        return self.column("labels") if "labels" in self.header.columns else None

    def column(self, name: str) -> Array:
        """Return an extra column [n], read-only.

        Raises:
            StoreError: there is no such column.
        """
        if name not in self.header.columns:
            raise StoreError(
                f"{self.path}: no column {name!r}; there are {sorted(self.header.columns)}"
            )
        return self._column(name)

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop`` as a tensor [stop - start, k] of its own.

        This is the way through a store that is larger than memory: nothing else stays resident.

        Raises:
            ConfigError: not 0 <= start <= stop <= n.
            StoreError: the file has been truncated or replaced since it was opened; the rows do
                not fit into memory; with ``check``, rows are damaged.
        """
        self._require_open()
        if not 0 <= start <= stop <= len(self):
            raise ConfigError(f"rows {start} to {stop} of a store of {len(self)} rows")
        result = self._empty(stop - start)
        number = bisect_right(self._parts, start, key=lambda part: part.start) - 1
        reached = start
        while reached < stop:
            part = self._parts[number]
            end = min(stop, part.stop)
            self._read_part(part, reached - part.start, result[reached - start : end - start])
            reached, number = end, number + 1
        return result

    def numpy(self) -> Array:
        """Return all rows [n, k], read-only; without a copy from one file of float32 or float64.

        Raises:
            StoreError: they have to be copied and do not fit into memory.
        """
        self._require_open()
        if self._views:
            return self._views["features"]
        rows: Array = self._read_all().numpy()
        rows.flags.writeable = False
        return rows

    def torch(self) -> Tensor:
        """Return all rows [n, k], as ``numpy`` does; writing to them never changes the file."""
        self._require_open()
        return self._read_all() if self._tensor is None else self._tensor

    def require_complete(self) -> None:
        """Do nothing if every row is there.

        Raises:
            StoreError: rows are missing; says how many.
        """
        missing = len(self) - self.num_done
        if missing:
            raise StoreError(
                f"{self.path}: {missing} of {len(self)} rows are missing; "
                "run featurize again with the same settings to resume"
            )

    def verify(self, progress: bool = False) -> VerifyReport:
        """Read every row that is there and compare it with its checksum.

        Raises:
            StoreError: a file has been truncated or replaced since it was opened.
        """
        self._require_open()
        return verify(self._parts, progress)

    def close(self) -> None:
        """Let go of the file; arrays and tensors that were handed out stay valid."""
        self._views = {}
        self._tensor = None
        self._closed = True

    def __len__(self) -> int:
        return self.header.rows

    def __getitem__(self, key: Index) -> Tensor:
        """Rows as a tensor: a view for an integer or a slice of one mapped file, else a copy.

        Keys are NumPy's. Only a mapped file knows tuples, which pick columns too.
        """
        self._require_open()
        key = key.cpu().numpy() if isinstance(key, Tensor) else key
        if self._tensor is None or self._check:
            return self._gather(_rows_of(key, len(self)))
        picked = self._tensor.numpy()[key]
        if any(stride < 0 for stride in picked.strides):  # PyTorch has no negative strides
            picked = picked.copy()
        return torch.as_tensor(picked)

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self._check)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.num_done}/{len(self)} rows"
        joined = f", {len(self._parts)} shards" if len(self._parts) > 1 else ""
        return (
            f"FeatureStore({str(self.path)!r}, {state}, k={self.header.width}, "
            f"{self.header.dtype}{joined})"
        )

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path}: the store is closed; open it again")

    def _column(self, name: str) -> Array:
        """A dataset of one value a row, read-only."""
        self._require_open()
        if self._views:
            return self._views[name]
        values = np.concatenate([part.read(name) for part in self._parts])
        values.flags.writeable = False
        return values

    def _empty(self, rows: int) -> Tensor:
        try:
            return torch.empty(rows, self.header.width, dtype=self.dtype)
        except RuntimeError as error:
            needed = rows * self.header.width * self.dtype.itemsize
            raise StoreError(
                f"{self.path}: {rows:,} rows take {needed:,} bytes, more than there is memory; "
                "read fewer at a time"
            ) from error

    def _read_part(self, part: Part, first: int, out: Tensor) -> None:
        """Fill ``out`` [b, k] with rows of a file, from its row ``first`` on."""
        half = self.header.dtype == "float16"
        step = max(1, _BLOCK_BYTES // part.layout.extents["features"].row_bytes)
        for block in out.split(step):
            last = first + len(block)
            done = part.read("done", first, last) if self._check else None
            stored = part.read("features", first, last, out=None if half else block.numpy())
            if done is not None:
                _check_rows(part, first, done, stored)
            if half:
                block.copy_(decode(stored, part.read("scales", first, last)))
            first = last

    def _gather(self, rows: Array) -> Tensor:
        """Copy rows from wherever they are: those of numbers of any shape, [..., k]."""
        wanted = rows.reshape(-1)
        step = max(1, _BLOCK_BYTES // (self.header.width * self.dtype.itemsize))
        if len(wanted) and bool((np.diff(wanted) == 1).all()):
            result = self.read(int(wanted[0]), int(wanted[-1]) + 1)
        else:
            result = self._empty(len(wanted))
            order = np.argsort(wanted, kind="stable")
            cuts = np.flatnonzero(np.diff(wanted[order]) != 1) + 1
            for run in np.split(order, cuts):  # neighbours are read at once, but not too many
                for begin in range(0, len(run), step):
                    places = run[begin : begin + step]
                    first = int(wanted[places[0]])
                    result[torch.from_numpy(places)] = self.read(first, first + len(places))
        return result.reshape(*rows.shape, self.header.width)

    def _read_all(self) -> Tensor:
        needed = self.header.rows * self.header.width * self.dtype.itemsize
        free = available_memory()
        if free is not None and needed > free:
            raise StoreError(
                f"{self.path}: its rows take {needed:,} bytes in memory and {free:,} are "
                "available; go through them with read(start, stop)"
            )
        return self.read(0, len(self))


def _rows_of(key: Any, length: int) -> Array:
    """The numbers of the rows that NumPy would pick by a key, int64 of any shape."""
    if isinstance(key, tuple):
        raise ConfigError(
            f"{key!r} picks columns too, and only rows can be read here; write "
            "store[rows][:, columns]"
        )
    if isinstance(key, slice):
        return np.arange(*key.indices(length))
    numbers = np.asarray(key)
    if numbers.dtype.kind not in "iu":  # masks, an empty list, and what NumPy refuses
        return np.asarray(np.arange(length)[key])
    outside = numbers[(numbers < -length) | (numbers >= length)]
    if outside.size:
        raise IndexError(f"index {outside[0]} is out of bounds for {length} rows")
    numbers = numbers.astype(np.int64)
    return np.where(numbers < 0, numbers + length, numbers)


def _check_rows(part: Part, first: int, done: Array, stored: Array) -> None:
    bad, messages = damaged_rows(part, first, done, stored)
    if len(bad):
        raise StoreError(
            f"{part.path}: row {bad[0]} is damaged ({messages[0]}); find all such rows with `pntk "
            "verify`, mark them with `pntk repair`, and featurize again"
        )


def _reopen(path: str, check: bool) -> FeatureStore:
    return FeatureStore(path, check=check)
