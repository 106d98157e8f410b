"""Write whole files, and never over something that is not ours to replace."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pntk.errors import ConfigError

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"


def check_replaceable(path: Path) -> None:
    """Refuse a path that a result must not be written to, before any work.

    Raises:
        ConfigError: a folder, a device, an HDF5 file (a store or a kernel), a zip file (a
            checkpoint) unless named .npz, in no folder, or in one that may not be written to.
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
            start = file.read(len(_HDF5))
        if start == _HDF5:
            raise ConfigError(
                f"{path} is an HDF5 file, such as a store; choose another path, or delete it"
            )
        if start.startswith(_ZIP) and path.suffix != ".npz":
            raise ConfigError(
                f"{path} is a zip file, such as a checkpoint; choose another path, or delete it"
            )


def check_results(out: Path | None, others: Mapping[str, Path | None]) -> None:
    """Refuse paths that the results of a command must not be written to, before any work.

    Args:
        out: main result, which is checked elsewhere.
        others: option -> path of a plot or page, or None.

    Raises:
        ConfigError: see :func:`check_replaceable`; arrays, or the path of another result.
    """
    taken = {} if out is None else {out.absolute(): "--out"}
    for option, path in others.items():
        if path is None:
            continue
        check_replaceable(path)
        if path.suffix in (".npz", ".npy"):
            raise ConfigError(
                f"{option} {path} ends in {path.suffix!r}, as arrays do; choose another path"
            )
        if path.absolute() in taken:
            raise ConfigError(f"{option} {path} is {taken[path.absolute()]}, too; name two files")
        taken[path.absolute()] = option


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
