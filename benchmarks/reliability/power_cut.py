"""Power cuts: ``python -m benchmarks.reliability.power_cut --instants 5000 --seed 0``.

A writer runs on a disk that is simulated. What it flushed is on the disk. Of what it wrote since,
each sector holds, independently of all others, any state that it has had: that is what an operating
system and a disk may have done in whatever order. Of a write that is under way a sector may hold
the first part. At random instants the power fails, and what the disk then holds is opened.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.broken import BROKEN, PAGE
from benchmarks.reliability.creation import check_creation
from benchmarks.reliability.report import DIR_HELP, Finding, Row, finish
from benchmarks.reliability.task import (
    contents,
    contents_of,
    folder,
    make_header,
    values,
    wrong_rows,
)
from pntk.store import DONE, MISSING, SKIPPED, FeatureStore, RowWriter, StoreHeader
from pntk.store.integrity import verify
from pntk.store.joined import open_parts
from pntk.store.layout import Array

SECTORS = (512, 4096)  # what a disk writes whole
ROWS, WIDTH = 64, 300


class Disk:
    """What a disk may hold of a mapped file.

    Args:
        content: bytes [n] of the file, on the disk.
        sector: bytes that are written whole.
    """

    def __init__(self, content: Array, sector: int) -> None:
        self.sector = sector
        self.held = content.copy()  # [n], as of the last flush of each sector
        self.now = content.copy()  # [n], what the writer sees
        self.writes: list[tuple[int, Array]] = []  # (offset, bytes) since ``held``
        self.flushed = np.zeros(-(-len(content) // sector), np.int64)  # writes that ``held`` has
        self.count = 0  # writes and flushes

    def write(self, offset: int, data: Array) -> None:
        """Change bytes in memory."""
        self.now[offset : offset + len(data)] = data
        self.writes.append((offset, data.copy()))
        self.count += 1

    def flush(self, start: int, length: int) -> None:
        """Bring pages to the disk."""
        stop = min(-(-(start + length) // PAGE) * PAGE, len(self.now))
        self.held[start:stop] = self.now[start:stop]
        self.flushed[start // self.sector : -(-stop // self.sector)] = len(self.writes)
        self.count += 1

    def image(self, random: np.random.Generator) -> Array:
        """Return what the disk may hold if the power fails now."""
        found = self.held.copy()
        kind, last = random.integers(4), len(self.writes)
        for sector in np.flatnonzero(self.flushed < last):
            low = int(self.flushed[sector])
            if kind == 0:  # nothing more
                continue
            cut = last if kind == 1 else int(random.integers(low, last + 1))  # all, or any state
            if kind == 2 and random.random() < 0.5:  # the latest, of some
                cut = last
            self._apply(found, int(sector), low, cut, random)
        return found

    def _apply(
        self, image: Array, sector: int, low: int, cut: int, random: np.random.Generator
    ) -> None:
        """Bring a sector from its state after ``low`` writes to that after ``cut``."""
        start, stop = sector * self.sector, (sector + 1) * self.sector
        for number, (offset, data) in enumerate(self.writes[low : cut + 1], low):
            first, end = max(start, offset), min(stop, offset + len(data))
            if number == cut and first < end:  # not yet, or under way
                end = first if random.random() < 0.5 else int(random.integers(first, end + 1))
            if first < end:
                image[first:end] = data[first - offset : end - offset]


class Recorded:
    """An array of the map whose writes the disk records."""

    def __init__(self, view: Array, offset: int, disk: Disk, after: Callable[[], None]) -> None:
        self._view, self._offset, self._disk, self._after = view, offset, disk, after

    def __setitem__(self, key: Any, values: Any) -> None:
        self._view[key] = values
        size = self._view[0].nbytes
        places = np.arange(len(self._view))[key]
        for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
            data = np.ascontiguousarray(self._view[run[0] : run[-1] + 1])
            self._disk.write(self._offset + int(run[0]) * size, data.reshape(-1).view(np.uint8))
            self._after()


class RecordedMap:
    """The map itself, of which the writer uses ``flush`` alone."""

    def __init__(self, disk: Disk, after: Callable[[], None]) -> None:
        self._disk, self._after = disk, after

    def flush(self, start: int, length: int) -> None:
        if start % PAGE:
            raise AssertionError(f"msync from {start}, inside of a page")
        self._after()  # while it is under way, nothing of it is certain
        self._disk.flush(start, length)
        self._after()


@contextmanager
def _recorded_pwrite(
    file: int, disk: Disk, after: Callable[[], None], random: np.random.Generator
) -> Iterator[None]:
    """Record what goes to an open file past the map; the system takes as much as it likes."""
    pwrite = os.pwrite

    def recorded(descriptor: int, data: Any, offset: int) -> int:
        if descriptor != file:
            return pwrite(descriptor, data, offset)
        count = pwrite(descriptor, data[: random.integers(1, len(data) + 1)], offset)
        disk.write(offset, np.frombuffer(data[:count], np.uint8))
        after()
        return count

    os.pwrite = recorded
    try:
        yield
    finally:
        os.pwrite = pwrite


class PowerCut(BaseException):
    """The power has failed."""


class Machine:
    """Lives of a writer that power cuts end, on one file, until every row is there.

    Rows are written in random batches, and some of them a second time with other values.

    Args:
        kind: RowWriter, or one that is broken on purpose.
        instants: at how many to look at what the disk holds.
    """

    def __init__(
        self, place: Path, kind: type[RowWriter], header: StoreHeader, seed: int, instants: int
    ) -> None:
        self.path, self.copy = place / "cut.h5", place / "image.h5"
        self.kind, self.header, self.instants = kind, header, instants
        self.random = np.random.default_rng(seed)
        self.versions = [values(header, start) for start in (0, 1)]
        self.expected = [self._contents(place / f"{header.dtype}-{i}.h5", i) for i in (0, 1)]
        self.looked = self.cuts = self.lives = 0
        self.partial = 0  # images in which some rows were done and some not
        self.failures: list[str] = []

    def run(self) -> None:
        """Go on until there were enough instants, or something is wrong."""
        while self.looked < self.instants and not self.failures:
            self.path.unlink(missing_ok=True)
            self.durable = np.zeros(self.header.rows, bool)
            while not self._life() and not self.failures:
                self.cuts += 1

    def _contents(self, path: Path, version: int) -> dict[str, Array]:
        rows, columns, skipped = self.versions[version]
        with RowWriter.open(path, self.header) as writer:
            writer.write(np.arange(len(rows)), rows, columns, skipped)
        return contents(path)

    def _life(self) -> bool:
        """Return whether every row is there; otherwise the power has failed."""
        self.lives += 1
        writer = self.kind.open(self.path, self.header, sync_interval=1e9)
        disk = Disk(np.fromfile(self.path, np.uint8), int(self.random.choice(SECTORS)))
        last = self.random.integers(1, 150)  # after so many writes and flushes the power fails

        def after() -> None:
            if self.random.random() < 0.3:
                self._check(disk.image(self.random))
            if disk.count >= last:
                raise PowerCut

        for name, view in list(writer._views.items()):
            offset = writer._layout.extents[name].offset
            writer._views[name] = Recorded(view, offset, disk, after)  # type: ignore[assignment]
        writer._map = RecordedMap(disk, after)  # type: ignore[assignment]
        try:
            with _recorded_pwrite(writer._file.fileno(), disk, after, self.random):
                self._work(writer)
                writer.sync()
            complete = not len(writer.missing())
            seen = np.fromfile(self.path, np.uint8)
            if not np.array_equal(seen, disk.now):
                self.failures.append("the writer wrote to the map past the simulated disk")
        except PowerCut:
            complete = False
        held = disk.image(self.random)
        self._check(held)
        writer._pending.clear()  # so that closing does not sync
        writer.close()
        held.tofile(self.path)
        if complete and not self.failures:
            found = FeatureStore(self.path)
            if not (found.complete and found.verify().ok):
                self.failures.append("rows that were synced are missing or damaged")
        return complete

    def _work(self, writer: RowWriter) -> None:
        """Write what is missing, with syncs in between and some rows a second time."""
        while len(missing := writer.missing()):
            version = int(self.random.integers(2))
            size = int(self.random.integers(1, 9))
            if self.random.random() < 0.5:  # one after the other, as featurize does
                places = missing[:size]
            else:
                places = self.random.permutation(self.header.rows)[:size]
            self.durable[places] = False  # what is written again may be lost
            rows, columns, skipped = self.versions[version]
            cells = {name: column[places] for name, column in columns.items()}
            writer.write(places, rows[places], cells, skipped[places])
            if self.random.random() < 0.3:
                writer.sync()
                self.durable = ~np.isin(np.arange(self.header.rows), writer.missing())

    def _check(self, image: Array) -> None:
        if self.failures:
            return
        self.looked += 1
        image.tofile(self.copy)
        header, parts = open_parts(self.copy)
        report = verify(parts)
        found = contents_of(header, parts)
        wrong = set(wrong_rows(found, self.expected[0])) & set(wrong_rows(found, self.expected[1]))
        done = found["done"][:, 0]
        lost = np.flatnonzero(self.durable & (done == MISSING))
        states = set(done.tolist()) - {MISSING, DONE, SKIPPED}
        self.partial += 0 < report.missing < header.rows
        if not report.ok:
            self.failures.append(f"a row that is done is damaged: {report.messages[0]}")
        elif wrong or states:
            self.failures.append(f"rows {sorted(wrong)} hold other values; states {states}")
        elif len(lost):
            self.failures.append(f"rows {lost.tolist()} were synced and are missing")


# ---- all of it -----------------------------------------------------------------------------------


def run(instants: int = 5000, seed: int = 0, parent: Path | None = None) -> Finding:
    """Cut the power at so many instants, and see broken writers caught."""
    finding = Finding(
        "power_cut",
        f"Simulated power cuts, {instants} instants a dtype, seed {seed}. What the disk may hold "
        "then is opened: every row that is done has the right bytes and checksum, and no row that "
        "`sync` has returned for is missing.",
    )
    with folder(parent) as place:
        for dtype in ("float32", "float16"):
            machine = Machine(place, RowWriter, make_header(ROWS, WIDTH, dtype), seed, instants)
            machine.run()
            finding.rows.append(_row(dtype, machine, "none lost or wrong"))
            finding.failures += [f"{dtype}: {failure}" for failure in machine.failures]
        for name, kind in BROKEN.items():
            header = make_header(ROWS, WIDTH)
            machine = Machine(place, kind, header, seed, min(instants, 2000))
            machine.run()
            caught = machine.failures[0] if machine.failures else "NOT CAUGHT"
            finding.rows.append(_row(f"broken: {name}", machine, f"caught: {caught}"))
            finding.require(bool(machine.failures), f"a writer with {name} was not caught")
        if os.path.isdir("/proc/self/fd"):
            finding.failures += check_creation(place)
            finding.notes.append(
                "A store and a file that joins shards get their names after their bytes were "
                "synced, and the directory is synced after that."
            )
    return finding


def _row(name: str, machine: Machine, outcome: str) -> Row:
    return {
        "writer": name,
        "instants": machine.looked,
        "of them partly done": machine.partial,
        "power cuts": machine.cuts,
        "outcome": outcome,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instants", type=int, default=5000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--dir", type=Path, help=DIR_HELP)
    given = parser.parse_args()
    return finish(run(given.instants, given.seed, given.dir))


if __name__ == "__main__":
    raise SystemExit(main())
