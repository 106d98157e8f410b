"""One writer a file: an advisory lock that ends with the process, however it ends."""

import os
import sys
from pathlib import Path
from typing import BinaryIO

from pntk.errors import StoreError

if sys.platform != "win32":
    import fcntl


def lock(file: BinaryIO, path: Path, verb: str) -> None:
    """Take the exclusive lock on an open file that must still be the one at ``path``.

    ``flock`` belongs to the open file, so a second open in the same process is refused too, and
    it is the lock that HDF5 takes, so foreign HDF5 writers are kept out. Windows has none.

    Raises:
        StoreError: someone else holds the lock, or the file at ``path`` has been replaced.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"{path}: another process is {verb} this file (or it is open in this one); "
                "wait for it, or choose another path"
            ) from error
        except OSError as error:
            raise StoreError(
                f"{path}: the file cannot be locked ({error.strerror}); "
                "use a local file system that supports flock"
            ) from error
    if not _same_file(file, path):
        raise StoreError(f"{path}: another process is {verb} this file (it was just replaced)")


def unlock(file: BinaryIO) -> None:
    """Release the lock now, even if a forked child still holds the open file."""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_UN)


def _same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
