"""Disks of a few megabytes, and disks that are full; see ``disk_full``."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.reliability.report import Unavailable

MIB = 2**20
SIZE = 24 * MIB  # of a disk


def mount(kind: str, place: Path) -> Path:
    """Mount a small disk, in a mount namespace of this process's own.

    Raises:
        Unavailable: with the reason.
    """
    disk = place / "disk"
    disk.mkdir()
    if kind == "tmpfs":
        shell("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(disk))
    else:
        image = place / "image"
        with open(image, "wb") as file:
            file.truncate(2 * SIZE)  # its own tables take some
        shell("mkfs.ext4", "-q", "-F", "-m", "0", str(image), f"{2 * SIZE // 1024}k")
        shell("mount", "-o", "loop", str(image), str(disk))
        shutil.rmtree(disk / "lost+found", ignore_errors=True)
    return disk


def shell(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(f"{words[0]}: {error.strerror}") from error
    if done.returncode:
        raise Unavailable(f"{words[0]} says: {done.stderr.strip().splitlines()[0]}")


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Let another program take all the space that is left, and give it back afterwards."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
        os.fsync(file.fileno())
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def limited(disk: Path) -> Iterator[None]:
    """Let no file grow, as a quota that is used up does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
