"""Open, read, verify, write, join and repair one file, with little memory; see ``fuzz``."""

from __future__ import annotations

import os
import resource
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.task import contents, wrong_rows
from pntk.errors import PntkError
from pntk.ntk.kernel_file import open_kernel
from pntk.store import FeatureStore, RowWriter, join, repair

ROOM = 2**30  # bytes of address space beyond what imports have taken
REFUSED, FOUND, UNHARMED, FAILED = "refused", "opened, damage found", "opened, unharmed", "failed"

_SMALL = 2**20  # bytes of rows that are read and verified whole

Expected = dict[str, np.ndarray]

_allowed: list[str] = []
_opened_outside: list[str] = []


class SilentError(Exception):
    """Wrong rows passed for right ones."""


def serve(connection: Connection) -> None:
    """Answer (folder, file, what it should hold) with (outcome, why), until there are no more."""
    ours = str(Path(__file__).parents[2])
    for prefix in (sys.prefix, sys.base_prefix, ours, "/proc", os.devnull):
        _allowed.append(os.path.realpath(prefix))
    _allowed.append("")  # the folder of the file
    sys.addaudithook(_audit)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    taken = _address_space()
    if taken is not None:
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    connection.send("ready")
    while True:
        try:
            folder, name, expected = connection.recv()
        except EOFError:
            return
        _allowed[-1] = folder
        _opened_outside.clear()
        found = examine(Path(folder) / name, expected)
        if _opened_outside:
            found = FAILED, f"opened {_opened_outside[0]}"
        connection.send(found)


def examine(path: Path, expected: Expected | None) -> tuple[str, str]:
    """Do with a file all that can be done, and return an outcome and why.

    Args:
        expected: what it holds if it was damaged by accident; None if it is hostile.
    """
    steps: list[Callable[[], str]] = [
        lambda: _read_kernel(path, expected),
        lambda: _read_store(path, expected),
        lambda: _write(path),
        lambda: str(join(path.with_name("again.h5"), [path])),
        lambda: str(repair(path)) if _is_small(path) else "",
        lambda: _read_store(path, None),
    ]
    outcomes: list[tuple[str, str]] = []
    for step in steps:
        try:
            outcomes.append((step(), ""))
        except PntkError as error:
            outcomes.append((REFUSED, str(error)))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            return FAILED, f"{type(error).__name__} at {where}: {error}"[:400]
    kernel, store = outcomes[:2]
    return store if kernel[0] == REFUSED else kernel


def _read_kernel(path: Path, expected: Expected | None) -> str:
    kernel = open_kernel(path)
    if kernel.extents["ntk"].nbytes > _SMALL:
        _ = kernel.values[0, 0], kernel.values[-1, -1]
        return UNHARMED
    values = kernel.read(0, len(kernel.values))
    try:
        kernel.check()
    except PntkError:
        return FOUND
    if expected is not None and not np.array_equal(values, expected["ntk"]):
        raise SilentError("check is content and entries are others")
    return UNHARMED


def _read_store(path: Path, expected: Expected | None) -> str:
    with FeatureStore(path) as store:
        n = len(store)
        _ = repr(store), store.shape, store.dtype, store.files, store.labels
        _ = store.num_done, store.complete, store.skipped
        store.read(0, min(n, 2))
        store.read(n - 1, n)
        _ = store[0], store[-1], store[[0, n - 1]]
        if n * store.header.width * 8 > _SMALL:
            return UNHARMED
        _ = store.numpy().sum(), store.torch().sum()
        report = store.verify()
        if not report.ok:
            return FOUND
    if expected is not None:
        found = contents(path)
        same = {name: values.shape for name, values in found.items()} == {
            name: values.shape for name, values in expected.items()
        }
        if not same or (wrong := wrong_rows(found, expected)):
            raise SilentError(f"verify is content and rows are others: {wrong if same else 'all'}")
    with FeatureStore(path, check=True) as checked:
        checked.read(0, n)
    return UNHARMED


def _write(path: Path) -> str:
    """Write what is missing, into whatever the file says that it is."""
    with RowWriter.reopen(path) as writer:
        header = writer.header
        missing = writer.missing()[:100]
        if header.width <= 2**16:
            dtype = "float32" if header.dtype == "float16" else header.dtype
            rows = np.zeros((len(missing), header.width), dtype)
            cells = {name: np.zeros(len(missing), kind) for name, kind in header.columns.items()}
            writer.write(missing, rows, cells)
            writer.forget(missing)
    return ""


def _is_small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= _SMALL


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what Python opens elsewhere than in the file's folder."""
    if event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    if not any(path == prefix or path.startswith(prefix + os.sep) for prefix in _allowed):
        _opened_outside.append(path)


def _address_space() -> int | None:
    """Bytes, or None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("VmSize")) * 1024
