"""What a store costs beside a plain memory map of the same bytes, and beside making the rows."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

import pntk.writing
from benchmarks.cases import CASES
from benchmarks.registry import Check, Entry, Number, Options, Row, progress, require
from benchmarks.timing import Spread, Times, calls_in, interleaved, repeated
from pntk.store import FeatureStore, RowWriter, StoreHeader
from pntk.store.integrity import row_checksums

SHM = Path("/dev/shm")  # memory that looks like a disk
BATCH = 64
SOURCES = 4  # different batches, again and again: what was just computed is in the caches too
FILE_BYTES = 2**28  # of rows; a store's fixed costs, some 10 ms, are a few percent then
READ_BYTES = 2**22
HALF = 2.0**-11  # relative error of rounding to float16
IMAGES, IMAGE_ROUNDS = 512, 5
NEVER = 1e9  # seconds between syncs
TARGET, SHARE = 0.85, 0.03


@dataclass(frozen=True)
class Kind:
    """Rows of one width and type."""

    width: int
    dtype: str

    def __str__(self) -> str:
        return f"k = {self.width}, {self.dtype}"

    @property
    def row_bytes(self) -> int:
        return self.width * np.dtype(self.dtype).itemsize

    def rows(self, options: Options) -> int:
        """Return how many rows a file gets."""
        return 4 * BATCH if options.quick else FILE_BYTES // self.row_bytes

    def header(self, rows: int) -> StoreHeader:
        """Return the header of a store."""
        return StoreHeader(
            rows=rows,
            width=self.width,
            dtype=self.dtype,
            projection={"family": "none"},
            output={"name": "none"},
            params=(),
            weights="",
            precision="fp32",
            columns={"labels": "int64"},
        )

    def sources(self) -> list[np.ndarray]:
        """Return float32 batches [64, k], the same ones in each call."""
        generator = np.random.default_rng(0)
        shape = (BATCH, self.width)
        return [generator.standard_normal(shape, dtype=np.float32) for _ in range(SOURCES)]


KINDS = [Kind(4096, "float32"), Kind(4096, "float16"), Kind(512, "float32")]


@dataclass
class Stages:
    """Seconds of each stage of writing a file, one a round."""

    create: list[float] = field(default_factory=list)
    write: list[float] = field(default_factory=list)
    flush: list[float] = field(default_factory=list)

    def seconds(self, stages: str) -> list[float]:
        """Return the sum of some stages, round by round."""
        parts = [getattr(self, stage) for stage in stages.split(" + ")]
        return [sum(of_round) for of_round in zip(*parts, strict=True)]


Written = tuple[float, float, float]  # seconds of the three stages
STAGES = ("write", "create + write", "create + write + flush")


def write_store(path: Path, kind: Kind, rows: int, sources: list[np.ndarray]) -> Written:
    """Write a store, without a sync before the last one; it ends in the order data, then done."""
    labels = np.zeros(BATCH, np.int64)
    start = time.perf_counter()
    writer = RowWriter.open(path, kind.header(rows), sync_interval=NEVER)
    created = time.perf_counter()
    for number, first in enumerate(range(0, rows, BATCH)):
        places = np.arange(first, first + BATCH)
        writer.write(places, sources[number % SOURCES], {"labels": labels})
    written = time.perf_counter()
    writer.close()
    return created - start, written - created, time.perf_counter() - written


def write_map(path: Path, kind: Kind, rows: int, sources: list[np.ndarray]) -> Written:
    """Write the rows alone through a plain memory map of NumPy, to disk in the end."""
    start = time.perf_counter()
    made = np.memmap(path, dtype=kind.dtype, mode="w+", shape=(rows, kind.width))
    created = time.perf_counter()
    for number, first in enumerate(range(0, rows, BATCH)):
        made[first : first + BATCH] = sources[number % SOURCES]
    written = time.perf_counter()
    made.flush()
    del made  # unmapped here, as the store is in close()
    return created - start, written - created, time.perf_counter() - written


class Store(Entry):
    """Throughput of a store, and its share of featurizing."""

    name = "store"
    summary = (
        "Rows written to a store in batches of 64, against the same bytes written in the same "
        "slices to a plain np.memmap (mode w+): time of the map over time of the store, so 1 is "
        "as fast and more is faster. `write` goes into the system's page cache; `create` makes "
        "and reserves the file; `flush` brings it to disk, data before its marks, and unmaps. "
        "`read()` and `verify()`, from the page cache, are set against np.fromfile in the same "
        "way. Then a sync, checksums, and what writing is of featurizing ResNet18."
    )

    def check(self, options: Options) -> list[Check]:
        return [check for kind in KINDS for check in _check(kind)]

    def measure(self, options: Options) -> Iterator[Row]:
        self.notes += [
            f"Targets: at least {TARGET} of the plain map, and below {SHARE} of featurizing "
            "ResNet18.",
            f"{'A few rows' if options.quick else f'{FILE_BYTES / 1e6:.0f} MB of rows'} a file; "
            "each round on new files, deleted after it; the order alternates and the first round "
            "is dropped. Each file is written twice, and the second time counts: its pages are "
            "then those that the first has freed. Pages that a virtual machine has to get from its "
            "host cost many times what writing does, and which way gets more of them is chance. "
            "TMPDIR chooses the disk. Ratios are taken round by round; the last one is of the "
            "fastest round of each, where medians are pages from the host.",
            "The map holds the rows alone. The store also checks its arguments, takes labels, "
            "makes checksums, reserves its space (on tmpfs that zeroes it) and syncs twice.",
            "float16: the map gets numbers that are float16 already, the store makes them of "
            "float32 with a scale a row. `map that converts` gets float32 too.",
        ]
        for folder in self._folders():
            for kind in KINDS:
                yield from _writing(kind, folder, options)
            yield _sync(KINDS[0], folder, options)
        for kind in KINDS:
            yield _reading(kind, options)
        for kind in KINDS:
            yield _checksums(kind)
        yield self._share(options)

    def _folders(self) -> list[Path]:
        folders = [Path(tempfile.gettempdir())]
        if os.access(SHM, os.W_OK) and filesystem(folders[0]) != "tmpfs":
            return [*folders, SHM]
        self.notes.append(f"{SHM} is not there, or the disk is one: no second table of rates.")
        return folders

    def _share(self, options: Options) -> Row:
        case = next(case for case in CASES if case.name == "ResNet18")
        progress(f"featurize {case.name}")
        loaded = case.load(options)
        f, size = loaded.featurizer(), len(loaded.batch)
        images = loaded.batch.repeat(1 if options.quick else IMAGES // size, 1, 1, 1)
        batches = images.split(size)
        taken: list[tuple[float, float, float]] = []

        def featurize() -> None:
            with tempfile.TemporaryDirectory() as folder, _timed_writer() as spent:
                start = time.perf_counter()
                f.featurize(images, Path(folder) / "rows.h5", batch_size=size, progress=False)
                taken.append((time.perf_counter() - start, spent["wall"], spent["cpu"]))

        def alone() -> None:
            for batch in batches:
                f(batch)

        rounds = min(options.repeats, IMAGE_ROUNDS)
        times = interleaved({"featurize": featurize, "f": alone}, rounds, warmup=1)
        counted = taken[1:]
        threads = torch.get_num_threads()
        return Row(
            f"{case.name}, k = {loaded.proj_dim}, batch {size}",
            {
                "writer thread / featurize": Spread.of([wall / all_ for all_, wall, _ in counted]),
                "its CPU time / (featurize x threads)": Spread.of(
                    [cpu / (all_ * threads) for all_, _, cpu in counted]
                ),
                "featurize / sum of f(batch)": times.ratio("featurize", "f"),
            },
            {
                "featurize [s]": times.of("featurize"),
                "sum of f(batch) [s]": times.of("f"),
                "in the writer thread [s]": Spread.of([wall for _, wall, _ in counted]),
                "rows": len(images),
            },
        )


def staged(
    ways: dict[str, Callable[[Path], Written]], folder: Path, rounds: int
) -> dict[str, Stages]:
    """Write files in several ways alternately, and return the Stages of each.

    The first round does not count, nor does the first of two files in each. Files are deleted, and
    that is brought to disk, unwatched.
    """
    found = {name: Stages() for name in ways}
    order = list(ways)
    for number in range(rounds + 1):
        for name in order:
            for _ in range(2):
                with tempfile.TemporaryDirectory(dir=folder) as inner:
                    spent = ways[name](Path(inner) / "rows")
                _sync_folder(folder)
            if number:
                for stage, seconds in zip(("create", "write", "flush"), spent, strict=True):
                    getattr(found[name], stage).append(seconds)
        order.reverse()
    return found


def filesystem(path: Path) -> str:
    """Return the type of the file system that a path is on, or ``disk``."""
    best, kind = "", "disk"
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in lines:
        _, mount, found, *_ = line.split()
        if path.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def _check(kind: Kind) -> list[Check]:
    """Write a small store and a map, and compare them."""
    rows, sources = 4 * BATCH, kind.sources()
    expected = np.concatenate([sources[i % SOURCES] for i in range(rows // BATCH)])
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder) / "rows.h5", Path(folder) / "plain"
        write_store(path, kind, rows, sources)
        write_map(plain, kind, rows, [source.astype(kind.dtype) for source in sources])
        with FeatureStore(path) as store:
            report = store.verify()
            read = store.read(0, rows).numpy()
        with h5py.File(path, "r") as file:
            stored = file["features"][:]
        mapped = np.fromfile(plain, kind.dtype).reshape(stored.shape)
    wrong = rows - report.rows_checked + len(report.bad_rows)
    error = float(np.linalg.norm(read - expected) / np.linalg.norm(expected))
    checks = [
        require(f"{kind}: share of rows that verify() refuses", wrong / rows, 1 / rows),
        require(f"{kind}: rows against what was written", error, HALF),
    ]
    if kind.dtype == "float32":
        differ = float((stored.view(np.uint32) != mapped.view(np.uint32)).mean())
        checks.append(require(f"{kind}: share of numbers unlike the map's", differ, 1e-12))
    return checks


def _writing(kind: Kind, folder: Path, options: Options) -> Iterator[Row]:
    """Time the store beside the map; float16 beside a map that converts as well."""
    case = f"write, {filesystem(folder)}, {kind}"
    progress(case)
    rows, sources = kind.rows(options), kind.sources()
    ready = [source.astype(kind.dtype) for source in sources]
    ways: dict[str, Callable[[Path], Written]] = {
        "store": lambda path: write_store(path, kind, rows, sources),
        "": lambda path: write_map(path, kind, rows, ready),
    }
    if kind.dtype == "float16":
        ways[", map that converts"] = lambda path: write_map(path, kind, rows, sources)
    found = staged(ways, folder, options.repeats)
    size = rows * kind.row_bytes / 1e9
    for base in list(ways)[1:]:
        values: dict[str, Number] = {}
        for name, stage in (("store", found["store"]), ("map", found[base])):
            values[f"{name}: create [ms]"] = Spread.of(stage.create).times(1e3)
            values[f"{name}: write [GB/s]"] = _rate(size, stage.write)
            values[f"{name}: flush [ms]"] = Spread.of(stage.flush).times(1e3)
            values[f"{name}: all [GB/s]"] = _rate(size, stage.seconds(STAGES[-1]))
        ratios: dict[str, Number] = {
            stages: Times({name: found[name].seconds(stages) for name in ("store", base)}).ratio(
                base, "store"
            )
            for stages in STAGES
        }
        fastest = [min(found[name].seconds(STAGES[-1])) for name in (base, "store")]
        ratios["all, fastest rounds"] = fastest[0] / fastest[1]
        yield Row(case + base, ratios, values)


def _sync(kind: Kind, folder: Path, options: Options) -> Row:
    """Time bringing one batch to disk, as every sync interval does with what there is."""
    case = f"sync, {filesystem(folder)}, {kind}"
    progress(case)
    (source, *_), labels = kind.sources(), np.zeros(BATCH, np.int64)
    seconds = []
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        rows = BATCH * (options.repeats + 1)
        writer = RowWriter.open(Path(inner) / "rows", kind.header(rows), sync_interval=NEVER)
        with writer:
            for first in range(0, rows, BATCH):
                writer.write(np.arange(first, first + BATCH), source, {"labels": labels})
                start = time.perf_counter()
                writer.sync()
                seconds.append(time.perf_counter() - start)
    return Row(case, {}, {f"sync of {BATCH} rows [ms]": Spread.of(seconds[1:]).times(1e3)})


def _reading(kind: Kind, options: Options) -> Row:
    """Time reading and verifying a store that the system has in memory, beside np.fromfile."""
    progress(f"read, {kind}")
    rows = kind.rows(options)
    step = min(rows, READ_BYTES // kind.row_bytes)
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder) / "rows.h5", Path(folder) / "plain"
        write_store(path, kind, rows, kind.sources())
        write_map(plain, kind, rows, [source.astype(kind.dtype) for source in kind.sources()])
        with FeatureStore(path) as store, FeatureStore(path, check=True) as checking:

            def read(source: FeatureStore) -> None:
                for first in range(0, rows, step):
                    source.read(first, first + step)

            def from_file() -> None:
                with open(plain, "rb") as file:
                    for _ in range(0, rows, step):
                        np.fromfile(file, kind.dtype, step * kind.width)

            times = interleaved(
                {
                    "np.fromfile": from_file,
                    "read()": lambda: read(store),
                    "read(), check=True": lambda: read(checking),
                    "verify()": store.verify,
                },
                options.repeats,
            )
    size = rows * kind.row_bytes / 1e9
    names = list(times.seconds)
    return Row(
        f"read, {kind}",
        {name: times.ratio("np.fromfile", name) for name in names[1:]},
        {f"{name} [GB/s]": _rate(size, list(times.seconds[name])) for name in names},
    )


def _checksums(kind: Kind) -> Row:
    """Time the checksums of a batch that is in the caches."""
    progress(f"checksums, {kind}")
    rows = kind.sources()[0].astype(kind.dtype)
    places, state = np.arange(BATCH), np.full(BATCH, 0x55, np.uint8)
    cells = {"labels": np.zeros(BATCH, np.int64)}

    def once() -> None:
        row_checksums(places, state, rows, cells)

    count = calls_in(once, 0.01)
    each = interleaved({"it": repeated(once, count)}, 9).of("it").times(1e6 / count / BATCH)
    return Row(
        f"checksums, {kind}",
        {},
        {"us a row": each, "hashed [GB/s]": kind.row_bytes / each.median / 1e3},
    )


@contextmanager
def _timed_writer() -> Iterator[dict[str, float]]:
    """Add up the time that the thread that writes spends on batches, on the clock and of a CPU."""
    spent = {"wall": 0.0, "cpu": 0.0}
    plain = pntk.writing.Staging

    def staging(write: Callable[..., None], *args: Any) -> Any:
        def timed(*inner: Any) -> None:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                write(*inner)
            finally:
                spent["wall"] += time.perf_counter() - wall
                spent["cpu"] += time.thread_time() - cpu

        return plain(timed, *args)

    pntk.writing.Staging = staging  # type: ignore[assignment, misc]
    try:
        yield spent
    finally:
        pntk.writing.Staging = plain  # type: ignore[misc]


def _rate(size: float, seconds: list[float]) -> Spread:
    return Spread.of([size / s for s in seconds])


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
