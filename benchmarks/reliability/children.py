"""What the processes do that are to be killed; see ``storm``. They are forked after the imports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from benchmarks.reliability import task
from pntk import Featurizer
from pntk.distributed import Ranks
from pntk.errors import DistributedError
from pntk.store import create, writer
from pntk.store.lease import Lease
from pntk.store.writer import RowWriter

ALONE = 3  # exit code of a rank that says that another one has ended
_RENDEZVOUS = timedelta(seconds=30)

Place = tuple[Any, str, str, Callable[..., bool]]  # where a method is, its name, when, which calls


def _any(*args: Any, **kwargs: Any) -> bool:
    return True


def _flushes(name: str) -> Callable[..., bool]:
    return lambda self, flushed, *rest: flushed == name


CREATION: dict[str, Place] = {
    "temporary file opened and locked": (create, "_check_free", "before", _any),
    "attributes written": (create, "describe_store", "after", _any),
    "datasets made": (create, "allocate", "after", _any),
    "space reserved": (create, "_reserve", "after", _any),
    "synced, not renamed": (os, "replace", "before", _any),
    "renamed, directory not synced": (create, "sync_directory", "before", _any),
    "lease taken": (Lease, "_take", "after", _any),
}
WRITING: dict[str, Place] = {
    "half of a block copied": (os, "pwrite", "half", _any),
    "rows copied, no checksums": (writer, "row_checksums", "before", _any),
    "before a flush": (RowWriter, "_flush", "before", _any),
    "features flushed, nothing else": (RowWriter, "_flush", "after", _flushes("features")),
    "done set, not flushed": (RowWriter, "_flush", "before", _flushes("done")),
    "done flushed": (RowWriter, "_flush", "after", _flushes("done")),
    "closing, lease still there": (Lease, "release", "before", _any),
}
PLACES = CREATION | WRITING


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    """Fork a process from one that has the imports behind it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def featurize(
    path: Path, rows: int, options: dict[str, Any], kill: tuple[str, int] | None = None
) -> None:
    """Featurize in this process.

    Args:
        options: of ``Featurizer.featurize``.
        kill: of ``PLACES``, and at which of the calls there to die.
    """
    torch.set_num_threads(1)  # rows are the same bit for bit
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a kill leaves behind
    if kill is not None:
        _die_in(*PLACES[kill[0]], kill[1])
    featurizer = Featurizer(task.model(), proj_dim=task.WIDTH)
    featurizer.featurize(
        task.data(rows), path, batch_size=task.BATCH, progress=False, **options
    ).close()


def rank(
    number: int, size: int, meeting: Path, path: Path, rows: int, options: dict[str, Any]
) -> None:
    """Featurize as one rank of several."""
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=number, world_size=size,
            timeout=_RENDEZVOUS,
        )  # fmt: skip
        _touch_after_meeting(meeting.with_name(f"{meeting.name}.{number}"))
    try:
        featurize(path, rows, options)
    except DistributedError:
        os._exit(ALONE)  # without the farewells of gloo
    if size > 1:
        dist.destroy_process_group()
    sys.exit(0)


def _touch_after_meeting(file: Path) -> None:
    """Make a file once this rank has heard of rank 0."""
    share = Ranks.share

    def touching(self: Ranks, value: Any) -> Any:
        found = share(self, value)
        file.touch()
        return found

    Ranks.share = touching  # type: ignore[method-assign]


def _die_in(owner: Any, name: str, when: str, wanted: Callable[..., bool], nth: int) -> None:
    """Let this process die in a call."""
    original = getattr(owner, name)
    calls = 0

    def method(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += wanted(*args, **kwargs)
        now = calls == nth and wanted(*args, **kwargs)
        if now and when == "before":
            _die()
        if now and when == "half":
            file, data, offset = args
            original(file, data[: len(data) // 2], offset)
            _die()
        result = original(*args, **kwargs)
        if now and when == "after":
            _die()
        return result

    setattr(owner, name, method)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
