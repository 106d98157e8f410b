"""Read the HDF5 side of a store without trusting it: attributes, datasets and their places.

Nothing here follows a link, a virtual dataset or an external file, and no size that a file claims
is believed before it has been compared with the length of the file.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pntk.errors import StoreError
from pntk.store.header import StoreHeader
from pntk.store.layout import (
    CHECKSUM,
    FORMAT,
    FORMAT_VERSION,
    Extent,
    Layout,
    datasets,
    text_checksum,
)

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_TEXT = 2**28  # bytes of an attribute; the header of a million parameters takes half of it


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a regular file with HDF5, for reading, without a lock.

    Raises:
        StoreError: no such file, not HDF5, damaged, or whatever goes wrong inside the context.
    """
    _check_signature(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except StoreError:
        raise
    except Exception as error:  # damaged HDF5 surfaces as nearly any exception
        raise StoreError(
            f"{path}: the file is truncated or damaged: HDF5 cannot read it ({error}). "
            "Delete it and make it again"
        ) from error


def read_header(path: Path, file: h5py.File) -> StoreHeader:
    """Read and check what says that a file is a store, and of which rows.

    Raises:
        StoreError: another kind of file, another version, or damaged.
    """
    check_format(path, file, FORMAT, "a pntk store", FORMAT_VERSION)
    checksum = read_attribute(file, "checksum")
    if checksum != CHECKSUM:
        raise StoreError(f"{path}: checksum {checksum!r}, this pntk knows {CHECKSUM!r}; upgrade it")
    text = read_text(path, file, "header")
    try:
        return StoreHeader.from_json(text)
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error


def check_format(path: Path, file: h5py.File, kind: str, words: str, version: int) -> None:
    """Refuse a file of another kind or version."""
    found = read_attribute(file, "format")
    if found != kind:
        raise StoreError(
            f"{path}: is an HDF5 file but not {words} (its attribute 'format' is {found!r}, "
            f"expected {kind!r}); choose another path"
        )
    number = read_attribute(file, "format_version")
    if number != version:
        newer = isinstance(number, int) and number > version
        remedy = "upgrade pntk" if newer else "make it again, or use the pntk that wrote it"
        raise StoreError(
            f"{path}: format version {number!r}, this pntk reads version {version}; {remedy}"
        )


def read_text(path: Path, file: h5py.File, name: str) -> str:
    """Read an attribute that has its checksum beside it, as ``name`` + "_crc32".

    Raises:
        StoreError: absent, or not what was written.
    """
    text = read_attribute(file, name)
    if not isinstance(text, str) or text_checksum(text) != read_attribute(file, f"{name}_crc32"):
        raise StoreError(
            f"{path}: the {name} is damaged (its checksum does not match); "
            "delete the file and make it again"
        )
    return text


def read_attribute(file: h5py.File, name: str) -> str | int | None:
    """Read a root attribute if it is a scalar integer or a string of fixed length, else None.

    Nothing else is read: a damaged file may claim arrays of any size.
    """
    if name not in file.attrs:
        return None
    attribute = file.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype.kind not in "iuS":
        return None
    if attribute.dtype.itemsize > min(_MAX_TEXT, os.path.getsize(file.filename)):
        return None
    value = file.attrs[name]
    return value.decode("ascii") if isinstance(value, bytes) else int(value)


def read_layout(path: Path, file: h5py.File, header: StoreHeader) -> Layout:
    """Read where the datasets of a store with this header are.

    Raises:
        StoreError: a dataset is absent, not contiguous, not what the header says, or cut off.
    """
    layout = Layout(
        header,
        {
            name: read_extent(path, file, name, shape, dtype)
            for name, (shape, dtype) in datasets(header).items()
        },
    )
    size = path.stat().st_size
    if size < layout.size:
        raise StoreError(
            f"{path}: the file is truncated: {size:,} bytes long, its datasets end at "
            f"{layout.size:,}. Copy it again, or delete it and make it again"
        )
    return layout


def read_extent(
    path: Path, file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Extent:
    """Return where a contiguous dataset of this shape and type is in the file.

    Raises:
        StoreError: it is not there, or something else.
    """
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
