"""Where the bytes of a store are: the constants of the format, datasets and memory maps."""

import mmap
import os
import platform
import sys
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from pntk.errors import StoreError
from pntk.store.header import StoreHeader

FORMAT = "pntk-store"
FORMAT_VERSION = 2
CHECKSUM = "xxh3_64"
ALIGNMENT = 4096
# Four bits apart from each other, so that one flipped bit never makes one state of another.
MISSING, DONE, SKIPPED = 0x00, 0x55, 0xAA

Array = npt.NDArray[Any]
Mode = Literal["read", "write", "private"]


@dataclass(frozen=True)
class Extent:
    """A contiguous dataset: ``shape`` values of ``dtype`` from byte ``offset`` of the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True)
class Layout:
    """Header of a store and the place of each of its datasets."""

    header: StoreHeader
    extents: dict[str, Extent]

    @property
    def size(self) -> int:
        """Bytes from the start of the file to the end of the last dataset."""
        return max(extent.offset + extent.nbytes for extent in self.extents.values())

    @property
    def cells(self) -> list[str]:
        """Names of the datasets that hold one number a row beside the row, alphabetical."""
        return sorted(self.extents.keys() - {"features", "done", "checksums"})

    def views(self, buffer: mmap.mmap) -> dict[str, Array]:
        """Return one array per dataset, without a copy."""
        return {
            name: np.ndarray(extent.shape, extent.dtype, buffer=buffer, offset=extent.offset)
            for name, extent in self.extents.items()
        }


def datasets(header: StoreHeader) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and little-endian dtype of each dataset of a store with this header."""
    cells = dict(header.columns)
    if header.dtype == "float16":
        cells["scales"] = "float32"
    return {
        "features": ((header.rows, header.width), np.dtype(header.dtype).newbyteorder("<")),
        "done": ((header.rows,), np.dtype("u1")),
        "checksums": ((header.rows,), np.dtype("<u8")),
        **{
            name: ((header.rows,), np.dtype(kind).newbyteorder("<")) for name, kind in cells.items()
        },
    }


def is_present(done: Array) -> npt.NDArray[np.bool_]:
    """Which rows are there, skipped ones included, from their ``done`` values."""
    return (done == DONE) | (done == SKIPPED)


def text_checksum(text: str) -> int:
    """crc32 of a text, such as the header's JSON."""
    return zlib.crc32(text.encode())


class SharedMap(mmap.mmap):
    """A map for writing whose ``flush`` lets other threads run, which that of mmap does not.

    On Linux only, where syncing the file brings what was written through a map to disk.
    """

    file: BinaryIO

    def flush(self, offset: int = 0, size: int = 0) -> None:
        """Sync all of the file, and so this range of it."""
        os.fdatasync(self.file.fileno())


def map_file(file: BinaryIO, layout: Layout, mode: Mode) -> mmap.mmap:
    """Map the file: read-only, shared for writing, or private (writes never reach the file)."""
    try:
        if mode == "private" and sys.platform != "win32":
            # Without NORESERVE Linux refuses private maps larger than the machine's memory.
            flags = mmap.MAP_PRIVATE | _noreserve()
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            return mmap.mmap(file.fileno(), layout.size, flags=flags, prot=protection)
        if mode == "write" and sys.platform == "linux":
            shared = SharedMap(file.fileno(), layout.size)
            shared.file = file
            return shared
        access = {"read": mmap.ACCESS_READ, "write": mmap.ACCESS_WRITE, "private": mmap.ACCESS_COPY}
        return mmap.mmap(file.fileno(), layout.size, access=access[mode])
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{file.name}: cannot map {layout.size:,} bytes into memory ({error}); "
            "check the limit on address space (ulimit -v) and that the file is not changing"
        ) from error


def _noreserve() -> int:
    """MAP_NORESERVE; older Pythons lack the name, so its value on the common machines."""
    known = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
    return getattr(mmap, "MAP_NORESERVE", 0x4000 if known else 0)
