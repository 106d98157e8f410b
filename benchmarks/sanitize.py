"""Run every GPU kernel once on awkward small sizes, for a sanitizer: python -m benchmarks.sanitize.

Inputs are made on the CPU, so that nearly all that a sanitizer watches is ours. Results are
compared too, loosely: the tests are the place for that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

import torch

from benchmarks import sketches
from benchmarks.gpu_kernels import BOUNDS
from benchmarks.gpu_layers import Layer
from benchmarks.registry import Unavailable
from pntk.errors import KernelError
from pntk.projection import gpu_ops
from pntk.projection.dispatch import GPU, why_not
from pntk.projection.norms import norm_sums

PRECISIONS = ("fp32", "bf16")
# awkward: not a multiple of any tile, channels of one position apart and together, few and many
LAYERS = [
    Layer("linear", 3, 70, 45, 0, 9),
    Layer("one position", 5, 33, 65, 0, 1),
    Layer("convolution", 2, 20, 40, 3, 5),
    Layer("convolution of few channels", 2, 20, 3, 3, 5),
]
WIDTHS = (64, 512)


def runs(device: torch.device, impl: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yield what there is to run: name, and a function that returns the error over its bound."""
    for precision in ("fp32", "tf32", "bf16"):
        for family in sketches.DENSE:
            yield f"{family}, {precision}", lambda f=family, p=precision: _gradient(
                f, 136, (37, 21), 5, impl, p, device
            )  # fmt: skip
    for k in WIDTHS:
        for shape in ((70, 45), (130,), (20, 40, 3, 3)):
            yield f"hadamard, {shape}, k = {k}", lambda k=k, s=shape: _gradient(
                "hadamard", k, s, 3, impl, "fp32", device
            )  # fmt: skip
        for layer in LAYERS:
            for precision in PRECISIONS:
                yield (
                    f"{layer.name}, {precision}, k = {k}",
                    lambda la=layer, k=k, p=precision: _layer(la, k, impl, p, device),
                )
        yield f"look-up, k = {k}", lambda k=k: _lookup(k, impl, device)
    if impl in GPU:
        yield "sums over positions", lambda: _sums(impl, device)
    if impl == "triton":
        yield "Gram matrix", lambda: _gram(device)


def _gradient(
    family: str,
    k: int,
    shape: tuple[int, ...],
    batch: int,
    impl: str,
    precision: str,
    device: torch.device,
) -> float:
    sketch = sketches.make(family, k, shape, impl, device=device, precision=precision)
    gradient = torch.randn(batch, *shape)
    expected, columns = sketches.reference_rows(family, k, gradient)
    rows = sketches.project(sketch, gradient.to(device), k).cpu()
    return sketches.relative_error(rows[:, columns], expected) / BOUNDS[precision]


def _layer(layer: Layer, k: int, impl: str, precision: str, device: torch.device) -> float:
    sketch = sketches.make("hadamard", k, layer.shape, impl, device=device, precision=precision)
    exact = sketches.make("hadamard", k, layer.shape, "torch", torch.float64)
    delta, x = layer.factors(torch.float32, sketches.CPU)
    expected = layer.project(exact, delta.double(), x.double(), k)
    rows = layer.project(sketch, delta.to(device), x.to(device), k).cpu()
    return sketches.relative_error(rows, expected) / BOUNDS[precision]


def _lookup(k: int, impl: str, device: torch.device) -> float:
    shape = (50, 30)
    sketch = sketches.make("hadamard", k, shape, impl, device=device)
    exact = sketches.make("hadamard", k, shape, "torch", torch.float64)
    ids, delta = torch.randint(50, (3, 11)), torch.randn(3, 11, 30)
    rows, expected = torch.zeros(3, k, device=device), torch.zeros(3, k, dtype=torch.float64)
    exact.add_lookup(ids, delta.double(), expected)
    sketch.add_lookup(ids.to(device), delta.to(device), rows)
    return sketches.relative_error(rows.cpu(), expected) / BOUNDS["fp32"]


def _sums(impl: str, device: torch.device) -> float:
    delta, x, mean = torch.randn(3, 7, 13), torch.randn(3, 13, 7).mT, torch.randn(7)
    found = norm_sums(impl, delta.to(device), x.to(device), mean.to(device))
    expected = (delta * (x - mean[:, None])).sum(2), delta.sum(2)
    pairs = zip(found, expected, strict=True)
    return max(sketches.relative_error(ours.cpu(), right) for ours, right in pairs) / 1e-5


def _gram(device: torch.device) -> float:
    x, y = torch.randn(37, 70), torch.randn(21, 70)
    made = torch.empty(len(x), len(y), device=device)
    gpu_ops.launch("gram", "triton", x.to(device), y.to(device), None, None, made)
    found = made.cpu()
    return sketches.relative_error(found, x.double() @ y.double().T) / 1e-4


def main() -> int:
    """Run all; 1 if a kernel fails or is wrong, 77 if there is none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--impl", nargs="*", default=GPU)
    given = parser.parse_args()
    device, failed, ran, left_out = torch.device(given.device), 0, 0, dict[str, None]()
    torch.manual_seed(0)
    for impl in given.impl:
        try:
            reason = why_not(impl, device=device)  # which also runs the self-test
        except KernelError as error:
            print(f"WRONG: {error}")
            ran, failed = ran + 1, failed + 1
            continue
        if reason:
            left_out[f"impl={impl}: {reason}"] = None
            continue
        for name, run in runs(device, impl):
            try:
                share = run()
            except Unavailable as reason:
                left_out[str(reason)] = None
                continue
            except Exception as error:
                share = float("nan")
                print(f"{impl}, {name}: {type(error).__name__}: {error}")
            ran += 1
            if not share < 1:
                failed += 1
                print(f"WRONG: {impl}, {name}: error is {share:.3g} of its bound", flush=True)
    print("\n".join(f"left out: {reason}" for reason in left_out))
    print(f"{ran} runs of kernels, {failed} failed")
    if not ran:
        return 77
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
