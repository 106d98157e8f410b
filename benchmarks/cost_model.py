"""What 1e6 to 1e12 rows cost: ``python -m benchmarks.cost_model`` prints tables, in Markdown.

Arithmetic on the constants below, each measured or assumed, and a small simulation of workers that
are killed. docs/scaling.md explains the tables and holds them; ``--update`` renews them there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from pntk.sharding import assign
from pntk.store.header import StoreHeader
from pntk.store.layout import datasets

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
ROWS = (10**6, 10**9, 10**12)
KINDS = ((4096, "float32"), (4096, "float16"), (512, "float32"), (512, "float16"))
QUERIES = 1000
SHARD_ROWS = 4 * 10**6
A, B = "measured A: ", "measured B: "
MEASURED = (
    "A: AMD EPYC, 2 cores, 23.5 GiB, 2026-11-21, commit ffb61de1d515, in `benchmarks/results`. "
    "B: the same machine and day, after commit f6654f2e4296, while other programs were running."
)


def _is(value: float, unit: str, what: str, source: str) -> Any:
    return field(default=value, metadata={"unit": unit, "what": what, "source": source})


@dataclass(frozen=True)
class Constants:
    """All that is not arithmetic; each with its unit, its meaning and where it is from."""

    lenet: float = _is(17130, "rows/s", "LeNet, 2 cores", A + "overhead")
    resnet: float = _is(87.03, "rows/s", "ResNet18, 2 cores", A + "overhead")
    vit: float = _is(136.5, "rows/s", "ViT, 2 cores", A + "overhead")
    gpt: float = _is(57.85, "rows/s", "GPT, 2 cores", A + "overhead")
    batch: float = _is(0.3677, "s", "ResNet18, a batch of 32, 2 cores", A + "overhead")
    process: float = _is(
        625.9, "MiB", "ResNet18: imports, model, a batch of 32, f", A + "memory, 304.6 + 321.3"
    )
    gemm: float = _is(194e9, "flop/s", "fp32 products, 2 cores", A + "overhead, its ceilings")
    file: float = _is(43e3, "B", "a file beyond its datasets, of 62 parameters", B + "a file")
    join: float = _is(2.3e-3, "s", "CPU time to join a shard; to open one of them 2.1e-3",
                      B + "1024 shards")  # fmt: skip
    sync: float = _is(13e-3, "s", "a sync of 64 rows on a virtual disk, ext4", B + "store")
    held: float = _is(61, "B/row", "a worker's lists of what is missing; 25 for tensors",
                      B + "2e6 examples")  # fmt: skip
    link: float = _is(10e9, "B/s", "network of a machine", "assumed: 100 Gbit/s at 80 %")
    disk: float = _is(2e9, "B/s", "disk of a machine", "assumed: one NVMe drive, half its label")
    gpu: float = _is(494e12, "flop/s", "TF32 products of a GPU", "assumed: H200, vendor's peak")
    room: float = _is(64e9, "B", "memory of a machine for rows", "assumed: half of 128 GB")
    least: float = _is(1.0, "", "R on a GPU, at least", "assumed: no GPU was measured")
    most: float = _is(1.3, "", "R on a GPU, at most", "assumed: the target")
    start: float = _is(60, "s", "from a failure to the next batch", "assumed: queue, imports, data")
    job: float = _is(86400.0, "s", "work of each worker", "assumed: a day")


C = Constants()


# ---- sizes and times -----------------------------------------------------------------------------


def row_bytes(k: int, dtype: str) -> int:
    """Return the bytes of a row in a store with labels: features, done, checksum, label, scale."""
    header = StoreHeader(
        rows=1, width=k, dtype=dtype, projection={}, output={}, params=(), weights="",
        precision="fp32", columns={"labels": "int64"},
    )  # fmt: skip
    return sum(math.prod(shape) * kind.itemsize for shape, kind in datasets(header).values())


def shards_for(n: int, workers: int) -> int:
    """Return a number of shards: of at most 4 million rows, and at least four a worker."""
    return max(math.ceil(n / SHARD_ROWS), 4 * workers if workers > 1 else 1)


def search_flops(n: float, queries: float, k: int) -> float:
    """Return the operations of all products of rows with queries."""
    return 2.0 * n * queries * k


def gram_flops(n: float, k: int) -> float:
    """Return the operations of one triangle of a Gram matrix."""
    return float(n) * n * k


@dataclass(frozen=True)
class InvertedFile:
    """An index of kind ``ivfpq`` with its default options: n rows of k numbers."""

    n: int
    k: int

    @property
    def lists(self) -> int:
        """Lists into which rows are sorted."""
        return math.ceil(4 * math.sqrt(self.n))

    @property
    def probes(self) -> int:
        """Lists that are looked through for a query."""
        return max(8, math.ceil(math.sqrt(self.lists)))

    @property
    def entry(self) -> int:
        """Bytes of a row: a code for each of up to 256 pieces, and its number."""
        return min(self.k // 2, 256) + 8

    @property
    def training(self) -> int:
        """Rows to learn from, at least."""
        return 39 * self.lists

    @property
    def budget(self) -> int:
        """The memory_budget that holds them: four times as much."""
        return 4 * 4 * self.training * self.k

    @property
    def memory(self) -> int:
        """Bytes of the index: codes, numbers and centroids."""
        return self.n * self.entry + 4 * self.lists * self.k

    @property
    def train_flops(self) -> float:
        """Ten rounds of k-means, each row against each centroid."""
        return 10 * search_flops(self.training, self.lists, self.k)

    @property
    def fill_flops(self) -> float:
        """Each row against each centroid, once."""
        return search_flops(self.n, self.lists, self.k)


# ---- simulation ----------------------------------------------------------------------------------


def lost(rng: np.random.Generator, workers: int, interval: float) -> np.ndarray:
    """Return the work that a failure loses [s]: two batches, and a part of a sync interval.

    Args:
        interval: seconds between syncs; 0 for a process that is asked to end, and closes its store.
    """
    return 2 * C.batch + interval * rng.random(workers)


def alone(rng: np.random.Generator, workers: int, mean_life: float, interval: float) -> float:
    """Return when the last of workers that restart by themselves (a job array) is done."""
    left = np.full(workers, C.job)
    clock = np.zeros(workers)
    while (busy := left > 0).any():
        life = rng.exponential(mean_life, workers)
        worked = np.maximum(0, life - C.start)
        done = busy & (worked >= left)
        failed = busy & ~done
        clock += np.where(done, C.start + left, np.where(failed, life, 0))
        kept = np.maximum(0, worked - lost(rng, workers, interval))
        left = np.where(done, 0, np.where(failed, left - kept, left))
    return float(clock.max())


def together(rng: np.random.Generator, workers: int, mean_life: float, interval: float) -> float:
    """Return when workers are done that all restart when one fails (torchrun)."""
    left = np.full(workers, C.job)
    clock = 0.0
    while True:
        life = rng.exponential(mean_life / workers)
        worked = life - C.start
        if worked >= left.max():
            return clock + C.start + float(left.max())
        clock += life
        gone = np.full(workers, 2 * C.batch)  # of those that are asked to end because one failed
        gone[rng.integers(workers)] = lost(rng, 1, interval)[0]
        left -= np.minimum(left, np.maximum(0, worked - gone))


def overhead(way: Callable[..., float], workers: int, mean_life: float, interval: float) -> float:
    """Return the mean time beyond that without failures, as a part of it."""
    rng = np.random.default_rng(0)
    trials = max(8, 4096 // workers)
    ends = [way(rng, workers, mean_life, interval) for _ in range(trials)]
    return float(np.mean(ends)) / (C.job + C.start) - 1


def regrouped(before: int, after: int, each: int) -> float:
    """Return the time of the second half of the work over the least possible.

    ``before`` workers have done half of their shards, ``each`` a worker and one after the other;
    then ``after`` workers share what is missing, by whole shards, as pntk does.
    """
    rows = 1000
    done = [min(rows, max(0, each * rows // 2 - i * rows)) for i in range(each)]
    missing = [rows - d for d in done] * before
    work = assign(missing, after)
    longest = max(sum(missing[i] for i in shards) for shards in work)
    return longest / (sum(missing) / after)


# ---- tables --------------------------------------------------------------------------------------

Lines = Iterator[list[str]]


def constants_table() -> Lines:
    yield ["constant", "value", "what", "from"]
    for entry in fields(Constants):
        yield [entry.name, _value(entry), entry.metadata["what"], entry.metadata["source"]]


def _value(entry: Field[Any]) -> str:
    value, unit = getattr(C, entry.name), entry.metadata["unit"]
    return f"{value:.4g} {unit}".strip()


def disk_table() -> Lines:
    yield ["row", "bytes a row", "beside the numbers", *(f"{n:.0e} rows" for n in ROWS)]
    for k, dtype in KINDS:
        each, plain = row_bytes(k, dtype), k * np.dtype(dtype).itemsize
        files = [each * n + C.file * shards_for(n, 1) for n in ROWS]
        share = f"{(each - plain) / plain:.2%}"
        yield [f"k = {k}, {dtype}", f"{each:,}", share, *map(size, files)]


def cpu_table() -> Lines:
    yield ["model", "rows/s, 2 cores", *(f"{n:.0e} rows" for n in ROWS)]
    for name, rate in (("LeNet", C.lenet), ("ResNet18", C.resnet), ("ViT", C.vit), ("GPT", C.gpt)):
        yield [name, f"{rate:,.0f}", *(duration(n / rate) for n in ROWS)]


def gpu_table() -> Lines:
    yield ["forward + backward, samples/s of a GPU", "GPUs", *(f"{n:.0e} rows" for n in ROWS),
           "written a second, k = 4096, float32", "k = 512, float16"]  # fmt: skip
    for rate in (1e3, 1e4):
        for gpus in (1, 64, 1024):
            times = []
            for n in ROWS:
                low, high = (duration(n * r / rate / gpus) for r in (C.least, C.most))
                times.append(low if low == high else f"{low} to {high}")
            flow = [size(rate / C.least * gpus * row_bytes(*kind)) for kind in (KINDS[0], KINDS[3])]
            yield [f"{rate:,.0f}", f"{gpus:,}", *times, *flow]


def shards_table() -> Lines:
    yield ["rows", "workers", "shards", "rows a shard", "file, k = 4096, float32",
           "k = 512, float16", "memory of a worker", "join"]  # fmt: skip
    many = (10**6, 1), (10**6, 8), (10**9, 64), (10**9, 1024)
    for n, workers in many:
        yield _shards(f"{n:.0e}", n, workers, f"{workers:,}")
    yield _shards("1e+12, each of 1,000 stores", 10**9, 1, "1,024 in all")


def _shards(name: str, n: int, workers: int, shown: str) -> list[str]:
    count = shards_for(n, workers)
    each = math.ceil(n / count)
    files = [size(each * row_bytes(*kind)) for kind in (KINDS[0], KINDS[3])]
    held = size(C.process * 2**20 + C.held * each)
    joined = duration(C.join * count) if count > 1 else "none"
    return [name, shown, f"{count:,}", f"{each:,}", *files, held, joined]


def network_table() -> Lines:
    yield ["rows", "row", "all to one machine", "past each of 64 machines, once",
           "times, for all against all"]  # fmt: skip
    for n in ROWS:
        for kind in (KINDS[0], KINDS[3]):
            whole = n * row_bytes(*kind)
            passes = math.ceil(whole / 64 / C.room)
            yield [f"{n:.0e}", f"k = {kind[0]}, {kind[1]}", duration(whole / C.link),
                   duration(whole * 63 / 64 / C.link), f"{passes:,}"]  # fmt: skip


def search_table() -> Lines:
    yield ["rows", "row", "flops", "2 cores", "a GPU at its peak", "read from one disk",
           "from 64 disks"]  # fmt: skip
    for n in ROWS:
        for kind in (KINDS[0], KINDS[3]):
            flops, read = search_flops(n, QUERIES, kind[0]), n * row_bytes(*kind) / C.disk
            times = map(duration, (flops / C.gemm, flops / C.gpu, read, read / 64))
            yield [f"{n:.0e}", f"k = {kind[0]}, {kind[1]}", f"{flops:.1e}", *times]


def gram_table() -> Lines:
    yield ["rows", "float32 matrix", "flops, k = 4096", "2 cores", "a GPU at its peak",
           "1024 of them"]  # fmt: skip
    for n in (10**4, 10**5, *ROWS):
        flops = gram_flops(n, 4096)
        times = map(duration, (flops / C.gemm, flops / C.gpu, flops / C.gpu / 1024))
        yield [f"{n:.0e}", size(4.0 * n * n), f"{flops:.1e}", *times]


def index_table() -> Lines:
    yield ["rows", "k", "lists", "bytes a row", "index in memory", "--memory-budget",
           "train, 2 cores", "fill, 2 cores", "as much as an exact search of",
           "read for a query"]  # fmt: skip
    for n in ROWS[:2]:
        for k in (4096, 512):
            index = InvertedFile(n, k)
            times = (duration(flops / C.gemm) for flops in (index.train_flops, index.fill_flops))
            queries = (index.train_flops + index.fill_flops) / search_flops(n, 1, k)
            read = index.probes * n / index.lists * index.entry
            yield [f"{n:.0e}", str(k), f"{index.lists:,}", str(index.entry), size(index.memory),
                   size(index.budget), *times, f"{queries:,.0f} queries", size(read)]  # fmt: skip


INTERVALS = (5.0, 60.0, 600.0, 3600.0)


def kills_table() -> Lines:
    yield ["a worker fails every", "workers", "started by", "asked to end",
           *(f"killed, sync every {duration(i)}" for i in INTERVALS)]  # fmt: skip
    for mean_life in (24 * 3600.0, 1000 * 3600.0):
        for workers in (1, 64, 1024):
            ways = {"job array": alone, "torchrun": together} if workers > 1 else {"either": alone}
            for name, way in ways.items():
                found = (overhead(way, workers, mean_life, i) for i in (0.0, *INTERVALS))
                yield [f"{mean_life / 3600:,.0f} h", f"{workers:,}", name, *map(_percent, found)]


def sync_table() -> Lines:
    yield ["rows/s of a worker", "written a second", "sync after each batch of 64",
           *(f"every {duration(i)}" for i in INTERVALS[:3])]  # fmt: skip
    for rate in (100, 1000, 10_000):
        flow, batch = rate * row_bytes(*KINDS[0]), 64 / rate
        shares = []
        for interval in (batch, *INTERVALS[:3]):
            takes = C.sync + flow * interval / C.disk
            shares.append(max(0, takes - batch) / interval)  # a batch is made meanwhile
        yield [f"{rate:,}", size(flow), *map(_percent, shares)]


def regroup_table() -> Lines:
    yield ["shards a worker", *(f"64 workers, then {after}" for after in REGROUPED)]
    for each in (1, 2, 4, 8, 16):
        yield [str(each), *(f"{regrouped(64, after, each):.2f}" for after in REGROUPED)]


REGROUPED = (32, 63, 64, 96, 128, 256)
TABLES = [
    constants_table, disk_table, cpu_table, gpu_table, shards_table, network_table, search_table,
    gram_table, index_table, kills_table, sync_table, regroup_table,
]  # fmt: skip


# ---- text ----------------------------------------------------------------------------------------


def size(count: float) -> str:
    """Return a number of bytes in decimal units.

    >>> size(16_401_000_000)
    '16.4 GB'
    """
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
    power = max(0, min(8, int(math.log10(max(count, 1) * 1.0005) // 3)))
    return f"{count / 1000**power:.3g} {units[power]}"


def duration(seconds: float) -> str:
    """Return a time in the largest unit that leaves more than one of it.

    >>> duration(5400), duration(0.0147)
    ('1.5 h', '14.7 ms')
    """
    units = (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for unit, length in units:
        number = seconds / length
        if number >= 1e6:
            return f"{number:.0e} {unit}"
        if number >= 1:
            return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
    return f"{seconds * 1e3:.3g} ms"


def _percent(share: float) -> str:
    if 0 < share < 5e-5:
        return "<0.01%"
    return f"{share:.0%}" if share >= 0.1 or not share else f"{share:.{1 if share >= 0.01 else 2}%}"


def table(lines: Lines) -> str:
    """Return a Markdown table."""
    head, *body = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def update(text: str) -> str:
    """Return a page whose tables, known by their first lines, are those of today."""
    blocks = text.split("\n\n")
    for made in (table(lines()) for lines in TABLES):
        head = made.partition("\n")[0] + "\n"
        places = [i for i, block in enumerate(blocks) if block.startswith(head)]
        if len(places) != 1:
            raise ValueError(f"{len(places)} tables begin with {head.strip()!r}; expected one")
        blocks[places[0]] = made + "\n" * blocks[places[0]].endswith("\n")
    return "\n\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_model", description=__doc__)
    parser.add_argument("--update", action="store_true", help=f"renew the tables of {PAGE.name}")
    if parser.parse_args().update:
        PAGE.write_text(update(PAGE.read_text()))
    else:
        print("\n\n".join(table(lines()) for lines in TABLES))


if __name__ == "__main__":
    main()
