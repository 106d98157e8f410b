"""How times grow with threads, parameters, k and batch, one at a time."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from benchmarks import sketches
from benchmarks.cases import CASES, Case, Loaded, check_rows
from benchmarks.registry import Check, Entry, Number, Options, Row, Unavailable, progress, require
from benchmarks.timing import Times, interleaved, threads

FAMILIES = ("hadamard", "rademacher", "normal")
MODELS = ("MLP", "ResNet18")
ROUNDS = 3
CHECKED = 4  # samples of a base point
BOUND = 1e-5  # of a kernel against float64

Axes = dict[str, tuple[int, ...]]
# A kernel takes about a second at its base point, and not minutes at the end of an axis.
KERNEL_AXES: Axes = {
    "p": (10**5, 10**6, 10**7),
    "k": (512, 2048, 8192, 16384),
    "batch": (1, 8, 32, 128, 256),
}
MODEL_AXES: Axes = {"k": (512, 4096, 16384), "batch": (1, 8, 32, 128)}


@dataclass(frozen=True)
class Point:
    """The factors; a model has its own p."""

    threads: int
    p: int | None
    k: int
    batch: int

    def __str__(self) -> str:
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return ", ".join(f"{name} = {value}" for name, value in known.items())


class Subject(ABC):
    """What is timed along the axes.

    Args:
        name: of its rows.
        base: the point that all lines cross.
        axes: factor -> values.
        options: of the run.
    """

    bound: float  # of rows against those of one thread
    warmup = 1

    def __init__(self, name: str, base: Point, axes: Axes, options: Options) -> None:
        self.name = name
        self.base = base
        self.options = options
        counts = {2**i for i in range(base.threads.bit_length())} | {base.threads}
        axes = {"threads": tuple(sorted(counts)), **axes}
        self.lines = {a: [replace(base, **{a: v}) for v in values] for a, values in axes.items()}

    @abstractmethod
    def check_base(self) -> Check:
        """Compare the base point with float64."""

    @abstractmethod
    def rows(self, point: Point) -> Callable[[], Tensor]:
        """Return what makes the rows of a point."""

    def backward(self, point: Point) -> Callable[[], None] | None:
        """Return the ordinary gradient of the point's batch, where there is one."""
        return None

    def values(self, point: Point, seconds: float) -> dict[str, Number]:
        """Return more columns, of a point that took some seconds."""
        return {}

    def check_line(self, axis: str) -> Check:
        """Compare all points of a line with one thread."""
        worst = max(self._against_one_thread(point) for point in self.lines[axis])
        what = f"{self.name}: finite, and as with one thread, along {axis}"
        return require(what, worst, self.bound)

    def _against_one_thread(self, point: Point) -> float:
        call = self.rows(point)
        with threads(point.threads):
            found = call()
        if not bool(found.isfinite().all()):
            return math.inf
        with threads(1):
            return sketches.relative_error(found, call())


class Kernel(Subject):
    """A compiled kernel on gradients in memory."""

    bound = 1e-6
    warmup = 0  # keeps nothing between calls, and the checks have run it

    def __init__(self, family: str, options: Options) -> None:
        base = Point(torch.get_num_threads(), 10**6, 2048, 32)
        axes = KERNEL_AXES
        if options.quick:
            base = replace(base, p=256, k=64, batch=4)
            axes = {"p": (64, 256), "k": (16, 64), "batch": (1, 4)}
        super().__init__(family, base, axes, options)

    def check_base(self) -> Check:
        rows = self.rows(self.base)()[:CHECKED]
        gradient = self._gradient(self.base)[:CHECKED]
        expected, columns = sketches.reference_rows(self.name, self.base.k, gradient)
        error = sketches.relative_error(rows[:, columns], expected)
        return require(f"{self.name}: base point against float64", error, BOUND)

    def rows(self, point: Point) -> Callable[[], Tensor]:
        gradient = self._gradient(point)
        sketch = sketches.make(self.name, point.k, tuple(gradient.shape[1:]), "cpu")
        return lambda: sketches.project(sketch, gradient, point.k)

    def values(self, point: Point, seconds: float) -> dict[str, Number]:
        assert point.p is not None
        if self.name not in sketches.DENSE:
            return {}
        return {"2 b p k [GF/s]": 2e-9 * point.batch * point.p * point.k / seconds}

    def _gradient(self, point: Point) -> Tensor:
        """Return gradients of a matrix; points share their numbers."""
        assert point.p is not None
        columns = 8 if self.options.quick else 1000
        most = max(p.batch * (p.p or 0) for points in self.lines.values() for p in points)
        numbers = _random(most)[: point.batch * point.p]
        return numbers.view(point.batch, point.p // columns, columns)


class Rows(Subject):
    """A model's rows, beside its ordinary gradient."""

    bound = 1e-4  # torch's own sums depend on threads

    def __init__(self, case: Case, options: Options) -> None:
        base = Point(torch.get_num_threads(), None, 4096, 32)
        axes = MODEL_AXES
        if options.quick:
            base = replace(base, k=64, batch=4)
            axes = {"k": (16, 64), "batch": (1, 4)}
        super().__init__(case.name, base, axes, options)
        self.case = case

    def check_base(self) -> Check:
        return check_rows(self.case, self.options)

    def rows(self, point: Point) -> Callable[[], Tensor]:
        loaded = self._load(point)
        f = loaded.featurizer()
        return lambda: f(loaded.batch)

    def backward(self, point: Point) -> Callable[[], None]:
        return self._load(point).backward

    def _load(self, point: Point) -> Loaded:
        loaded = self.case.load(self.options)
        batch = self.case.make_batch(point.batch, self.options.quick)
        return replace(loaded, batch=batch, proj_dim=point.k)


class Scaling(Entry):
    """Times at points that differ from a base point in one factor."""

    name = "scaling"
    summary = (
        "Threads, p, k and batch, varied one at a time: the time of a projection of gradients in "
        "memory, and R = time of f(batch) over that of one forward and backward. `time / base` is "
        "to the base point of the same line."
    )

    def check(self, options: Options) -> list[Check]:
        sketches.require_cpu(options)
        self.subjects: list[Subject] = [*self._kernels(options)]
        self.subjects += [Rows(case, options) for case in CASES if case.name in MODELS]
        self.notes += [f"Base point of {s.name}: {s.base}." for s in self.subjects]
        return [
            check
            for s in self.subjects
            for check in (s.check_base(), *(s.check_line(axis) for axis in s.lines))
        ]

    def _kernels(self, options: Options) -> Iterator[Subject]:
        for family in FAMILIES:
            kernel = Kernel(family, options)
            try:
                kernel.rows(kernel.base)
            except Unavailable as reason:
                self.notes.append(f"Left out: {reason}.")
            else:
                yield kernel

    def measure(self, options: Options) -> list[Row]:
        rounds = min(options.repeats, ROUNDS)
        return [row for s in self.subjects for axis in s.lines for row in _line(s, axis, rounds)]


def _line(subject: Subject, axis: str, rounds: int) -> Iterator[Row]:
    """Time the points of a line alternately."""
    progress(f"timing {subject.name} along {axis}")
    points = {f"{axis} = {getattr(p, axis)}": p for p in subject.lines[axis]}
    calls: dict[str, Callable[[], object]] = {}
    for at, point in points.items():
        calls[at] = _with_threads(point, subject.rows(point))
        backward = subject.backward(point)
        if backward:
            calls[f"backward, {at}"] = _with_threads(point, backward)
    times = interleaved(calls, rounds, warmup=subject.warmup)
    base = f"{axis} = {getattr(subject.base, axis)}"
    for at, point in points.items():
        yield _row(subject, times, point, at, base)


def _row(subject: Subject, times: Times, point: Point, at: str, base: str) -> Row:
    ratios: dict[str, Number] = {"time / base": times.ratio(at, base)}
    time, backward = times.of(at), f"backward, {at}"
    factors: dict[str, Number] = asdict(point)
    values: dict[str, Number] = {
        **factors,
        "time [ms]": time.times(1e3),
        "samples/s": point.batch / time.median,
        **subject.values(point, time.median),
    }
    if backward in times.seconds:
        ratios["R"] = times.ratio(at, backward)
        values["forward + backward [ms]"] = times.of(backward).times(1e3)
    return Row(f"{subject.name}, {at}", ratios, values)


def _with_threads(point: Point, call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with threads(point.threads):
            call()

    return run


@functools.lru_cache(maxsize=1)
def _random(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))
