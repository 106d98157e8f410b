"""Stores larger than memory: ``python -m benchmarks.reliability.memory --rows 1000000``.

The nearest rows of a large store, and the kernel of another, each in a fresh process that is given
little memory; its peak is measured. A sample of the results is compared with float64. The store of
a million rows takes 16.4 GB of disk, which are given back in the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pntk
from benchmarks.memory import peak, reset_peak
from benchmarks.registry import progress
from benchmarks.reliability.report import DIR_HELP, Finding, Unavailable, finish
from benchmarks.reliability.task import folder, make_header
from pntk.memory import parse_bytes
from pntk.ntk.kernel_file import open_kernel
from pntk.store import FeatureStore, RowWriter

CPU = torch.device("cpu")
K = 5
BOUND = 10**9  # bytes that the search may take, whatever the budget
SLACK = 32 * 2**20  # bytes that libraries take for themselves at their first use
CHECKED = 8  # queries that are searched again, in float64
ENTRIES = 5000  # of the kernel, that are computed again
TOLERANCE = 1e-5  # of cosines

_BLOCK = 2**25  # bytes of rows that are made or read at a time
_ROOT = Path(__file__).parents[2]


def make_store(path: Path, rows: int, width: int, seed: int) -> float:
    """Write rows of random numbers; return the seconds it took."""
    began = time.perf_counter()
    random = np.random.Generator(np.random.SFC64(seed))
    step = max(1, _BLOCK // (4 * width))
    said = began
    with RowWriter.open(path, make_header(rows, width, columns={})) as writer:
        for first in range(0, rows, step):
            last = min(first + step, rows)
            block = random.random((last - first, width), dtype=np.float32)
            block -= 0.5
            writer.write(np.arange(first, last), block)
            if time.perf_counter() - said > 10:
                said = time.perf_counter()
                progress(f"{last:,} of {rows:,} rows after {said - began:.0f} s")
    return time.perf_counter() - began


def make_queries(path: Path, store: FeatureStore, count: int) -> np.ndarray:
    """Write queries, each half a row of the store and half noise; return which rows."""
    random = np.random.default_rng(1)
    rows = random.choice(len(store), count, replace=count > len(store))
    order = np.sort(rows)
    queries = store[order].numpy()
    queries += random.random(queries.shape, dtype=np.float32) - 0.5
    np.save(path, queries)
    return order


def search_again(store: FeatureStore, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and indices of the nearest rows, in float64."""
    x = torch.from_numpy(queries).double()
    x /= x.norm(dim=1, keepdim=True)
    step = max(1, _BLOCK // (8 * store.header.width))
    best = torch.full((len(x), K), -torch.inf, dtype=torch.float64)
    where = torch.zeros(len(x), K, dtype=torch.int64)
    for first in range(0, len(store), step):
        rows = store.read(first, min(first + step, len(store))).double()
        scores = (x @ rows.T) / rows.norm(dim=1)
        numbers = torch.arange(first, first + len(rows)).expand(len(x), -1)
        best, places = torch.cat([best, scores], 1).topk(K, dim=1)
        where = torch.cat([where, numbers], 1).gather(1, places)
    return best.numpy(), where.numpy()


# ---- in a process of its own ---------------------------------------------------------------------


def child(what: str, place: Path, budget: str) -> dict[str, float]:
    """Do the work, and return the bytes of its peak above the imports, and seconds."""
    torch.zeros(2).sum()
    reset_peak(CPU)
    base = peak(CPU)
    began = time.perf_counter()
    if what == "topk":
        queries = torch.from_numpy(np.load(place / "queries.npy"))
        found = pntk.topk(queries, FeatureStore(place / "large.h5"), K, memory_budget=budget)
        np.savez(place / "found.npz", values=found.values, indices=found.indices)
    else:
        store = FeatureStore(place / "small.h5")
        pntk.ntk(store, out=place / "kernel.h5", memory_budget=budget)
    return {"peak": peak(CPU) - base, "seconds": time.perf_counter() - began, "base": base}


def apart(what: str, place: Path, budget: str) -> dict[str, float]:
    """Call ``child`` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.reliability.memory", "--child", what]
    command += ["--dir", str(place), "--budget", budget]
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- all of it -----------------------------------------------------------------------------------


def run(
    rows: int = 1_000_000,
    width: int = 4096,
    queries: int = 1000,
    budget: str = "700MB",
    kernel_rows: int = 20_000,
    kernel_budget: str = "128MB",
    parent: Path | None = None,
) -> Finding:
    """Search a large store, and make the kernel of a smaller one, within little memory.

    Raises:
        Unavailable: the disk is too small.
    """
    finding = Finding(
        "memory",
        "Peak resident memory of `pntk.topk` and `pntk.ntk(out=...)`, above that of the imports, "
        "in a fresh process each; random rows of float32. Results are compared with float64.",
    )
    with folder(parent) as place:
        needed = int(1.02 * (4 * width * max(rows, kernel_rows) + 4 * kernel_rows**2)) + 2**24
        free = shutil.disk_usage(place).free
        if free < needed:
            raise Unavailable(
                f"{needed:,} bytes of disk are needed and {free:,} are free: give another place "
                "with --dir, or fewer --rows"
            )
        _search(finding, place, rows, width, queries, budget)
        (place / "large.h5").unlink()
        _kernel(finding, place, kernel_rows, width, kernel_budget)
    return finding


def _search(
    finding: Finding, place: Path, rows: int, width: int, queries: int, budget: str
) -> None:
    progress(f"writing {rows:,} rows of {width:,}")
    to_write = make_store(place / "large.h5", rows, width, 0)
    store = FeatureStore(place / "large.h5")
    planted = make_queries(place / "queries.npy", store, queries)
    progress(f"wrote them in {to_write:.0f} s; searching for {queries:,} queries")
    measured = apart("topk", place, budget)
    progress(f"searched in {measured['seconds']:.0f} s; searching again in float64")
    began = time.perf_counter()
    with np.load(place / "found.npz") as found:
        values, indices = found["values"], found["indices"]
    some = np.sort(np.random.default_rng(2).choice(queries, min(CHECKED, queries), replace=False))
    exact, where = search_again(store, np.load(place / "queries.npy")[some])
    error = float(np.abs(values[some] - exact).max())
    finding.require(error < TOLERANCE, f"topk: cosines differ by {error:.2g}")
    apart_enough = np.abs(np.diff(exact, axis=1, append=-1.0)) > TOLERANCE
    apart_enough[:, 1:] &= apart_enough[:, :-1]
    same = indices[some] == where
    finding.require(bool(same[apart_enough].all()), "topk: other rows than in float64")
    first = float((indices[:, 0] == planted).mean())
    finding.require(first == 1.0, f"topk: {first:.3f} of the planted rows are first")
    limit = (parse_bytes(budget) or 0) + queries * (4 * width + 12 * K) + SLACK
    finding.require(
        measured["peak"] < min(limit, BOUND),
        f"topk: the peak is {measured['peak']:,.0f} bytes, expected {min(limit, BOUND):,}",
    )
    finding.rows.append(
        {
            "work": f"topk, {queries:,} queries, k = {K}",
            "rows": f"{rows:,} x {width:,}",
            "store [MB]": (place / "large.h5").stat().st_size // 10**6,
            "memory_budget": budget,
            "peak above imports [MB]": measured["peak"] / 1e6,
            "imports [MB]": measured["base"] / 1e6,
            "seconds": measured["seconds"],
            "checked": f"{len(some)} queries over all rows, error {error:.1g}",
        }
    )
    finding.notes.append(
        f"The large store was written in {to_write:.0f} s, {4 * rows * width / to_write / 1e6:.0f} "
        f"MB/s with the making of its numbers; the search in float64 took "
        f"{time.perf_counter() - began:.0f} s."
    )


def _kernel(finding: Finding, place: Path, rows: int, width: int, budget: str) -> None:
    progress(f"the kernel of {rows:,} rows")
    make_store(place / "small.h5", rows, width, 3)
    measured = apart("ntk", place, budget)
    store = FeatureStore(place / "small.h5")
    kernel = open_kernel(place / "kernel.h5")
    random = np.random.default_rng(4)
    pairs = random.integers(rows, size=(2, ENTRIES))
    a, b = (store[number].double() for number in pairs)
    error = torch.from_numpy(kernel.values[pairs[0], pairs[1]]) - (a * b).sum(1)
    worst = float((error.abs() / (a.norm(dim=1) * b.norm(dim=1))).max())
    finding.require(worst < TOLERANCE, f"ntk: entries differ by {worst:.2g} of the norms")
    limit = (parse_bytes(budget) or 0) + SLACK
    finding.require(
        measured["peak"] < limit,
        f"ntk: the peak is {measured['peak']:,.0f} bytes, expected {limit:,}",
    )
    finding.rows.append(
        {
            "work": f"ntk(out=...), {(place / 'kernel.h5').stat().st_size // 10**6:,} MB",
            "rows": f"{rows:,} x {width:,}",
            "store [MB]": (place / "small.h5").stat().st_size // 10**6,
            "memory_budget": budget,
            "peak above imports [MB]": measured["peak"] / 1e6,
            "imports [MB]": measured["base"] / 1e6,
            "seconds": measured["seconds"],
            "checked": f"{ENTRIES:,} entries, error {worst:.1g}",
        }
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--width", type=int, default=4096, metavar="N")
    parser.add_argument("--queries", type=int, default=1000, metavar="N")
    parser.add_argument("--budget", default="700MB", metavar="SIZE")
    parser.add_argument("--kernel-rows", type=int, default=20_000, metavar="N")
    parser.add_argument("--kernel-budget", default="128MB", metavar="SIZE")
    parser.add_argument("--dir", type=Path, help=DIR_HELP)
    parser.add_argument("--child", choices=["topk", "ntk"], help=argparse.SUPPRESS)
    given: Any = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, given.dir, given.budget)))
        return 0
    return finish(
        run(
            given.rows, given.width, given.queries, given.budget,
            given.kernel_rows, given.kernel_budget, given.dir,
        )
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
