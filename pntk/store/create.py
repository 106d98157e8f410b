"""Creation of a store: atomic, and with all of its space reserved."""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from pntk.errors import StoreError
from pntk.host import sync_directory
from pntk.store.header import StoreHeader
from pntk.store.layout import (
    ALIGNMENT,
    CHECKSUM,
    FORMAT,
    FORMAT_VERSION,
    datasets,
    text_checksum,
)
from pntk.store.locking import lock

# File systems that cannot reserve space answer with one of these.
_CANNOT_RESERVE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def create_store(path: Path, header: StoreHeader) -> bool:
    """Make an empty store; see :func:`create_file`."""

    def write(file: h5py.File) -> None:
        describe_store(file, header)
        allocate(file, datasets(header))

    needed = sum(_nbytes(*spec) for spec in datasets(header).values())
    return create_file(path, write, needed)


def create_file(
    path: Path, write: Callable[[h5py.File], None], needed: int = 0, *, replace: bool = False
) -> bool:
    """Make an HDF5 file at ``path``: all of it or nothing.

    It is built and reserved as ``path + ".creating"``, synced, and renamed.

    Args:
        write: puts attributes and datasets into the file.
        needed: bytes of the datasets, compared with the free space beforehand.
        replace: whether to take the place of an existing file.

    Returns:
        True, or False if another process has made ``path`` in the meantime.

    Raises:
        StoreError: no space, no permission, no parent directory, or being created elsewhere.
    """
    temporary = path.with_name(path.name + ".creating")
    with _open_temporary(path, temporary) as file:
        lock(file, temporary, "creating")
        try:
            if path.exists() and not replace:
                temporary.unlink()
                return False
            file.truncate(0)  # what a killed creation left, before free space is counted
            _check_free(path, needed)
            with h5py.File(
                temporary,
                "w",
                libver=("v108", "v110"),  # checksummed metadata; 1.10 only where it is needed
                locking=False,  # the lock is ours
                alignment_threshold=1,
                alignment_interval=ALIGNMENT,
            ) as hdf5:
                write(hdf5)
            _reserve(file, path)
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # an open file cannot be renamed there
            os.replace(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, StoreError) or not isinstance(error, Exception):
                raise
            # HDF5 tells a story of many lines around the system's reason
            code = error.errno if isinstance(error, OSError) else None
            reason = os.strerror(code) if code else error
            raise StoreError(f"{path}: cannot be created ({reason})") from error
    sync_directory(path.parent)
    return True


def describe_store(file: h5py.File, header: StoreHeader) -> None:
    """Write the attributes that make a file a store."""
    describe(file, FORMAT, FORMAT_VERSION, header.to_json())
    file.attrs["checksum"] = np.bytes_(CHECKSUM)


def describe(file: h5py.File, kind: str, version: int, header: str) -> None:
    """Write the attributes that say what a file is.

    Strings are of fixed length: HDF5 keeps the others in a heap without a checksum, and a damaged
    heap can make it loop for ever.
    """
    file.attrs["format"] = np.bytes_(kind)
    file.attrs["format_version"] = version
    file.attrs["header"] = np.bytes_(header)
    file.attrs["header_crc32"] = text_checksum(header)


def allocate(file: h5py.File, wanted: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
    """Make contiguous datasets, name -> (shape, dtype), with their space and without values."""
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)  # equal runs give equal files
    plist.set_layout(h5d.CONTIGUOUS)
    plist.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5d.FILL_TIME_NEVER)
    for name, (shape, dtype) in wanted.items():
        space = h5s.create_simple(shape)
        h5d.create(file.id, name.encode(), h5t.py_create(dtype), space, plist)


def _open_temporary(path: Path, temporary: Path) -> BinaryIO:
    try:
        return open(temporary, "ab", buffering=0)
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: the directory {path.parent} does not exist; create it first"
        ) from error
    except OSError as error:
        raise StoreError(
            f"{path}: cannot create a file in {path.parent} ({error.strerror}); "
            "choose a directory that can be written to"
        ) from error


def _nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=object)) * dtype.itemsize


def _check_free(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise _no_space(path, needed, free)


def _no_space(path: Path, needed: int, free: int) -> StoreError:
    return StoreError(
        f"{path}: the store needs {needed:,} bytes and {free:,} bytes are available in "
        f"{path.parent}; free some space, or choose another path or a smaller proj_dim"
    )


def _reserve(file: BinaryIO, path: Path) -> None:
    """Give every byte of the file its place on disk, so that writing a map cannot fail later."""
    size = os.fstat(file.fileno()).st_size
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return _check_free(path, size)
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in _CANNOT_RESERVE:
            return _check_free(path, size)
        free = shutil.disk_usage(path.parent).free
        raise _no_space(path, size, free) from error
