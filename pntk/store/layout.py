"""Where the bytes of a store are: format constants, reading the layout, mapping the file.

HDF5 is used only here and in create.py; writer and reader work on memory maps.
"""

import mmap
import os
import platform
import stat
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import h5py
import numpy as np
import numpy.typing as npt

from pntk.errors import StoreError
from pntk.store.header import StoreHeader

FORMAT = "pntk-store"
FORMAT_VERSION = 1
CHECKSUM = "crc32"
ALIGNMENT = 4096
MISSING, DONE, SKIPPED = 0, 1, 2

_SIGNATURE = b"\x89HDF\r\n\x1a\n"

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

    def views(self, buffer: mmap.mmap) -> dict[str, Array]:
        """Return one array per dataset, without a copy."""
        return {
            name: np.ndarray(extent.shape, extent.dtype, buffer=buffer, offset=extent.offset)
            for name, extent in self.extents.items()
        }


def datasets(header: StoreHeader) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and little-endian dtype of each dataset of a store with this header."""
    little = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in header.columns.items()}
    return {
        "features": ((header.rows, header.width), np.dtype(header.dtype).newbyteorder("<")),
        "done": ((header.rows,), np.dtype("u1")),
        "checksums": ((header.rows,), np.dtype("<u8")),
        **{name: ((header.rows,), dtype) for name, dtype in little.items()},
    }


def header_checksum(text: str) -> int:
    """crc32 of the header's JSON."""
    return zlib.crc32(text.encode())


def read_layout(path: Path) -> Layout:
    """Open the file with HDF5, check all that can be checked before mapping, and close it.

    Raises:
        StoreError: whatever is wrong with the file.
    """
    _check_signature(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            header = _read_header(path, file)
            extents = {
                name: _read_extent(path, file, name, shape, dtype)
                for name, (shape, dtype) in datasets(header).items()
            }
    except StoreError:
        raise
    except Exception as error:  # damaged HDF5 surfaces as nearly any exception
        raise StoreError(
            f"{path}: the file is truncated or damaged: HDF5 cannot read it ({error}). "
            "Delete it and featurize again"
        ) from error
    layout = Layout(header, extents)
    size = path.stat().st_size
    if size < layout.size:
        raise StoreError(
            f"{path}: the file is truncated: {size:,} bytes long, its datasets end at "
            f"{layout.size:,}. Copy it again, or delete it and featurize again"
        )
    return layout


def map_file(file: BinaryIO, layout: Layout, mode: Mode) -> mmap.mmap:
    """Map the file: read-only, shared for writing, or private (writes never reach the file)."""
    try:
        if mode == "private" and sys.platform != "win32":
            # Without NORESERVE Linux refuses private maps larger than the machine's memory.
            flags = mmap.MAP_PRIVATE | _noreserve()
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            return mmap.mmap(file.fileno(), layout.size, flags=flags, prot=protection)
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


def _check_signature(path: Path) -> None:
    """Refuse what is not a readable regular file that starts like HDF5."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise StoreError(f"{path}: is a directory, expected one file; try {path / 'rows.h5'}")
        if not stat.S_ISREG(mode):
            raise StoreError(f"{path}: is not a regular file (a pipe or a device)")
        with open(path, "rb") as file:
            start = file.read(len(_SIGNATURE))
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file; featurize makes it, or check the path") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); check permissions") from error
    if start != _SIGNATURE:
        raise StoreError(f"{path}: is not an HDF5 file (it starts with {start!r}); check the path")


def _read_header(path: Path, file: h5py.File) -> StoreHeader:
    kind = _attribute(file, "format")
    if kind != FORMAT:
        raise StoreError(
            f"{path}: is an HDF5 file but not a pntk store (its attribute 'format' is {kind!r}, "
            f"expected {FORMAT!r}); choose another path"
        )
    version = _attribute(file, "format_version")
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{path}: format version {version!r}, this pntk reads version {FORMAT_VERSION}; "
            "use the version of pntk that wrote it"
        )
    checksum = _attribute(file, "checksum")
    if checksum != CHECKSUM:
        raise StoreError(f"{path}: checksum {checksum!r}, this pntk knows {CHECKSUM!r}; upgrade it")
    text = _attribute(file, "header")
    if not isinstance(text, str) or header_checksum(text) != _attribute(file, "header_crc32"):
        raise StoreError(
            f"{path}: the header is damaged (its checksum does not match); "
            "delete the file and featurize again"
        )
    try:
        return StoreHeader.from_json(text)
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error


def _attribute(file: h5py.File, name: str) -> str | int | None:
    """A root attribute if it is a scalar integer or a string of fixed length, else None.

    Nothing else is read: a damaged file may claim arrays of any size.
    """
    if name not in file.attrs:
        return None
    attribute = file.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype.kind not in "iuS":
        return None
    value = file.attrs[name]
    return value.decode("ascii") if isinstance(value, bytes) else int(value)


def _read_extent(
    path: Path, file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Extent:
    link = file.get(name, getlink=True)
    dataset = file.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset):
        raise StoreError(f"{path}: has no dataset {name!r}; the file is damaged or not a store")
    plist = dataset.id.get_create_plist()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_external_count():
        raise StoreError(
            f"{path}: dataset {name!r} is not contiguous (virtual, chunked, compact or external), "
            "so it cannot be mapped; copy it into a contiguous dataset of a new store"
        )
    if dataset.shape != shape or dataset.dtype != dtype:
        raise StoreError(
            f"{path}: dataset {name!r} is {dataset.dtype} {dataset.shape}, the header says "
            f"{dtype} {shape}; the file is damaged"
        )
    offset = dataset.id.get_offset()
    if offset is None or offset % dtype.itemsize:
        raise StoreError(f"{path}: dataset {name!r} has no aligned space in the file ({offset})")
    return Extent(offset, shape, dtype)
