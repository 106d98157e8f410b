"""Write whole files, and never over something that is not ours to replace."""

from __future__ import annotations

import os
from pathlib import Path

from pntk.errors import ConfigError

_HDF5 = b"\x89HDF\r\n\x1a\n"


def check_replaceable(path: Path) -> None:
    """Refuse a path that a result must not be written to, before any work.

    Raises:
        ConfigError: a folder, a device, an HDF5 file (a store or a kernel), in no folder, or in one
            that may not be written to.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it, such as {path / 'result'}")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is not a regular file; choose another path")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ConfigError(f"{path}: the folder {path.parent} cannot be written to; choose another")
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(len(_HDF5)) == _HDF5:
                raise ConfigError(
                    f"{path} is an HDF5 file, such as a store; choose another path, or delete it"
                )


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the target and rename, so that a reader never sees half a file.

    Raises:
        ConfigError: see :func:`check_replaceable`; also when the disk is full.
    """
    check_replaceable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); free space?") from error
    finally:
        temporary.unlink(missing_ok=True)
