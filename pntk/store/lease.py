"""Who is writing a store: a small file beside it, for hosts that do not see each other's locks.

On a network file system that keeps locks to one host, the lock alone would let two hosts write.
"""

import json
import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any

from pntk.errors import StoreError

log = logging.getLogger("pntk")

BEAT = 10.0  # seconds between signs of life
STALE = 60.0  # seconds without one after which a writer on another host counts as dead


class Lease:
    """Says in ``path + ".writer"`` that this process writes ``path``, until it is released.

    To be taken while holding the lock of the file, which settles everything on one host. A process
    that is killed leaves the file behind; it goes stale.

    Raises:
        StoreError: a process on another host has shown life within the last ``STALE`` seconds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".writer")
        self._own: dict[str, Any] = {
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
        }
        self._taken_by: dict[str, Any] = {}
        self._take(path)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pntk lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Do nothing as long as the lease is this process's.

        Raises:
            StoreError: a process on another host has taken the file over.
        """
        if self._taken_by:
            raise StoreError(
                f"{self._path.with_suffix('')}: process {self._taken_by.get('pid')} on host "
                f"{self._taken_by.get('host')} is writing this file since this process showed no "
                "sign of life; rows since the last sync are left to it"
            )

    def release(self) -> None:
        """Remove the file, unless it is another's by now; a second call does nothing."""
        if self._done.is_set() or os.getpid() != self._own["pid"]:  # a forked child holds no lease
            return
        self._done.set()
        if threading.current_thread() is not self._thread:  # where a garbage collection may run
            self._thread.join()
        try:
            if _read(self._path) == self._own:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be removed (%s)", self._path, error.strerror)

    def _take(self, path: Path) -> None:
        fresh = self._path.with_name(f"{self._path.name}.{self._own['boot'][:8]}.{os.getpid()}")
        try:
            fresh.write_text(json.dumps(self._own))
            other = _read(self._path)
            if other and other.get("boot") != self._own["boot"]:
                # both times are the file server's, so that clocks need not agree
                age = fresh.stat().st_mtime - self._path.stat().st_mtime
                if age < STALE:
                    raise StoreError(
                        f"{path}: process {other.get('pid')} on host {other.get('host')} is "
                        f"writing this file (last sign of life {max(0.0, age):.0f} s ago); wait "
                        f"for it. If it has died, try again in {STALE - max(0.0, age):.0f} s, or "
                        f"delete {self._path.name}"
                    )
            os.replace(fresh, self._path)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{path}: cannot write {self._path.name} beside it ({error.strerror}); check the "
                "folder's permissions and free space"
            ) from error
        finally:
            fresh.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            found = _read(self._path)
            if found and found != self._own:  # after a long sleep of this host
                self._taken_by = found
                return
            try:
                os.utime(self._path)
            except OSError as error:
                log.warning("%s: no sign of life can be given (%s)", self._path, error.strerror)


def _read(path: Path) -> dict[str, Any]:
    """What a lease says, or nothing."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(4096))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _boot() -> str:
    """What names this host until it is started again; host names are not always unique."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
