"""Full disks: ``python -m benchmarks.reliability.disk_full``.

Small disks are made for it: a tmpfs and an ext4 in a file, mounted where no other process sees them
(as root, or with the user namespaces of ``unshare``). Where neither can be had, and besides, a
limit on the size of files (RLIMIT_FSIZE) stands in for a quota.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reliability import task
from benchmarks.reliability.report import DIR_HELP, Finding, Row, Unavailable, finish
from benchmarks.reliability.small_disks import MIB, filled, limited, mount, shell
from benchmarks.reliability.task import folder, make_header, values
from pntk import Featurizer, ntk
from pntk.errors import StoreError
from pntk.export import export
from pntk.store import FeatureStore, RowWriter, Shard, StoreHeader, join, repair
from pntk.store.shards import shard_path

WIDTH = 256
ROWS = 4 * MIB // (4 * WIDTH)  # a store of 4 MiB
LIMIT = "limit"  # of the size of files

_ROOT = Path(__file__).parents[2]


# ---- what happens on them ------------------------------------------------------------------------


class Disk:
    """A small disk, and what was tried on it.

    Args:
        full: a context in which nothing more fits.
    """

    def __init__(
        self, name: str, folder: Path, full: Callable[[Path], Any], finding: Finding
    ) -> None:
        self.name, self.folder, self.full, self._finding = name, folder, full, finding

    @property
    def last_row(self) -> Row:
        """The last row of the table."""
        return self._finding.rows[-1]

    def require(self, holds: bool, failure: str) -> None:
        """Keep a failure unless what was claimed holds."""
        self._finding.require(holds, f"{self.name}: {failure}")

    def names(self) -> list[str]:
        """What is on it."""
        return sorted(path.name for path in self.folder.rglob("*"))

    def report(self, what: str, outcome: str, failures: list[str]) -> None:
        """Add a row of the table."""
        for file in self.folder.iterdir():
            file.unlink()
        self._finding.rows.append({"disk": self.name, "tried": what, "outcome": outcome})
        self._finding.failures += [f"{self.name}, {what}: {failure}" for failure in failures]

    def refused(self, what: str, work: Callable[[], object]) -> None:
        """Do what must give a StoreError and leave no file."""
        failures, outcome = [], ""
        try:
            work()
            failures.append("no error")
        except StoreError as error:
            outcome = str(error).replace(str(self.folder), "...")
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
            failures.append(outcome)
        if self.names():
            failures.append(f"left {self.names()}")
        self.report(what, "; ".join(failures) or f"StoreError: {outcome}", failures)


class Counted(torch.utils.data.Dataset):
    """Samples that count how many of them were taken."""

    def __init__(self, rows: int) -> None:
        self.rows, self.taken = rows, 0

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> torch.Tensor:
        self.taken += 1
        return torch.ones(16)


def creation(disk: Disk) -> None:
    """A store that does not fit: refused before any work, and nothing is left."""
    free = shutil.disk_usage(disk.folder).free
    path = disk.folder / "large.h5"
    rows = 2 * free // (4 * WIDTH)
    disk.refused(
        "create a store of twice the free space",
        lambda: RowWriter.open(path, make_header(rows, WIDTH)),
    )
    # 33 bytes a row beside the features; its own tables make the file larger than that
    rows = free // (4 * WIDTH + 21)
    disk.refused(
        "create a store of just the free space",
        lambda: RowWriter.open(path, make_header(rows, WIDTH)),
    )
    data = Counted(2 * free // (4 * WIDTH))
    featurizer = Featurizer(task.model(), proj_dim=WIDTH)

    def featurize() -> None:
        featurizer.featurize(data, path, batch_size=task.BATCH, progress=False)

    disk.refused("featurize more than fits", featurize)
    row = disk.last_row
    row["outcome"] = f"after {data.taken} samples, {row['outcome']}"
    disk.require(data.taken <= task.BATCH, f"{data.taken} samples were taken before the refusal")


def creation_beyond_limit(disk: Disk) -> None:
    """A store that a limit on the size of files does not allow."""
    with disk.full(disk.folder):
        disk.refused(
            "create a store",
            lambda: RowWriter.open(disk.folder / "large.h5", make_header(ROWS, WIDTH)),
        )


def filled_meanwhile(disk: Disk) -> None:
    """Another program takes the rest of the disk while rows are written: their space is theirs."""
    path, header = disk.folder / "rows.h5", make_header(ROWS, WIDTH)
    with RowWriter.open(path, header, sync_interval=0.0) as writer:
        _write(writer, header, 0, ROWS // 2)
        with disk.full(disk.folder):
            _write(writer, header, ROWS // 2, ROWS)
            writer.close()
    failures = _wrong(path, header, ROWS)
    disk.report(
        "write rows while another program fills the disk", "every row written, verified", failures
    )


def resumed_when_full(disk: Disk) -> None:
    """Go on, and repair, on a full disk."""
    path, header = disk.folder / "rows.h5", make_header(ROWS, WIDTH)
    with RowWriter.open(path, header) as writer:
        _write(writer, header, 0, ROWS // 2)
    failures = []
    with disk.full(disk.folder):
        try:
            RowWriter.open(path, header).close()
            outcome = "goes on"
        except StoreError as error:
            outcome = f"StoreError: {str(error).replace(str(disk.folder), '...')}"
        try:
            repair(path)
        except StoreError as error:
            failures.append(f"repair of a whole store: {error}")
        failures += _wrong(path, header, ROWS // 2)
    left = [name for name in disk.names() if name != "rows.h5"]
    failures += [f"left {left}"] if left else []
    with RowWriter.open(path, header) as writer:
        _write(writer, header, ROWS // 2, ROWS)
    failures += _wrong(path, header, ROWS)
    disk.report("go on when it is full, then with space", f"{outcome}; then complete", failures)


def sparse(disk: Disk) -> None:
    """A copy that lost the space reserved for it (cp --sparse), on a disk that fills up."""
    path, header = disk.folder / "rows.h5", make_header(ROWS, WIDTH)
    whole = disk.folder / "whole.h5"
    with RowWriter.open(whole, header) as writer:
        _write(writer, header, 0, ROWS // 2)
    shell("cp", "--sparse=always", str(whole), str(path))
    whole.unlink()
    if path.stat().st_blocks * 512 > 0.75 * path.stat().st_size:
        return disk.report("write into a sparse copy", "not tried: cp made none", [])
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:  # it may die by SIGBUS
        code = 0
        try:
            with RowWriter.open(path, header, sync_interval=0.0) as writer:
                theirs.send(b"open")
                theirs.recv(10)
                _write(writer, header, ROWS // 2, ROWS)
        except StoreError:
            code = 5
        except BaseException:
            code = 6
        os._exit(code)
    ours.recv(10)
    with disk.full(disk.folder):
        ours.send(b"full")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ours.close()
    theirs.close()
    ends = {5: "StoreError", -signal.SIGBUS: "the process dies (SIGBUS)"}
    failures = [] if status in ends else [f"the process ended with {status}"]
    report = FeatureStore(path).verify()
    if not report.ok or report.rows_checked < ROWS // 2:
        failures.append(f"afterwards {report}")
    with RowWriter.open(path, header) as writer:
        missing = writer.missing()
        _write(writer, header, int(missing[0]), ROWS)
    failures += _wrong(path, header, ROWS)
    disk.report(
        "write into a sparse copy while another program fills the disk",
        f"{ends.get(status, status)}; {report.rows_checked} rows verified, then complete",
        failures,
    )


def results_when_full(disk: Disk) -> None:
    """Join, export and make a kernel on a full disk; rows that were there verify afterwards."""
    for what, work in {
        "join": lambda path: join(path.with_name("rows.h5")),
        "export to .h5": lambda path: export(FeatureStore(path), path.with_name("copy.h5")),
        "export to .npy": lambda path: export(FeatureStore(path), path.with_name("copy.npy")),
        "export to .npz": lambda path: export(FeatureStore(path), path.with_name("copy.npz")),
        "export to .safetensors": lambda path: export(
            FeatureStore(path), path.with_name("copy.safetensors")
        ),
        "kernel": lambda path: ntk(FeatureStore(path), out=path.with_name("kernel.h5")),
    }.items():
        header = make_header(ROWS // 8, WIDTH, shard=Shard(0, 1, 0, ROWS // 8))
        path = shard_path(disk.folder / "rows.h5", 0, 1)
        with RowWriter.open(path, header) as writer:
            _write(writer, header, 0, header.rows)
        left = disk.names()
        failures, outcome = [], ""
        with disk.full(disk.folder):
            try:
                work(path)
                failures.append("no error")
            except StoreError as error:
                outcome = f"StoreError: {str(error).replace(str(disk.folder), '...')}"
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")
            failures += _wrong(path, header, header.rows)
        if disk.names() != left:
            failures.append(f"left {sorted(set(disk.names()) - set(left))}")
        disk.report(f"{what} when it is full", "; ".join(failures) or outcome, failures)


def _write(writer: RowWriter, header: StoreHeader, first: int, last: int) -> None:
    rows, columns, skipped = values(header)
    for start in range(first, last, 64):
        places = np.arange(start, min(start + 64, last))
        cells = {name: column[places] for name, column in columns.items()}
        writer.write(places, rows[places], cells, skipped[places])


def _wrong(path: Path, header: StoreHeader, done: int) -> list[str]:
    """Return what is wrong with a store of which so many rows are done."""
    store = FeatureStore(path)
    report = store.verify()
    if not report.ok or report.rows_checked != done:
        return [f"afterwards {report}"]
    rows, _, skipped = values(header)
    rows[skipped] = 0
    return [] if np.array_equal(store.numpy()[:done], rows[:done]) else ["rows are others"]


def on_disk(kind: str, place: Path) -> Finding:
    """Try everything on one kind of disk."""
    finding = Finding("disk_full", "")
    if kind == LIMIT:
        (place / "disk").mkdir()
        disk = Disk("a limit on the size of files", place / "disk", limited, finding)
        creation_beyond_limit(disk)
    else:
        disk = Disk(kind, mount(kind, place), filled, finding)
        creation(disk)
        filled_meanwhile(disk)
        resumed_when_full(disk)
        sparse(disk)
    results_when_full(disk)
    return finding


# ---- all of it -----------------------------------------------------------------------------------


def run(parent: Path | None = None) -> Finding:
    """Try everything on every kind of disk that can be had."""
    finding = Finding(
        "disk_full",
        "Disks that are full, or fill up. A store that does not fit is refused before any work "
        "and leaves no file; rows of one that was created find their space whatever else fills "
        "the disk; everything else gives a StoreError, leaves no file, and rows that were there "
        "verify afterwards.",
    )
    for kind in ("tmpfs", "ext4", LIMIT):
        with folder(parent) as place:
            try:
                part = _apart(kind, place)
            except Unavailable as reason:
                finding.notes.append(f"{kind} was not tried: {reason}")
                continue
        finding.rows += part["rows"]
        finding.failures += part["failures"]
    return finding


def _apart(kind: str, place: Path) -> dict[str, Any]:
    """Do it in a process with mounts of its own."""
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    command = [sys.executable, "-m", "benchmarks.reliability.disk_full", "--inside", kind]
    command = ([] if kind == LIMIT else unshare) + [*command, "--dir", str(place)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=_ROOT, env=env, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(f"{command[0]}: {error.strerror}") from error
    said = done.stderr.strip().splitlines()
    if done.returncode and said and said[-1].startswith("unshare:"):
        raise Unavailable(said[-1])
    if done.returncode:
        what = f"{kind}: the process ended with {done.returncode}: {said[-1:]}"
        return {"rows": [], "failures": [what]}
    found: dict[str, Any] = json.loads(done.stdout)
    if "unavailable" in found:
        raise Unavailable(found["unavailable"])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, help=DIR_HELP)
    parser.add_argument("--inside", choices=["tmpfs", "ext4", LIMIT], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside is None:
        return finish(run(given.dir))
    try:
        found = asdict(on_disk(given.inside, given.dir))
    except Unavailable as reason:
        found = {"unavailable": str(reason)}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
