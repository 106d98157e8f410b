"""Creation of a store: atomic, and with all of its space reserved."""

import errno
import os
import shutil
import sys
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from pntk.errors import StoreError
from pntk.store.header import StoreHeader
from pntk.store.layout import (
    ALIGNMENT,
    CHECKSUM,
    FORMAT,
    FORMAT_VERSION,
    datasets,
    header_checksum,
)
from pntk.store.locking import lock

# File systems that cannot reserve space answer with one of these.
_CANNOT_RESERVE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def create_file(path: Path, header: StoreHeader) -> bool:
    """Make an empty store at ``path``: all of it or nothing.

    It is built and reserved as ``path + ".creating"``, synced, and renamed.

    Returns:
        True, or False if another process has made ``path`` in the meantime.

    Raises:
        StoreError: no space, no permission, no parent directory, or being created elsewhere.
    """
    temporary = path.with_name(path.name + ".creating")
    with _open_temporary(path, temporary) as file:
        lock(file, temporary, "creating")
        try:
            if path.exists():
                temporary.unlink()
                return False
            file.truncate(0)  # what a killed creation left, before free space is counted
            _check_free(path, sum(_nbytes(*spec) for spec in datasets(header).values()))
            _write_hdf5(temporary, header)
            _reserve(file, path)
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # an open file cannot be renamed there
            os.replace(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, StoreError) or not isinstance(error, Exception):
                raise
            raise StoreError(f"{path}: cannot be created ({error})") from error
    _sync_directory(path.parent)
    return True


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


def _write_hdf5(temporary: Path, header: StoreHeader) -> None:
    """Attributes and datasets; space is allocated here, and no value is written."""
    text = header.to_json()
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)  # equal runs give equal files
    plist.set_layout(h5d.CONTIGUOUS)
    plist.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5d.FILL_TIME_NEVER)
    with h5py.File(
        temporary,
        "w",
        libver=("v108", "v108"),  # checksummed metadata, readable since HDF5 1.8 (2008)
        locking=False,  # create_file holds the lock
        alignment_threshold=1,
        alignment_interval=ALIGNMENT,
    ) as file:
        # Strings of fixed length: HDF5 keeps the others in a heap without a checksum, and a damaged
        # heap can make it loop for ever.
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["checksum"] = np.bytes_(CHECKSUM)
        file.attrs["header"] = np.bytes_(text)
        file.attrs["header_crc32"] = header_checksum(text)
        for name, (shape, dtype) in datasets(header).items():
            space = h5s.create_simple(shape)
            h5d.create(file.id, name.encode(), h5t.py_create(dtype), space, plist)


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


def _sync_directory(directory: Path) -> None:
    """Make the rename itself durable."""
    if sys.platform == "win32":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
