"""Kills: ``python -m benchmarks.reliability.storm --kills 50 --seed 0``.

Processes that featurize are ended by SIGKILL, again and again, until every row is there. After each
kill the file must open, every row that it calls done must have the right bytes, and no row that was
done before may be lost. In the end it must equal, byte for byte, that of a run nobody disturbed.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability import children, task
from benchmarks.reliability.children import CREATION, WRITING
from benchmarks.reliability.report import DIR_HELP, Finding, finish
from benchmarks.reliability.task import contents, differing, folder, wrong_rows
from pntk.errors import StoreError
from pntk.store import MISSING, FeatureStore
from pntk.store.shards import find_shards

SECONDS = 120  # a child that takes longer hangs
_LEFT = (".creating", ".writer")

Contents = dict[str, np.ndarray]


class Target:
    """A store under fire, and what it must still hold.

    Args:
        expected: what an undisturbed run gave.
    """

    def __init__(self, path: Path, expected: Contents, finding: Finding, what: str) -> None:
        self.path, self._expected, self._finding, self._what = path, expected, finding, what
        self.done = np.zeros(len(expected["done"]), bool)

    def check(self) -> int:
        """Check what a kill has left; return how many rows have come since the last time."""
        before, self.done = self.done, np.zeros_like(self.done)
        for file in find_shards(self.path) or [self.path]:
            if file.exists():
                self._check_file(file)
        self._require(not (before & ~self.done).any(), "rows that were done are lost")
        return int(self.done.sum() - before.sum())

    def leave_rubbish(self, random: np.random.Generator, file: Path | None = None) -> None:
        """Leave what a killed creation, or a writer of long ago, may have left.

        Args:
            file: one that is going to be written; the store itself, unless told.
        """
        file = file or self.path
        if random.random() < 0.5 and not file.exists():
            file.with_name(file.name + ".creating").write_bytes(random.bytes(5000))
        if random.random() < 0.5 and not file.exists():
            file.with_name(file.name + ".writer").write_bytes(b'{"pid": 1, "host"')

    def check_whole(self, calm: Path | None = None) -> None:
        """Check that it is complete, equal, and alone.

        Args:
            calm: a file whose bytes it must have.
        """
        self.check()
        self._require(bool(self.done.all()), "rows are missing in the end")
        different = differing(contents(self.path), self._expected)
        self._require(not different, f"{', '.join(different)} differ in the end")
        if calm is not None:
            self._require(self.path.read_bytes() == calm.read_bytes(), "the files differ")
        left = [file.name for file in self.path.parent.iterdir() if file.name.endswith(_LEFT)]
        self._require(not left, f"{left} are left over")

    def _check_file(self, file: Path) -> None:
        try:
            store = FeatureStore(file)
            report = store.verify()
        except StoreError as error:
            return self._require(False, f"does not open: {error}")
        self._require(report.ok, f"is damaged: {report}")
        shard = store.header.shard
        place = slice(shard.start, shard.start + len(store)) if shard else slice(None)
        expected = {name: values[place] for name, values in self._expected.items()}
        wrong = wrong_rows(contents(file), expected)
        self._require(not wrong, f"rows {wrong[:9]} are done and are others")
        self.done[place] = store.done != MISSING

    def _require(self, holds: bool, failure: str) -> None:
        self._finding.require(holds, f"{self._what}: {self.path}: {failure}")


def end(process: BaseProcess, seconds: float) -> bool:
    """Kill a process after a while; return whether it was still there."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -9


def complete(process: BaseProcess, finding: Finding, what: str) -> float:
    """Wait for a process that must succeed; return how long."""
    start = time.perf_counter()
    process.join(SECONDS)
    if process.exitcode != 0:
        finding.failures.append(f"{what}: a run that nobody disturbed: exit {process.exitcode}")
        process.kill()
        process.join()
    return time.perf_counter() - start


class Storm:
    """Kills of one process that writes one file.

    Args:
        place: an empty folder.
        options: of ``Featurizer.featurize``.
    """

    def __init__(
        self, place: Path, what: str, rows: int, seed: int, finding: Finding, **options: Any
    ) -> None:
        place.mkdir()
        self.place, self.what, self.rows, self.finding = place, what, rows, finding
        self.options = options
        self.random = np.random.default_rng(seed)
        self.calm = place / "calm.h5"
        children.start(children.featurize, place / "first.h5", 8, {}).join()  # starts the server
        start = time.perf_counter()
        process = children.start(children.featurize, self.calm, rows, options)
        while not self.calm.exists() and process.is_alive():
            time.sleep(0.001)
        self.to_create = time.perf_counter() - start  # seconds until there is a file
        complete(process, finding, what)
        self.to_finish = time.perf_counter() - start
        self.expected = contents(self.calm)
        self.landed: Counter[str] = Counter()
        self.rounds = 0

    def target(self) -> Target:
        """Begin a new store."""
        self.rounds += 1
        path = self.place / f"round-{self.rounds}.h5"
        return Target(path, self.expected, self.finding, self.what)

    def start(self, target: Target, kill: tuple[str, int] | None = None) -> BaseProcess:
        """Start or go on."""
        target.leave_rubbish(self.random)
        return children.start(children.featurize, target.path, self.rows, self.options, kill)

    def at_random(self, kills: int) -> None:
        """Kill at moments that are uniform from the start to a part of the whole run."""
        while self.landed.total() < kills:
            target = self.target()
            while self.landed.total() < kills and not target.done.all():
                if not end(self.start(target), self.random.uniform(0, self._latest)):
                    break
                self._count(target)
            complete(self.start(target), self.finding, self.what)
            target.check_whole(self.calm)

    @property
    def _latest(self) -> float:
        """Seconds within which a kill leaves work for others to come."""
        return self.to_create + min(0.8 * (self.to_finish - self.to_create), 2.0)

    def in_creation(self, kills: int) -> None:
        """Kill while there is no file yet: at random, and at each step in turn."""
        steps = list(CREATION)
        while self.landed.total() < kills:
            target = self.target()
            if self.rounds % 2:
                process = self.start(target, (steps[self.rounds // 2 % len(steps)], 1))
                killed = end(process, SECONDS)
            else:
                killed = end(self.start(target), self.random.uniform(0, 1.1 * self.to_create))
            if killed:
                self._count(target)
            complete(self.start(target), self.finding, self.what)
            target.check_whole(self.calm)

    def at_places(self, kills: int) -> None:
        """Have the process kill itself at the worst of places in turn, at any call there."""
        kills = max(kills, len(WRITING))
        places = self.random.permutation(list(WRITING)).tolist()
        batches = -(-self.rows // task.BATCH)
        while self.landed.total() < kills:
            target = self.target()
            while self.landed.total() < kills and not target.done.all():
                name = places[self.landed.total() % len(places)]
                nth = 1 if "closing" in name else int(self.random.integers(1, batches // 3))
                process = self.start(target, (name, nth))
                process.join(SECONDS)
                if process.exitcode != -9:  # it was done before it came there: a new store
                    break
                self._count(target, name)
            complete(self.start(target), self.finding, self.what)
            target.check_whole(self.calm)

    def _count(self, target: Target, where: str | None = None) -> None:
        there = target.path.exists()
        new = target.check()
        if where is None:
            where = "before the file" if not there else "before a new row" if not new else "mid-way"
            if new and target.done.all():
                where = "after the last row"
        self.landed[where] += 1

    def report(self) -> None:
        """Add a row of the table."""
        self.finding.rows.append(
            {
                "killed": self.what,
                "kills": self.landed.total(),
                "stores made whole": self.rounds,
                "where the kills landed": ", ".join(
                    f"{name} {count}" for name, count in sorted(self.landed.items())
                ),
            }
        )


def run(
    kills: int = 50,
    seed: int = 0,
    parent: Path | None = None,
    *,
    rows: int = task.ROWS,
    processes: bool = True,
) -> Finding:
    """Kill processes.

    Args:
        kills: of each kind.
        rows: of a store.
        processes: whether to try the command line and several ranks too.
    """
    finding = Finding(
        "storm",
        f"Stores of {rows:,} rows, made by processes that are killed (SIGKILL), {kills} times and "
        f"more for each line, seed {seed}. After every kill the file has to open, `verify` has to "
        "be ok, rows that are done have to be right, and none may be lost; in the end the file "
        "has to equal that of an undisturbed run byte for byte, and no other file may be left. "
        "Rubbish under the names of the temporary files lies about from time to time.",
    )
    with folder(parent) as place:
        storm = Storm(place / "a", "at random moments", rows, seed, finding, sync_interval=0.02)
        storm.at_random(kills)
        storm.report()
        storm = Storm(
            place / "b", "at random moments, syncing all the time", rows, seed + 1, finding,
            sync_interval=0.0,
        )  # fmt: skip
        storm.at_random(kills)
        storm.report()
        storm = Storm(
            place / "c", "at the worst places", rows, seed + 2, finding, sync_interval=0.0
        )
        storm.at_places(kills)
        storm.report()
        storm = Storm(
            place / "d", "rows of float16", rows, seed + 3, finding,
            sync_interval=0.05, storage="fp16",
        )  # fmt: skip
        storm.at_random(kills)
        storm.report()
        storm = Storm(place / "e", "during creation", 64, seed + 4, finding)
        storm.in_creation(kills)
        storm.report()
        if processes:
            from benchmarks.reliability import storm_cli, storm_ranks

            storm_ranks.run(place / "ranks", max(1, kills // 2), seed, finding)
            storm_cli.run(place / "cli", max(1, kills // 5), seed, finding)
    return finding


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="of each kind")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--rows", type=int, default=task.ROWS, metavar="N", help="of a store")
    parser.add_argument("--dir", type=Path, help=DIR_HELP)
    given = parser.parse_args()
    return finish(run(given.kills, given.seed, given.dir, rows=given.rows))


if __name__ == "__main__":
    raise SystemExit(main())
