"""The exact kernel: against peers that compute it too, and what it costs as it grows."""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.exact_peers import (
    VMAP_BATCH,
    Call,
    JaxPeer,
    Problem,
    TorchNTK,
    jacobian_contraction,
    reference,
)
from benchmarks.memory import MIB, peak, reset_peak
from benchmarks.registry import Check, Entry, Options, Row, Unavailable, progress, require
from benchmarks.sketches import CPU, relative_error, require_cpu
from benchmarks.timing import interleaved
from pntk.models import MLP, LeNet, ResNet18
from pntk.ntk.exact import EmpiricalNTK, empirical_ntk

SAMPLES, QUICK_SAMPLES, CHECKED = 512, 32, 16
OUTPUTS = 10
BOUND = 1e-4  # of a kernel in fp32 against float64, or against another in fp32
TORCHNTK_BOUND = 2e-3  # what rounding makes of TorchNTK's sums over whole kernels in fp32
MAX_REPEATS, ROW_SECONDS = 5, 300.0
SLOW_ROWS = 2  # of autograd_ntk's n c that are timed
COSTS = [
    (model, outputs, n)
    for model in ("MLP", "LeNet")
    for outputs in (1, 10)
    for n in (128, 512, 2048)
]
COSTS += [("ResNet18", 1, 128), ("ResNet18", 1, 512), ("ResNet18", 10, 128)]
LONG_COSTS = [("ResNet18", 10, 512), ("ResNet18", 10, 2048)]  # hours on a few cores
QUICK_COSTS = [("LeNet", 1, 8), ("MLP", 10, 8)]
COST_SECONDS = 6 * 3600  # after which a size is given up

OURS, ONCE, FUNC, JAX = "pntk", "pntk, first call", "torch.func", "neural-tangents"
OLD, VMAPPED, PLAIN = (
    f"TorchNTK {name}" for name in ("old_autograd_ntk", "vmap_ntk_loader", "autograd_ntk")
)


class Kind(NamedTuple):
    """How to make a model of so many outputs, and its layers for ``jax_peer.py``."""

    make: Callable[[int], nn.Module]
    layers: str


def small_cnn(outputs: int) -> nn.Module:
    """Return two convolutions and a dense layer, for 28x28 images."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, outputs)),
    )


KINDS = {
    "MLP": Kind(partial(MLP, 784, [512, 512]), "flatten dense relu dense relu dense"),
    "LeNet": Kind(LeNet, "conv2 relu max conv0 relu max flatten dense relu dense relu dense"),
    "CNN": Kind(small_cnn, "conv1 relu mean conv1 relu mean flatten dense"),
}


def load(name: str, samples: int, outputs: int = OUTPUTS) -> Problem:
    """Return a seeded model with scikit-learn's digits, or noise where there are too few.

    Digits are enlarged to 28x28 pixels; ResNet18 gets noise of 3x32x32.
    """
    torch.manual_seed(0)
    if name == "ResNet18":
        model: nn.Module = ResNet18(outputs)
        return Problem(name, model.eval(), torch.randn(samples, 3, 32, 32), outputs)
    kind = KINDS[name]
    return Problem(name, kind.make(outputs).eval(), _digits(samples), outputs, kind.layers)


def _digits(samples: int) -> Tensor:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return torch.randn(samples, 1, 28, 28)
    images = torch.from_numpy(load_digits().images).float()[:, None] / 16
    if samples > len(images):
        return torch.randn(samples, 1, 28, 28)
    return nn.functional.interpolate(images[:samples], size=28, mode="bilinear")


def ours(problem: Problem) -> Tensor:
    """Return pntk's kernel, with its defaults: self-checks, and all that is learnt at first."""
    kernel: Tensor = empirical_ntk(problem.model, problem.images, kind="trace")
    return kernel


def warm(problem: Problem) -> Call:
    """Return pntk as it is after a first call, which neural-tangents needs to be compiled."""
    ntk = EmpiricalNTK(problem.model, "trace")
    ntk(problem.images[:2])
    return partial(ntk, problem.images)


# ---- against peers -------------------------------------------------------------------------------


class Exact(Entry):
    """Time and memory of peers over those of ``empirical_ntk``."""

    name = "exact"
    summary = (
        "The exact trace kernel of 512 images of 28x28 pixels, ten outputs, fp32 on a CPU: peers "
        "against pntk.EmpiricalNTK. Above 1, pntk is faster, or takes less memory: the peak of "
        "a process of its own above imports, model and images."
    )

    def check(self, options: Options) -> list[Check]:
        """Compare all of them with float64 autograd, on few images."""
        require_cpu(options)
        checks = []
        for name in KINDS:
            problem = load(name, CHECKED)
            expected = reference(problem)
            with ExitStack() as stack:
                calls, torchntk, jax = self._competitors(problem, stack, every=False)
                kernels = {who: call() for who, call in calls.items()}
                if torchntk:
                    kernels[PLAIN] = torchntk.whole()
                    kernels["TorchNTK autograd_components_ntk"] = torchntk.components()
                    kernels["TorchNTK naive_ntk"] = torchntk.naive()
                if jax:
                    kernels[JAX] = jax.kernel
            for who, kernel in kernels.items():
                what = f"{name}: {who} against float64 autograd, {CHECKED} images"
                checks.append(require(what, relative_error(kernel, expected), BOUND))
        return checks

    def measure(self, options: Options) -> Iterator[Row]:
        """Compare whole kernels, then time them alternately, at most five times."""
        for name in KINDS:
            problem = load(name, QUICK_SAMPLES if options.quick else SAMPLES)
            yield self.attempt(name, options, partial(self._row, problem, options))

    def _row(self, problem: Problem, options: Options) -> Row:
        n = len(problem.images)
        with ExitStack() as stack:
            calls, torchntk, jax = self._competitors(problem, stack)
            expected = calls[OURS]()
            theirs = {who: call for who, call in calls.items() if who != OURS}
            if jax:
                self._say(f"{jax.description}.")
                theirs[JAX] = lambda: jax.kernel
            for who, call in theirs.items():
                what = f"{problem.name}: {who} against {OURS}, {n} images"
                bound = TORCHNTK_BOUND if who in (OLD, VMAPPED) else BOUND
                self.checks.append(require(what, relative_error(call(), expected), bound))
            timed: dict[str, Callable[[], object]] = dict(calls)
            factors = dict.fromkeys([*calls, JAX], 1.0)
            if torchntk:
                timed[PLAIN] = lambda: torchntk.some_rows(SLOW_ROWS)
                factors[PLAIN] = n * problem.outputs / SLOW_ROWS
                self._say(_TORCHNTK_NOTE)
            if jax:
                timed[JAX] = jax.run
            repeats = min(options.repeats, MAX_REPEATS)
            times = interleaved(timed, repeats, warmup=0, seconds=ROW_SECONDS).scaled(factors)
            memory = {who: apart(who, problem.name, n)["peak"] / MIB for who in calls}
            if jax:
                memory[JAX] = jax.peak() / MIB
        peers = [who for who in timed if who != OURS]
        ratios = {f"{who}, time": times.ratio(who, OURS) for who in peers}
        least = max(memory[OURS], 1.0)
        ratios |= {f"{who}, memory": memory[who] / least for who in peers if who in memory}
        values = {f"{who} [s]": times.of(who) for who in timed}
        return Row(problem.name, ratios, values | {f"{w} [MiB]": x for w, x in memory.items()})

    def _competitors(
        self, problem: Problem, stack: ExitStack, *, every: bool = True
    ) -> tuple[dict[str, Call], TorchNTK | None, JaxPeer | None]:
        """Return what runs here, and the peers that are installed; note those that are not."""
        calls = local_calls(problem)
        torchntk = jax = None
        try:
            torchntk = TorchNTK(problem)
        except Unavailable as reason:
            self._say(f"TorchNTK was left out: {reason}.")
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        try:
            jax = JaxPeer(problem, Path(folder), every=every)
            stack.callback(jax.close)
        except Unavailable as reason:
            self._say(f"neural-tangents was left out: {reason}.")
        return calls, torchntk, jax

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
            progress(note)


_TORCHNTK_NOTE = (
    "TorchNTK's autograd_ntk (and autograd_components_ntk, the same loop) runs a backward pass of "
    "the whole batch for each image, output and parameter tensor: "
    f"{SLOW_ROWS} images of one output were timed, and multiplied. old_autograd_ntk got batches of "
    f"one image and vmap_ntk_loader of {VMAP_BATCH}, both one output a call."
)


def local_calls(problem: Problem) -> dict[str, Call]:
    """Return the competitors that compute whole kernels in this process."""
    calls: dict[str, Call] = {
        OURS: warm(problem),
        ONCE: partial(ours, problem),
        FUNC: partial(jacobian_contraction, problem),
    }
    try:
        torchntk = TorchNTK(problem)
    except Unavailable:
        return calls
    return {**calls, OLD: torchntk.old, VMAPPED: torchntk.vmapped}


# ---- what it costs -------------------------------------------------------------------------------


class ExactCost(Entry):
    """Time and memory of ``empirical_ntk`` as images and outputs grow."""

    name = "exact-cost"
    summary = (
        "Time and peak resident memory of pntk's exact trace kernel in fp32 on a CPU: one call in "
        "a fresh process, its memory above imports, model and images."
    )

    def check(self, options: Options) -> list[Check]:
        """Compare each model's kernel with float64 autograd, on few images."""
        require_cpu(options)
        checks = []
        for name in dict.fromkeys(name for name, _, _ in _costs(options)):
            problem = load(name, 4)
            error = relative_error(ours(problem), reference(problem))
            checks.append(require(f"{name}: pntk against float64 autograd", error, BOUND))
        return checks

    def measure(self, options: Options) -> Iterator[Row]:
        """Measure one size after the other."""
        for name, outputs, n in _costs(options):
            case = f"{name}, {outputs} output{'s' if outputs > 1 else ''}, n = {n:,}"
            yield self.attempt(case, options, partial(_cost_row, case, name, n, outputs))


def _costs(options: Options) -> list[tuple[str, int, int]]:
    return QUICK_COSTS if options.quick else COSTS + LONG_COSTS * options.full


def _cost_row(case: str, name: str, n: int, outputs: int) -> Row:
    found = apart(OURS, name, n, outputs)
    return Row(case, {}, {"time [s]": found["seconds"], "peak [MiB]": found["peak"] / MIB})


# ---- in a process of its own ---------------------------------------------------------------------


def apart(who: str, name: str, samples: int, outputs: int = OUTPUTS) -> dict[str, float]:
    """Return the seconds and the peak in bytes of one kernel in a fresh process.

    Raises:
        Unavailable: it took too long.
    """
    command = [sys.executable, "-m", "benchmarks.exact", who, name, str(samples), str(outputs)]
    command += [str(torch.get_num_threads())]
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            command, cwd=root, stdout=subprocess.PIPE, text=True, check=True, timeout=COST_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"it took more than {COST_SECONDS} s") from None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure one kernel, after that of two images has loaded what it needs."""
    parser = argparse.ArgumentParser()
    for argument, kind in (("who", str), ("name", str), ("n", int), ("c", int), ("threads", int)):
        parser.add_argument(argument, type=kind)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    problem = load(given.name, given.n, given.c)
    local_calls(problem._replace(images=problem.images[:2]))[given.who]()
    call = local_calls(problem)[given.who]
    gc.collect()
    reset_peak(CPU)
    before, start = peak(CPU), time.perf_counter()
    call()
    print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak(CPU) - before}))


if __name__ == "__main__":
    main()
