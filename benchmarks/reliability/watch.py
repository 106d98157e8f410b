"""Watch a folder for files that are opened, by whatever library (Linux)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from pathlib import Path

from benchmarks.reliability.report import Unavailable

_IN_OPEN = 0x20
_NONBLOCK = 0x800
_EVENT = struct.Struct("iIII")


class Watch:
    """Collects the names of files that anyone opens in a folder.

    Raises:
        Unavailable: there is no inotify here.
    """

    def __init__(self, folder: Path) -> None:
        if sys.platform != "linux":
            raise Unavailable("what HDF5 opens is not seen: there is no inotify here")
        libc = ctypes.CDLL(None, use_errno=True)
        self._file = libc.inotify_init1(_NONBLOCK)
        if self._file < 0 or libc.inotify_add_watch(self._file, os.fsencode(folder), _IN_OPEN) < 0:
            reason = os.strerror(ctypes.get_errno())
            raise Unavailable(f"what HDF5 opens is not seen: inotify says {reason}")

    def opened(self) -> list[str]:
        """Return the names since the last call."""
        names: list[str] = []
        while True:
            try:
                events = os.read(self._file, 2**16)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return names
                raise
            while events:
                *_, length = _EVENT.unpack_from(events)
                name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                names.append(os.fsdecode(name))
                events = events[_EVENT.size + length :]

    def close(self) -> None:
        os.close(self._file)
