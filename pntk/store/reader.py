"""FeatureStore: read the rows of a store without copying them."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pntk.errors import StoreError
from pntk.store.header import StoreHeader
from pntk.store.integrity import VerifyReport, verify
from pntk.store.layout import MISSING, SKIPPED, Array, map_file, read_layout

Index = int | slice | Sequence[int] | npt.NDArray[Any] | Tensor


class FeatureStore:
    """A store opened for reading; also while a writer is filling it.

    The file is memory-mapped: opening is instant, rows are read from disk when touched, and
    workers that are forked or spawned share them. Columns of rows that are missing hold zeros.

    Args:
        path: the file.

    Raises:
        StoreError: the file is missing, no store, of another version, truncated or damaged.

    Attributes:
        path: absolute path of the file.
        header: what the rows are.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self._layout = read_layout(self.path)
        with open(self.path, "rb") as file:
            self._views = self._layout.views(map_file(file, self._layout, "read"))
            # PyTorch has no read-only tensors: give it a map whose writes stay in memory.
            private = self._layout.views(map_file(file, self._layout, "private"))
        self._tensor: Tensor | None = torch.from_numpy(private["features"])

    @property
    def header(self) -> StoreHeader:
        return self._layout.header

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, width), or (n, k)."""
        return self.header.rows, self.header.width

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.header.dtype == "float32" else torch.float64

    @property
    def done(self) -> npt.NDArray[np.uint8]:
        """State of each row, uint8 [n]: 0 missing, 1 done, 2 skipped; follows a live writer."""
        return self._view("done")

    @property
    def num_done(self) -> int:
        """Number of rows that are not missing (skipped ones count)."""
        return int(np.count_nonzero(self.done != MISSING))

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
        """Return an extra column [n], read-only and without a copy.

        Raises:
            StoreError: there is no such column.
        """
        if name not in self.header.columns:
            raise StoreError(
                f"{self.path}: no column {name!r}; there are {sorted(self.header.columns)}"
            )
        return self._view(name)

    def numpy(self) -> Array:
        """Return all rows [n, k], read-only and without a copy."""
        return self._view("features")

    def torch(self) -> Tensor:
        """Return all rows [n, k] without a copy; writing to the tensor never changes the file."""
        if self._tensor is None:
            raise StoreError(f"{self.path}: the store is closed; open it again")
        return self._tensor

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
            StoreError: the file has been truncated since it was opened.
        """
        self._view("done")
        if self.path.stat().st_size < self._layout.size:
            raise StoreError(f"{self.path}: the file has been truncated since it was opened")
        return verify(self._views, progress)

    def close(self) -> None:
        """Let go of the file; arrays and tensors that were handed out stay valid."""
        self._views = {}
        self._tensor = None

    def __len__(self) -> int:
        return self.header.rows

    def __getitem__(self, key: Index) -> Tensor:
        """Rows as a tensor: a view for an integer or a slice, a copy for a list, array or mask."""
        rows = self.torch().numpy()
        picked = rows[key.cpu().numpy() if isinstance(key, Tensor) else key]
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

    def __reduce__(self) -> tuple[type["FeatureStore"], tuple[str]]:
        return FeatureStore, (str(self.path),)

    def __repr__(self) -> str:
        state = f"{self.num_done}/{len(self)} rows" if self._views else "closed"
        return f"FeatureStore({str(self.path)!r}, {state}, k={self.header.width}, {self.dtype})"

    def _view(self, name: str) -> Array:
        if not self._views:
            raise StoreError(f"{self.path}: the store is closed; open it again")
        return self._views[name]
