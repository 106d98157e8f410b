"""Damaged and hostile files: ``python -m benchmarks.reliability.fuzz --count 4000 --seed 0``.

Each is opened, read, verified, written to, joined and repaired in a process of little memory, with
a watchdog. Refusing it (``StoreError``) and working are fine. Nothing else is: not a crash, a hang,
another exception, wrong rows that pass for right ones, nor a look outside of the file's folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import h5py
import numpy as np

from benchmarks.reliability import accidents, attacks, examine
from benchmarks.reliability.bases import KERNEL, MAIN, SHAPES, Place, Random, make_bases
from benchmarks.reliability.examine import FAILED, FOUND, REFUSED, ROOM, UNHARMED, Expected
from benchmarks.reliability.report import DIR_HELP, Finding, Unavailable, finish
from benchmarks.reliability.task import contents, folder
from benchmarks.reliability.watch import Watch

SECONDS = 20.0  # for one file
SHOWN = 300  # characters of a failure

Mutation = Callable[[Place, Random], None]
STORES = tuple(SHAPES)
SINGLE = tuple(name for name in SHAPES if name != "joined")
EVERY = (*STORES, KERNEL)

# name -> (mutation, files it is for, share, whether it is an accident)
KINDS: dict[str, tuple[Mutation, tuple[str, ...], int, bool]] = {
    "truncated": (accidents.truncated, EVERY, 6, True),
    "bytes appended": (accidents.appended, EVERY, 2, True),
    "bits flipped anywhere": (accidents.bits_anywhere, EVERY, 8, True),
    "bits flipped in metadata": (accidents.bits_of_metadata, EVERY, 20, True),
    "numbers put into metadata": (accidents.numbers_of_metadata, EVERY, 10, True),
    "block overwritten": (accidents.block_overwritten, EVERY, 8, True),
    "blocks copied or swapped": (accidents.blocks_moved, EVERY, 6, True),
    "metadata changed, checksums right": (attacks.rehashed, EVERY, 14, False),
    "attribute of another kind": (attacks.attribute, EVERY, 6, False),
    "dataset of another kind, or a link": (attacks.dataset, (*SINGLE, KERNEL), 8, False),
    "absurd header, checksum right": (attacks.header, EVERY, 10, False),
    "absurd list of shards": (attacks.shards, ("joined",), 10, False),
    "huge claims, as long as claimed": (attacks.sparse, ("plain",), 2, False),
    "no regular file": (attacks.not_a_file, ("plain",), 1, False),
}


class Worker:
    """A process that examines one file after the other, and is replaced when it dies."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([examine.__name__])
        self._start()

    def _start(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=examine.serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        assert self._connection.recv() == "ready"

    def examine(self, place: Path, expected: Expected | None) -> tuple[str, str]:
        """Return the outcome for one file, and why."""
        try:
            self._connection.send((str(place), MAIN, expected))
            if self._connection.poll(self._seconds):
                found: tuple[str, str] = self._connection.recv()
                return found
            why = f"no answer within {self._seconds:.0f} s"
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            why = f"died by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        self.close()
        self._start()
        return FAILED, why

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


class Fuzz:
    """Files of all kinds, made one by one from whole ones.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self._root, self._seed = root, seed
        for name in ("bases", "outside", "cases"):
            (root / name).mkdir()
        self.bases = make_bases(root / "bases")
        self._expected: dict[str, Expected] = {}
        for name, base in self.bases.items():
            if name != KERNEL:
                self._expected[name] = contents(base / MAIN)
            else:
                with h5py.File(base / MAIN, "r") as file:
                    self._expected[name] = {"ntk": file["ntk"][:]}
        kinds = [kind for kind, (_, _, share, _) in KINDS.items() for _ in range(share)]
        self._kinds = np.random.default_rng(seed).permutation(kinds).tolist()

    @property
    def outside(self) -> Path:
        """A folder with a whole file for each case, none of which may be opened."""
        return self._root / "outside"

    def make(self, number: int) -> tuple[str, str, Path, Expected | None]:
        """Make a case: (kind, base, folder, what it should hold if it is no attack)."""
        random = np.random.default_rng((self._seed, number))
        kind = self._kinds[number % len(self._kinds)]
        mutate, bases, _, accident = KINDS[kind]
        base = str(random.choice(bases))
        place = Place(self._root / "cases" / str(number), self.outside / f"{number}.h5")
        shutil.copytree(self.bases[base], place.folder)
        os.link(self.bases["plain"] / MAIN, place.outside)
        mutate(place, random)
        return kind, base, place.folder, self._expected[base] if accident else None


def run(
    count: int = 4000,
    seed: int = 0,
    parent: Path | None = None,
    *,
    workers: int | None = None,
    keep: Path | None = None,
) -> Finding:
    """Examine so many files.

    Args:
        keep: folder to which files that fail are copied.
    """
    finding = Finding(
        "fuzz",
        f"{count:,} damaged and hostile files, seed {seed}, made of stores (float32, float64, "
        "float16, with a long header, with rows missing, joined) and a kernel. Each is opened, "
        f"read, verified, written to, joined and repaired in a process with {ROOM // 2**20:,} MiB "
        f"of address space beyond its imports, within {SECONDS:.0f} s. Failed would be a crash, a "
        "hang, an exception other than pntk's own, wrong rows that pass for right ones after an "
        "accident, or a file opened outside of the folder.",
    )
    outcomes: Counter[tuple[str, str]] = Counter()
    with folder(parent) as root:
        fuzz = Fuzz(root, seed)
        watch = _watch(fuzz.outside, finding)
        idle: SimpleQueue[Worker] = SimpleQueue()
        number_of_workers = workers or os.cpu_count() or 1
        for _ in range(number_of_workers):
            idle.put(Worker())

        def case(number: int) -> tuple[str, str, str, str]:
            kind, base, place, expected = fuzz.make(number)
            worker = idle.get()
            try:
                outcome, why = worker.examine(place, expected)
            finally:
                idle.put(worker)
            if outcome == FAILED and keep:
                with suppress(OSError, shutil.Error):  # devices and pipes
                    shutil.copytree(place, keep / str(number), symlinks=True, ignore=_huge)
            shutil.rmtree(place)
            return kind, base, outcome, why

        with ThreadPoolExecutor(number_of_workers) as threads:
            for number, (kind, base, outcome, why) in enumerate(threads.map(case, range(count))):
                outcomes[kind, outcome] += 1
                if outcome == FAILED:
                    finding.failures.append(f"case {number}, {kind} ({base}): {why[:SHOWN]}")
        for _ in range(number_of_workers):
            idle.get().close()
        if watch:
            opened = sorted(set(watch.opened()))
            watch.close()
            finding.require(not opened, f"files outside of the folder were opened: {opened[:9]}")
    for kind in KINDS:
        found = {name: outcomes[kind, name] for name in (REFUSED, FOUND, UNHARMED, FAILED)}
        finding.rows.append({"what was done": kind, "files": sum(found.values()), **found})
    columns = list(finding.rows[0])[1:]
    total = {name: sum(int(row[name]) for row in finding.rows) for name in columns}
    finding.rows.append({"what was done": "all", **total})
    return finding


def _huge(folder: str, names: list[str]) -> list[str]:
    """What would not be sparse any more in a copy."""
    return [name for name in names if Path(folder, name).lstat().st_size > 2**24]


def _watch(outside: Path, finding: Finding) -> Watch | None:
    try:
        watch = Watch(outside)
    except Unavailable as reason:
        finding.notes.append(str(reason))
        return None
    finding.notes.append(
        "Files outside of the folder were watched with inotify, and what Python opens with an "
        "audit hook."
    )
    return watch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--workers", type=int, metavar="N", help="one a core, unless told")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy files that fail to here")
    parser.add_argument("--dir", type=Path, help=DIR_HELP)
    given = parser.parse_args()
    return finish(run(given.count, given.seed, given.dir, workers=given.workers, keep=given.keep))


if __name__ == "__main__":
    raise SystemExit(main())
