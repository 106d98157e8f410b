"""Kills of one rank of several, which share a store over gloo; see ``storm``."""

from __future__ import annotations

import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from benchmarks.reliability import children
from benchmarks.reliability.report import Finding
from benchmarks.reliability.storm import SECONDS, Target
from benchmarks.reliability.task import contents, differing
from pntk.store.shards import find_shards, shard_path

ROWS = 2000
SHARDS = 4
SIZES = (1, 2, 3)  # numbers of ranks that go on, at random
OPTIONS = {"sync_interval": 0.05, "shards": SHARDS}


class Ranks:
    """Processes that work together on one store.

    Args:
        meeting: a file that is not there yet, where they meet.
    """

    def __init__(self, size: int, meeting: Path, path: Path, rows: int) -> None:
        for file in meeting.parent.glob(f"{meeting.name}*"):
            file.unlink()
        self._met = [meeting.with_name(f"{meeting.name}.{i}") for i in range(size) if size > 1]
        self.processes: list[BaseProcess] = [
            children.start(children.rank, number, size, meeting, path, rows, OPTIONS)
            for number in range(size)
        ]

    def wait_until_met(self, seconds: float = SECONDS) -> None:
        """Wait until all have heard of rank 0; until then it is for the launcher to end them."""
        deadline = time.monotonic() + seconds
        while not all(file.exists() for file in self._met) and time.monotonic() < deadline:
            time.sleep(0.002)

    def join(self, seconds: float = SECONDS) -> list[int | None]:
        """Wait for all; return their exit codes, None for those that had to be killed."""
        deadline = time.monotonic() + seconds
        codes = []
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            codes.append(process.exitcode)
            process.kill()
            process.join()
        return codes


def run(place: Path, kills: int, seed: int, finding: Finding, rows: int = ROWS) -> None:
    """Kill one rank of several at random, and go on with 1, 2 or 3, until all rows are there."""
    place.mkdir()
    random = np.random.default_rng(seed)
    Ranks(2, place / "meeting", place / "first.h5", 64).join()  # starts the server of processes
    start = time.perf_counter()
    calm = _folder(place, "calm")
    codes = Ranks(2, place / "meeting", calm, rows).join()
    seconds = time.perf_counter() - start
    what = "one rank of several"
    finding.require(codes == [0, 0], f"{what}: a run that nobody disturbed: exits {codes}")
    expected = contents(calm)
    single = place / "single.h5"
    children.start(children.featurize, single, rows, {}).join()
    different = [name for name in differing(expected, contents(single)) if name != "checksums"]
    finding.require(not different, f"{what}: {different} differ from those of one process")

    landed: Counter[str] = Counter()
    rounds, slowest = 0, 0.0
    while landed.total() < kills:
        rounds += 1
        target = Target(_folder(place, f"round-{rounds}"), expected, finding, what)
        size = 2
        while landed.total() < kills and not target.path.exists():
            shard = int(random.integers(SHARDS))
            target.leave_rubbish(random, shard_path(target.path, shard, SHARDS))
            ranks = Ranks(size, place / "meeting", target.path, rows)
            victim = ranks.processes[random.integers(size)]
            ranks.wait_until_met()
            victim.join(random.uniform(0.0, 0.7) * seconds)
            victim.kill()
            killed_at = time.perf_counter()
            codes = ranks.join()
            slowest = max(slowest, time.perf_counter() - killed_at)
            if victim.exitcode != -9:
                break
            wrong = set(codes) - {-9, 0, children.ALONE}
            finding.require(not wrong, f"{what}: the others ended with {wrong} (None: not at all)")
            new = target.check()
            landed["mid-way" if new else "before a new row"] += 1
            size = int(random.choice(SIZES))
        codes = Ranks(int(random.choice(SIZES)), place / "meeting", target.path, rows).join()
        finding.require(set(codes) == {0}, f"{what}: in the end ranks ended with {codes}")
        target.check_whole(calm)
        for ours, theirs in zip(find_shards(target.path), find_shards(calm), strict=True):
            same = ours.read_bytes() == theirs.read_bytes()
            finding.require(same, f"{what}: {ours} differs from {theirs}")
    finding.rows.append(
        {
            "killed": f"{what} (2 or 3, gone on with 1, 2 or 3)",
            "kills": landed.total(),
            "stores made whole": rounds,
            "where the kills landed": ", ".join(f"{k} {n}" for k, n in sorted(landed.items())),
        }
    )
    finding.notes.append(
        f"After one rank was killed, which had met the others, the last of them had ended within "
        f"{slowest:.1f} s; an undisturbed run of two ranks takes {seconds:.1f} s."
    )


def _folder(place: Path, name: str) -> Path:
    """A store in a folder of its own: a file that joins shards names them."""
    (place / name).mkdir()
    return place / name / "rows.h5"
