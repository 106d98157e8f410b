"""Kills and signals for the command line, in fresh processes; see ``storm``."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks.reliability import task
from benchmarks.reliability.report import Finding
from benchmarks.reliability.storm import SECONDS, Target
from benchmarks.reliability.task import contents
from pntk.store import FeatureStore

_ROOT = Path(__file__).parents[2]
_IN_FLIGHT = 3 * task.BATCH  # samples of the first batch, of the one computed and the one begun
_SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def command(path: Path, data: str, *more: str, ranks: int | None = None) -> list[str]:
    """Return the command that featurizes."""
    return [
        sys.executable, "-m", *_launcher(ranks), "pntk", "featurize",
        "--model", "benchmarks.reliability.task:model",
        "--data", f"benchmarks.reliability.task:{data}", "--proj-dim", str(task.WIDTH),
        "--batch-size", str(task.BATCH), "--no-progress", "--out", str(path), *more,
    ]  # fmt: skip


def _launcher(ranks: int | None) -> list[str]:
    """What comes before ``pntk`` under torchrun."""
    if ranks is None:
        return []
    return ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]


def start(arguments: list[str], counter: Path | None = None) -> subprocess.Popen[str]:
    """Start a process; SIGINT ends it even if a shell's background job is above it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if counter:
        env[task.COUNTER] = str(counter)
    return subprocess.Popen(
        arguments, cwd=_ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for a process, and return what it said on stderr.

    One that takes too long is killed with all processes that it has started.
    """
    try:
        return process.communicate(timeout=SECONDS)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"took more than {SECONDS} s; {process.communicate()[1]}"


def complete(arguments: list[str], finding: Finding, what: str) -> float:
    """Run a command that must succeed; return how long it took."""
    began = time.perf_counter()
    process = start(arguments)
    errors = ended(process)
    finding.require(process.returncode == 0, f"{what}: exit {process.returncode}: {errors[-300:]}")
    return time.perf_counter() - began


def run(place: Path, kills: int, seed: int, finding: Finding) -> None:
    """Kill, interrupt and terminate ``pntk featurize``."""
    place.mkdir()
    _kills(place, kills, seed, finding)
    for number, code in _SIGNALS.items():
        _signal(place, number, code, finding)
    _torchrun(place, max(1, kills // 3), seed, finding)


def _kills(place: Path, kills: int, seed: int, finding: Finding) -> None:
    what = "pntk featurize"
    random = np.random.default_rng(seed)
    options = ("--sync-interval", "0.05")
    calm = place / "calm.h5"
    began = time.perf_counter()
    process = start(command(calm, "data", *options))
    while not calm.exists() and process.poll() is None:
        time.sleep(0.01)
    to_create = time.perf_counter() - began
    errors = ended(process)
    to_finish = time.perf_counter() - began
    if process.returncode:
        finding.failures.append(f"{what}: undisturbed: exit {process.returncode}: {errors[-300:]}")
        return
    expected = contents(calm)
    landed: Counter[str] = Counter()
    rounds = 0
    while landed.total() < kills:
        rounds += 1
        target = Target(place / f"round-{rounds}.h5", expected, finding, what)
        arguments = command(target.path, "data", *options)
        while landed.total() < kills and not target.done.all():
            process = start(arguments)
            time.sleep(random.uniform(0.8 * to_create, to_finish))
            process.kill()
            process.communicate()
            if process.returncode != -9:
                break
            there = target.path.exists()
            new = target.check()
            landed["mid-way" if new else "before a new row" if there else "before the file"] += 1
        complete(arguments, finding, what)
        target.check_whole(calm)
    finding.rows.append(
        {
            "killed": f"{what}, fresh processes",
            "kills": landed.total(),
            "stores made whole": rounds,
            "where the kills landed": ", ".join(f"{k} {n}" for k, n in sorted(landed.items())),
        }
    )


def _signal(place: Path, number: signal.Signals, code: int, finding: Finding) -> None:
    """Stop the work by a signal, and go on with the command that the message names."""
    what = number.name
    calm, path = place / "calm-slow.h5", place / f"{what}.h5"
    if not calm.exists():
        complete(command(calm, "Slow"), finding, what)
    expected = contents(calm)
    counter = place / f"{what}.count"
    # nothing is synced by itself: what is there afterwards was written because of the signal
    process = start(command(path, "Slow", "--sync-interval", "1000"), counter)
    while process.poll() is None and not (counter.exists() and counter.stat().st_size > 300):
        time.sleep(0.01)
    process.send_signal(number)
    errors = ended(process)
    given_out = counter.stat().st_size
    finding.require(process.returncode == code, f"{what}: exit {process.returncode}, not {code}")
    target = Target(path, expected, finding, what)
    target.check()
    kept = FeatureStore(path).num_done
    finding.require(
        given_out - _IN_FLIGHT <= kept <= given_out < len(expected["done"]),
        f"{what}: {kept} rows are kept of {given_out} samples that were taken",
    )
    message = r"stopped: ([\d,]+) of .* go on from there with: (.*)"
    said = re.search(message, errors.replace("\n", " "))
    if said is None or int(said[1].replace(",", "")) != kept:
        finding.failures.append(f"{what}: {kept} rows are there, and it says {errors[-300:]}")
        return
    again = shlex.split(said[2])
    complete([sys.executable, *again[again.index("-m") :]], finding, f"{what}, resumed")
    target.check_whole(calm)
    finding.notes.append(
        f"{what} after {given_out} samples, nothing synced yet: exit {code}, {kept} rows kept; the "
        "command that the message names made the rest, and the file equals the undisturbed one."
    )


def _torchrun(place: Path, kills: int, seed: int, finding: Finding) -> None:
    """Kill a process of torchrun, which ends the others; go on with another number of them."""
    if not Path("/proc/self/task").is_dir():
        return finding.notes.append("torchrun was not tried: its processes are found in /proc")
    what = "a process of torchrun"
    random = np.random.default_rng(seed)
    options = ("--sync-interval", "0.05", "--shards", "3")
    calm = _folder(place, "calm")
    seconds = complete(command(calm, "data", *options, ranks=2), finding, what)
    expected = contents(calm)
    landed: Counter[str] = Counter()
    rounds, slowest = 0, 0.0
    while landed.total() < kills:
        rounds += 1
        target = Target(_folder(place, f"together-{rounds}"), expected, finding, what)
        ranks = 2
        while landed.total() < kills and not target.path.exists():
            process = start(command(target.path, "data", *options, ranks=ranks))
            _kill_one(process, random.uniform(0.2, 0.9) * seconds, ranks, random)
            began = time.perf_counter()
            ended(process)
            slowest = max(slowest, time.perf_counter() - began)
            if process.returncode == 0:  # it was over
                break
            landed["mid-way" if target.check() else "before a new row"] += 1
            ranks = int(random.choice([1, 2, 3]))
        complete(command(target.path, "data", *options, ranks=ranks), finding, what)
        target.check_whole(calm)
    finding.rows.append(
        {
            "killed": f"{what} (2, gone on with 1, 2 or 3)",
            "kills": landed.total(),
            "stores made whole": rounds,
            "where the kills landed": ", ".join(f"{k} {n}" for k, n in sorted(landed.items())),
        }
    )
    finding.notes.append(f"torchrun ended at most {slowest:.1f} s after one process was killed.")


def _kill_one(
    process: subprocess.Popen[str], seconds: float, ranks: int, random: np.random.Generator
) -> None:
    """Kill one of the processes that torchrun has started, so long after its own start."""
    deadline = time.monotonic() + seconds
    workers: list[int] = []
    while process.poll() is None and (len(workers) < ranks or time.monotonic() < deadline):
        workers = _children(process.pid)
        time.sleep(0.01)
    if workers:
        with suppress(ProcessLookupError):
            os.kill(int(random.choice(workers)), signal.SIGKILL)


def _children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    with suppress(FileNotFoundError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def _folder(place: Path, name: str) -> Path:
    """A store in a folder of its own."""
    (place / name).mkdir()
    return place / name / "rows.h5"
