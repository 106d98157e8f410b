"""Projection kernels on one core, beside TRAK's projector and products with P in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from benchmarks import sketches
from benchmarks.machine import cpu_level
from benchmarks.peak import core_peaks
from benchmarks.registry import Check, Entry, Number, Options, Row, Unavailable, progress, require
from benchmarks.timing import Times, calls_in, interleaved, repeated, threads
from pntk.projection import bits, ops

TRAK = "TRAK BasicProjector, rademacher"
GEMM, GEMM_BF16 = "GEMM, P in memory, fp32", "GEMM, P in memory, bf16"
ROUNDS = 3  # one round takes a minute, nearly all of it TRAK's
TURN_SECONDS = {False: 0.3, True: 0.01}  # (quick) a call that is quicker than this is repeated
PART = 16  # what is slow or large by nature is run on one part in so many
CHECKED = 4  # samples
BOUND, BOUND_BF16 = 1e-5, 1e-2


@dataclass(frozen=True)
class Competitor:
    """A way to project a batch.

    Attributes:
        call: project the gradients of ``size`` parameters.
        error: run it, and return the relative error against float64.
        flops: that it has to do, and of which ``peak`` there is a measurement.
        traffic: bytes that it has to read.
    """

    call: Callable[[], object]
    error: Callable[[], float]
    size: int
    traffic: int
    flops: int = 0
    peak: str = "core_fma_gflops"
    bound: float = BOUND


class Kernels(Entry):
    """Time of one projection of gradients that lie in memory."""

    name = "kernels"
    summary = (
        "On one core: gradients of 64 samples and a million parameters, in memory, projected to "
        "k = 4096. GF/s are those of the dense product, 2 b p k."
    )

    def check(self, options: Options) -> list[Check]:
        sketches.require_cpu(options)
        torch.manual_seed(0)
        self.shape = (40, 50) if options.quick else (1000, 1000)
        self.k = 64 if options.quick else 4096
        self.gradient = torch.randn(4 if options.quick else 64, *self.shape)
        self.competitors: dict[str, Competitor] = {}
        with threads(1):
            self._add_sketches()
            self._add_trak()
            self._add_gemm(options.quick)
            return [
                require(f"{name} against float64", competitor.error(), competitor.bound)
                for name, competitor in self.competitors.items()
            ]

    def measure(self, options: Options) -> list[Row]:
        p = math.prod(self.shape)
        with threads(1):
            times = self._times(min(options.repeats, ROUNDS), TURN_SECONDS[options.quick])
        try:
            peaks = core_peaks(options.quick)
        except Unavailable as reason:
            peaks = {}
            self.notes.append(str(reason))
        partial = [n for n, c in self.competitors.items() if c.size < p]
        if partial:
            self.notes.append(
                f"Measured on a part of the parameters, which the time is proportional to: "
                f"{'; '.join(partial)}. The column `p measured` says on how many."
            )
        self.notes.append(
            "Peaks are of one core, measured in this run. GF/s count the products of dense P and "
            "neither the making of its entries nor that sums of signs can be shared, so that more "
            "than 100 % is possible; `% of read` takes the bytes that must be read once (the "
            "gradients, and P where it is in memory)."
        )
        return [self._row(name, times, peaks) for name in self.competitors]

    # ---- competitors -------------------------------------------------------------------------

    def _add_sketches(self) -> None:
        self._add("hadamard", "cpu")
        self._add("hadamard", "torch")
        for family in sketches.DENSE:
            self._add(family, "cpu")
            self._add_bf16(family)
            self._add(family, "torch", PART)
        if cpu_level() != "amx":
            self.notes.append(
                "The dense kernels have a bf16 kernel of their own only at level amx, and the "
                f"level here is {cpu_level()}."
            )

    def _add(self, family: str, impl: str, part: int = 1) -> None:
        try:
            sketch = sketches.make(family, self.k, self._part_shape(part), impl)
        except Unavailable as reason:
            self.notes.append(f"Left out: {reason}.")
            return
        gradient = self._part(part)

        def call() -> Tensor:
            return sketches.project(sketch, gradient, self.k)

        def without_native() -> Tensor:
            with _no_native():
                return call()

        pure = impl == "torch" and family in sketches.DENSE
        name = f"{family}, {'pure torch' if pure else f'impl={impl}'}"
        self._add_ours(name, family, without_native if pure else call, gradient)

    def _add_bf16(self, family: str) -> None:
        if cpu_level() != "amx":
            return
        stream = bits.stream_id(family, self.k, "entries", 0, sketches.NAME)
        moment = sketches.NORMAL_MEAN_SQUARE if family == "normal" else 1.0
        scale, flat = 1 / math.sqrt(self.k * moment), self.gradient.flatten(1)

        def call() -> Tensor:
            out = torch.zeros(len(flat), self.k)
            torch.ops.pntk.dense_project(
                flat, family == "normal", scale, True, ops.signed(0), ops.signed(stream), out
            )
            return out

        self._add_ours(f"{family}, bf16, one pass", family, call, self.gradient, bf16=True)

    def _add_ours(
        self,
        name: str,
        family: str,
        call: Callable[[], Tensor],
        gradient: Tensor,
        *,
        bf16: bool = False,
    ) -> None:
        def error() -> float:
            expected, columns = sketches.reference_rows(family, self.k, gradient[:CHECKED])
            return sketches.relative_error(call()[:CHECKED, columns], expected)

        size = gradient[0].numel()
        dense = 0 if family == "hadamard" else 2 * gradient.numel() * self.k
        self.competitors[name] = Competitor(
            call,
            error,
            size,
            gradient.nbytes,
            dense,
            "core_amx_bf16_gflops" if bf16 else "core_fma_gflops",
            BOUND_BF16 if bf16 else BOUND,
        )

    def _add_trak(self) -> None:
        try:
            from trak.projectors import (  # type: ignore[import-not-found, unused-ignore]
                BasicProjector,
            )
        except ImportError as reason:
            self.notes.append(f"Left out: TRAK ({reason}); install it with: pip install traker.")
            return
        flat = self.gradient.flatten(1)

        def projector(size: int, k: int) -> BasicProjector:
            return BasicProjector(size, k, 0, "rademacher", torch.device("cpu"))

        def error() -> float:
            """Compare on few parameters, in blocks, with its own signs in float64."""
            small = projector(size := min(flat.shape[1], 1000), k := min(self.k, 250))
            found, expected = small.project(flat[:, :size], 0)[:CHECKED], []
            for state in small.generator_states:
                small.generate_sketch_matrix(state)
                expected.append(flat[:CHECKED, :size].double() @ small.proj_matrix.double())
            return sketches.relative_error(found, torch.cat(expected, dim=1)[:, :k])

        whole = projector(flat.shape[1], self.k)
        self.competitors[TRAK] = Competitor(
            lambda: whole.project(flat, 0),
            error,
            flat.shape[1],
            flat.nbytes,
            2 * flat.numel() * self.k,
        )

    def _add_gemm(self, quick: bool) -> None:
        """P as signs, which both types hold exactly, in the layout that suits both best."""
        flat = self._part(PART).flatten(1)
        matrix = torch.randint(0, 2, (self.k, flat.shape[1]), dtype=torch.int8).mul_(2).sub_(1)
        types = {GEMM: torch.float32, GEMM_BF16: torch.bfloat16}
        for name, dtype in types.items():
            left, right = flat.to(dtype), matrix.to(dtype).T

            def error(left: Tensor = left, right: Tensor = right) -> float:
                expected = flat[:CHECKED].double() @ right[:, :64].double()
                return sketches.relative_error((left @ right)[:CHECKED, :64], expected)

            bf16 = dtype == torch.bfloat16
            self.competitors[name] = Competitor(
                lambda left=left, right=right: left @ right,  # type: ignore[misc]
                error,
                flat.shape[1],
                left.nbytes + right.nbytes,
                2 * left.numel() * self.k,
                _bf16_peak(quick) if bf16 else "core_fma_gflops",
                BOUND_BF16 if bf16 else BOUND,
            )

    def _part_shape(self, part: int) -> tuple[int, ...]:
        return self.shape if part == 1 else (math.prod(self.shape) // part,)

    def _part(self, part: int) -> Tensor:
        shape = self._part_shape(part)
        flat = self.gradient.flatten(1)[:, : math.prod(shape)]
        return flat.contiguous().view(-1, *shape)

    # ---- times -------------------------------------------------------------------------------

    def _times(self, rounds: int, turn_seconds: float) -> Times:
        """Return seconds of a call on all parameters; the checks were the warm-up."""
        p = math.prod(self.shape)
        turns, factors = {}, {}
        for name, competitor in self.competitors.items():
            # TRAK's call is too slow to be tried
            calls = 1 if name == TRAK else calls_in(competitor.call, turn_seconds)
            turns[name] = repeated(competitor.call, calls)
            factors[name] = p / competitor.size / calls
        progress(f"timing {rounds} rounds of {len(turns)}")
        return interleaved(turns, rounds, warmup=0).scaled(factors)

    def _row(self, name: str, times: Times, peaks: dict[str, float]) -> Row:
        competitor, median = self.competitors[name], times.of(name).median
        part = math.prod(self.shape) / competitor.size
        ratios: dict[str, Number] = {}
        if TRAK in self.competitors:
            ratios["TRAK / this"] = times.ratio(TRAK, name)
        ratios[f"this / {GEMM}"] = times.ratio(name, GEMM)
        ratios[f"this / {GEMM_BF16}"] = times.ratio(name, GEMM_BF16)
        rate = competitor.flops * part / median / 1e9
        read = competitor.traffic * part / median / 1e9
        if competitor.flops and competitor.peak in peaks:
            ratios["% of compute peak"] = 100 * rate / peaks[competitor.peak]
        if peaks:
            ratios["% of read"] = 100 * read / peaks["core_read_gbytes"]
        values: dict[str, Number] = {
            "time [ms]": times.of(name).times(1e3),
            "samples/s": len(self.gradient) / median,
            "GF/s": rate if competitor.flops else None,
            "read [GB/s]": read,
            "p measured": competitor.size,
        }
        return Row(name, ratios, values)


def _bf16_peak(quick: bool) -> str:
    """Return the name of the peak that a bf16 product can reach here."""
    try:
        peaks = core_peaks(quick)
    except Unavailable:
        return ""
    return next((k for k in ("core_amx_bf16_gflops", "core_dot_bf16_gflops") if k in peaks), "")


@contextmanager
def _no_native() -> Iterator[None]:
    """Let random bits come from NumPy, as where nothing was compiled."""
    with mock.patch.object(bits, "native_module", lambda: None):
        yield
