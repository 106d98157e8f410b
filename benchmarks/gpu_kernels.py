"""Projections of gradients that lie in a GPU's memory, beside fast_jl and products with P."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import fast_jl, sketches
from benchmarks.gpu_cases import require_gpu
from benchmarks.machine import gpu_ceilings
from benchmarks.registry import (
    Check,
    Entry,
    Number,
    Options,
    Row,
    Unavailable,
    progress,
    require,
)
from benchmarks.timing import Times, calls_in, interleaved, repeated

FAST_JL, GEMM = "fast_jl", "GEMM, P in memory, bf16"
# fp32: 1e-5. TF32 and bf16 keep 11 and 8 bits of a number, so 5e-4 and 4e-3 at worst.
BOUNDS = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 3e-3}
PRODUCTS = {"fp32": 2, "tf32": 1, "bf16": 1}  # of matrices: fp32 is the sum of two bf16 numbers
PEAKS = {"fp32": "gemm_bf16_gflops", "tf32": "gemm_tf32_gflops", "bf16": "gemm_bf16_gflops"}
DISTINCT = 4  # gradients; the others are multiples of them, so that all rows can be checked
ROUNDS, TURN_SECONDS = 7, 0.005
POINT_SECONDS = 10.0
PART = 2**20  # parameters of P in memory: 8 GiB of bf16, to whose number the time is proportional
TORCH_PART = 2**17  # the same for the dense families in torch

Shape = tuple[int, int]


@dataclass(frozen=True)
class Way:
    """A way to project: family, implementation, and precision of its products."""

    family: str
    impl: str
    precision: str = "fp32"

    def __str__(self) -> str:
        precision = "" if self.family == "hadamard" else f", {self.precision}"
        return f"{self.family}, {self.impl}{precision}"


OURS = [
    *(Way("rademacher", "cuda", precision) for precision in ("bf16", "fp32", "tf32")),
    *(Way("rademacher", "triton", precision) for precision in ("bf16", "fp32")),
    *(Way("normal", "triton", precision) for precision in ("bf16", "fp32")),
    *(Way("hadamard", impl) for impl in ("cuda", "triton")),
]
SLOW = [Way("hadamard", "torch"), Way("rademacher", "torch"), Way("normal", "torch")]


@dataclass(frozen=True)
class Competitor:
    """One call to time.

    Attributes:
        call: project the gradients of ``size`` parameters.
        error: run it, and return its relative error.
    """

    call: Callable[[], object]
    error: Callable[[], float]
    bound: float
    size: int
    precision: str = "bf16"
    dense: bool = True


class GpuKernels(Entry):
    """Time of one projection, at several sizes and batches."""

    name = "gpu-kernels"
    summary = (
        "Gradients in a GPU's memory (fp32), projected to k = 4096. `of bf16 GEMM` is 2 b p k "
        "over the time, as a share of the largest rate of a bf16 matrix product measured here; "
        "`of own GEMM` counts the products that the precision takes (two for fp32) against the "
        "ceiling of its type. Each point is timed in turns with all competitors."
    )

    def check(self, options: Options) -> list[Check]:
        """Check one small case of all that is there; each row is checked again at its size."""
        require_gpu(options)
        self.k = 64 if options.quick else 4096
        self.ceilings = gpu_ceilings(options.device, options.quick)
        self._matrix: Tensor | None = None
        self._fast_jl: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {}
        self._left_out: set[str] = set()
        self._reference: dict[tuple[str, Shape], tuple[Tensor, list[int]]] = {}
        gradient = self._gradients((48, 80), 7, options.device)
        checks = []
        for way in (*OURS, *SLOW):
            try:
                competitor = self._ours(way, gradient)
                what = f"{way}, 7 gradients of 48 x 80"
                checks.append(require(what, competitor.error(), competitor.bound))
            except Unavailable as reason:
                self._leave_out(str(reason))
            except Exception as error:  # of one way; the others are still worth measuring
                self.failures.append(f"{way}: {type(error).__name__}: {error}")
                progress(f"FAILED {way}: {error}")
        return checks

    def measure(self, options: Options) -> Iterator[Row]:
        for shape, batch in points(options.quick):
            if options.seconds_left() <= 0:
                self.notes.append(f"No time was left for p = {math.prod(shape)}, batch {batch}.")
                continue
            yield from self._point(shape, batch, options)
        self.notes.append(
            f"Measured on {PART} parameters or fewer, and {TORCH_PART} for the dense families in "
            "torch, which the time is proportional to; the column `p measured` says on how many."
        )

    def _point(self, shape: Shape, batch: int, options: Options) -> Iterator[Row]:
        gradient = self._gradients(shape, batch, options.device)
        at = f"p = {math.prod(shape)}, batch = {batch}"
        progress(at)
        there: dict[str, Competitor] = {}
        for name, make in self._competitors(gradient, options).items():
            try:
                competitor = make()
                check = require(f"{name}, {at}", competitor.error(), competitor.bound)
            except Unavailable as reason:
                self._leave_out(str(reason))
            except Exception as error:
                self.failures.append(f"{name}, {at}: {type(error).__name__}: {error}")
                progress(f"FAILED {name}, {at}: {error}")
            else:
                self.checks.append(check)
                there[name] = competitor
        times = self._times(there, math.prod(shape), options)
        for name, competitor in there.items():
            yield self._row(name, competitor, times, shape, batch)

    # ---- competitors -------------------------------------------------------------------------

    def _competitors(
        self, gradient: Tensor, options: Options
    ) -> dict[str, Callable[[], Competitor]]:
        """Return what may take part: name -> what makes it, or raises Unavailable."""
        first = (tuple(gradient.shape[1:]), len(gradient)) == points(options.quick)[0]
        ways = [*OURS, *SLOW] if first else OURS
        found: dict[str, Callable[[], Competitor]] = {
            str(way): lambda way=way: self._ours(way, gradient)  # type: ignore[misc]
            for way in ways
        }
        for family in ("rademacher", "normal") if first else ("rademacher",):
            found[f"{FAST_JL}, {family}"] = lambda family=family: self._theirs(family, gradient)  # type: ignore[misc]
        found[GEMM] = lambda: self._gemm(gradient)
        return found

    def _ours(self, way: Way, gradient: Tensor) -> Competitor:
        if way.impl == "torch" and way.family in sketches.DENSE:
            part = min(TORCH_PART, gradient[0].numel())
            gradient = gradient.flatten(1)[:, :part].contiguous()
        shape = tuple(gradient.shape[1:])
        sketch = sketches.make(
            way.family, self.k, shape, way.impl, device=gradient.device, precision=way.precision
        )

        def call() -> Tensor:
            return sketches.project(sketch, gradient, self.k)

        def error() -> float:
            expected, columns = self._expected(way.family, gradient)
            factors = _factors(len(gradient)).double()[:, None]
            rows = call()[:, columns].cpu() / factors
            # of all rows as one: a few columns are too few to tell the error of each
            return float((rows - expected).norm() / expected.norm())

        # whole gradients are transformed in fp32 whatever the precision of products
        bound = BOUNDS["fp32" if way.family == "hadamard" else way.precision]
        dense = way.family in sketches.DENSE
        return Competitor(call, error, bound, sketch.size, way.precision, dense)

    def _expected(self, family: str, gradient: Tensor) -> tuple[Tensor, list[int]]:
        """Return float64 rows of all gradients before their factors, and which columns."""
        key = (family, tuple(gradient.shape[1:]))
        if key not in self._reference:
            self._reference[key] = sketches.reference_rows(family, self.k, gradient[:DISTINCT])
        rows, columns = self._reference[key]
        n = torch.arange(len(gradient))
        return rows[n % DISTINCT], columns

    def _theirs(self, family: str, gradient: Tensor) -> Competitor:
        flat = gradient.flatten(1)
        if family not in self._fast_jl:
            self._fast_jl[family] = fast_jl.load(family, self.k, flat)
            self.notes.append(
                f"fast_jl, {family}: {self._fast_jl[family][1]} was the fastest of its functions."
            )
        project, _ = self._fast_jl[family]

        def error() -> float:
            return fast_jl.error(project, flat.device)

        return Competitor(lambda: project(flat), error, fast_jl.BOUND, flat.shape[1])

    def _gemm(self, gradient: Tensor) -> Competitor:
        size = min(PART, gradient[0].numel())
        left = gradient.flatten(1)[:, :size].bfloat16()
        if self._matrix is None or self._matrix.shape[1] < size:
            self._matrix = None
            self._matrix = _signs(self.k, size, left.device)
        right = self._matrix[:, :size].T

        def error() -> float:
            columns = slice(0, 16)
            expected = left.double() @ right[:, columns].double()
            return sketches.relative_error((left @ right)[:, columns], expected)

        return Competitor(lambda: left @ right, error, 1e-2, size)

    # ---- numbers -----------------------------------------------------------------------------

    def _gradients(self, shape: Shape, batch: int, device: torch.device) -> Tensor:
        torch.manual_seed(0)
        distinct = torch.randn(DISTINCT, *shape, device=device)
        found = torch.empty(batch, *shape, device=device)
        for n, factor in enumerate(_factors(batch).tolist()):
            torch.mul(distinct[n % DISTINCT], factor, out=found[n])
        return found

    def _times(self, there: dict[str, Competitor], p: int, options: Options) -> Times:
        turns, factors = {}, {}
        for name, competitor in there.items():
            calls = calls_in(competitor.call, TURN_SECONDS, options.device)
            turns[name] = repeated(competitor.call, calls)
            factors[name] = p / competitor.size / calls
        rounds = min(options.repeats, ROUNDS)
        left = max(0.0, min(POINT_SECONDS, options.seconds_left()))
        times = interleaved(turns, rounds, warmup=1, device=options.device, seconds=left)
        return times.scaled(factors)

    def _row(
        self, name: str, competitor: Competitor, times: Times, shape: Shape, batch: int
    ) -> Row:
        p, median = math.prod(shape), times.of(name).median
        rate = 2e-9 * batch * p * self.k / median
        ratios: dict[str, Number] = {}
        if competitor.dense:
            own = self.ceilings[PEAKS[competitor.precision]]
            ratios["of bf16 GEMM"] = rate / self.ceilings["gemm_bf16_gflops"]
            ratios["of own GEMM"] = rate * PRODUCTS[competitor.precision] / own
        else:
            read = 4e-9 * batch * p / median
            ratios["read / copy"] = read / self.ceilings["copy_gbytes"]
        for base, column in (
            (f"{FAST_JL}, rademacher", f"{FAST_JL} / this"),
            (GEMM, "P in memory / this"),
        ):
            if base in times.seconds:
                ratios[column] = times.ratio(base, name)
        values: dict[str, Number] = {
            "time [ms]": times.of(name).times(1e3),
            "samples/s": batch / median,
            "2 b p k [TF/s]": rate / 1e3 if competitor.dense else None,
            "gradients [GB/s]": 4e-9 * batch * p / median,
            "p measured": competitor.size,
        }
        return Row(f"{name}, p = {p}, batch = {batch}", ratios, values)

    def _leave_out(self, reason: str) -> None:
        if reason not in self._left_out:
            self._left_out.add(reason)
            self.notes.append(f"Left out: {reason}.")


def points(quick: bool) -> list[tuple[Shape, int]]:
    """Return shapes and batches: the first is where the slow ways take part too."""
    if quick:
        return [((24, 40), 8), ((24, 40), 3)]
    middle = (2048, 2048)
    batches = [(middle, batch) for batch in (64, 8, 256, 128, 32, 512)]
    return [*batches, ((1024, 1024), 64), ((3072, 3072), 64)]


def _factors(count: int) -> Tensor:
    """Return powers of two of either sign, which change no digit of a number; the first are 1."""
    n = torch.arange(count) // DISTINCT
    return torch.where(n % 2 == 0, 1.0, -1.0) * 2.0 ** (n % 5)


def _signs(k: int, size: int, device: torch.device) -> Tensor:
    """Return random signs, bf16 [k, size], in parts to save memory."""
    found = torch.empty(k, size, dtype=torch.bfloat16, device=device)
    for part in found.split(256):
        part.copy_(torch.randint(0, 2, part.shape, dtype=torch.int8, device=device) * 2 - 1)
    return found
