"""Whether files get their names after their bytes are on the disk; see ``power_cut``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.task import make_header, values
from pntk.store import RowWriter, join
from pntk.store.shards import shard_path


@contextmanager
def _recorded_calls() -> Iterator[list[tuple[str, Any]]]:
    """Record what is synced and renamed, with the bytes that were there then."""
    calls: list[tuple[str, Any]] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append(("fsync", (name, b"" if os.path.isdir(name) else Path(name).read_bytes())))

    def recorded_replace(source: Any, target: Any) -> None:
        calls.append(("replace", (os.fspath(source), os.fspath(target), Path(source).read_bytes())))
        replace(source, target)

    os.fsync, os.replace = recorded_fsync, recorded_replace  # type: ignore[assignment]
    try:
        yield calls
    finally:
        os.fsync, os.replace = fsync, replace


def creation_failures(target: Path, create: Callable[[], object]) -> list[str]:
    """Return what is wrong with the order in which a file is synced and gets its name."""
    with _recorded_calls() as calls:
        create()
    kinds = [(kind, about[:2] if kind == "replace" else about[0]) for kind, about in calls]
    temporary = f"{target}.creating"
    renamed = ("replace", (temporary, str(target)))
    if renamed not in kinds:
        return [f"{target.name} was not renamed from {temporary}: {kinds}"]
    at = kinds.index(renamed)
    synced = [about[1] for kind, about in calls[:at] if kind == "fsync" and about[0] == temporary]
    failures = []
    if not synced or synced[-1] != calls[at][1][2]:
        failures.append(f"{target.name} got its name before its bytes were synced")
    if ("fsync", str(target.parent)) not in kinds[at:]:
        failures.append(f"{target.name}: its directory was not synced after it got its name")
    return failures


def check_creation(place: Path) -> list[str]:
    """Return what is wrong with the creation of a store and of a file that joins shards."""
    whole = make_header(40, 8)
    path = place / "created.h5"
    failures = creation_failures(path, lambda: RowWriter.open(path, whole).close())
    joined, files = place / "whole.h5", []
    for i in range(2):
        files.append(shard_path(joined, i, 2))
        with RowWriter.open(files[-1], whole) as writer:
            rows, columns, skipped = values(whole)
            writer.write(np.arange(40), rows, columns, skipped)
    return failures + creation_failures(joined, lambda: join(joined, files))
