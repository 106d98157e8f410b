"""One file of rows, read in pieces; a store is one of them, or several joined ones."""

import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pntk.errors import StoreError
from pntk.store.hdf5 import open_hdf5, read_attribute, read_header, read_layout
from pntk.store.header import StoreHeader
from pntk.store.layout import Array, Extent, Layout


@dataclass(frozen=True)
class Part:
    """A file, where its rows stand in the store, and which file it was when it was opened.

    ``identity`` is device and inode, ``header_crc32`` the checksum of its header.

    Reading goes through ordinary reads into fresh arrays and not through a memory map: nothing
    stays resident, and a file that shrinks or a disk that fails is an error, not a dead process.
    """

    path: Path
    layout: Layout
    start: int
    identity: tuple[int, int]
    header_crc32: int

    @property
    def stop(self) -> int:
        """One past the last row of the store that is here."""
        return self.start + self.layout.header.rows

    def read(
        self, name: str, first: int = 0, last: int | None = None, out: Array | None = None
    ) -> Array:
        """Return rows ``first`` to ``last`` (its own numbers) of a dataset, as stored.

        Args:
            out: where to put them, C-contiguous, of their shape and type; a new array unless told.

        Raises:
            StoreError: the file is gone, is another one, or cannot be read.
        """
        extent = self.layout.extents[name]
        last = extent.shape[0] if last is None else last
        result = self._empty(extent, last - first) if out is None else out
        left = memoryview(result.reshape(-1).view(np.uint8).data).cast("B")
        try:
            with open(self.path, "rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                if (found.st_dev, found.st_ino) != self.identity:
                    raise StoreError(
                        f"{self.path}: was replaced since it was opened; open it again"
                    )
                file.seek(extent.offset + first * extent.row_bytes)
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise StoreError(
                            f"{self.path}: the file has been truncated since it was opened"
                        )
                    left = left[count:]
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{self.path}: cannot be read ({error.strerror})") from error
        return result

    def _empty(self, extent: Extent, rows: int) -> Array:
        try:
            return np.empty((rows, *extent.shape[1:]), extent.dtype)
        except (MemoryError, ValueError) as error:  # a file may claim more than there is
            raise StoreError(
                f"{self.path}: {rows:,} rows of it take {rows * extent.row_bytes:,} bytes, more "
                "than there is memory; read fewer at a time, if the file is what it should be"
            ) from error


def open_part(path: Path, start: int = 0) -> Part:
    """Check a file of rows and say where its datasets are.

    Raises:
        StoreError: whatever is wrong with the file.
    """
    with open_hdf5(path) as file:
        if "shards" in file.attrs:
            raise StoreError(
                f"{path}: joins shards and holds no rows itself, as a shard has to; join again"
            )
        return read_part(path, file, read_header(path, file), start)


def read_part(path: Path, file: h5py.File, header: StoreHeader, start: int = 0) -> Part:
    """Say where the datasets of an open file of rows are, whose header has been checked.

    Raises:
        StoreError: whatever is wrong with the datasets.
    """
    layout = read_layout(path, file, header)
    found = path.stat()
    checksum = read_attribute(file, "header_crc32")
    assert isinstance(checksum, int)
    return Part(path, layout, start, (found.st_dev, found.st_ino), checksum)
