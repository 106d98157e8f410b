"""One comparison of the compiled kernels with the reference, before their first use in a process.

Tests cannot see every processor, compiler and torch that the kernels meet. This takes some 50
milliseconds, and is what stands between a miscompiled kernel and rows that look right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pntk.errors import KernelError
from pntk.projection import bits
from pntk.projection.dense import DenseSketch
from pntk.projection.dense_native import NativeDenseSketch
from pntk.projection.hadamard import HadamardSketch
from pntk.projection.hadamard_native import NativeHadamardSketch
from pntk.projection.sketch import Columns, Sketch, Windows
from pntk.projection.spec import ProjectionSpec

CPU = torch.device("cpu")
BOUND = 1e-5  # of float32 rows against float64
K, SEED = 2048, 2**63 + 5
SAMPLES = 4  # the kernels take three together, and one alone

Case = tuple[tuple[int, ...], Callable[[Sketch, Tensor], None]]


@functools.cache
def check_kernels() -> None:
    """Compare bits and rows on small cases of every kernel, once a process.

    Raises:
        KernelError: naming what differs and the remedy.
    """
    native = bits.native_module()
    words = bits.philox_words_numpy(SEED, 7, 3, 300)
    made = np.empty(300, np.uint32)
    native.philox_words(made, SEED, 7, 0, 3)
    _require("random bits", float((made != words).mean()))
    generator = torch.Generator(CPU).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device=CPU)

    matrix, kernel = (70, 90), (9, 70, 3, 3)
    windows = Windows((3, 3), (2, 2), (1, 1), (3, 3), (1, 1))
    ids = torch.randint(0, matrix[0], (SAMPLES, 5), generator=generator, device=CPU)
    looked_up, small, image = random(SAMPLES, 5, 90), random(SAMPLES, 7, 30), (6, 6)
    cases: dict[str, Case] = {
        "gradient": (matrix, _gradient(random(SAMPLES, *matrix))),
        "look-up": (matrix, lambda s, out: s.add_lookup(ids, looked_up.to(s.dtype), out)),
        "outer product": (matrix, _products(random(SAMPLES, 70, 1), random(SAMPLES, 90, 1))),
        "product": (matrix, _products(random(SAMPLES, 70, 130), random(SAMPLES, 90, 130))),
        "convolution": (
            kernel,
            _products(random(SAMPLES, 9, 9), random(SAMPLES, 70, *image), windows),
        ),
        "convolution of few channels": (
            (9, 3, 3, 3),
            _products(random(SAMPLES, 9, 9), random(SAMPLES, 3, *image), windows),
        ),
        "convolution in groups": (
            (10, 3, 3, 3),
            _products(
                random(SAMPLES, 10, 9), random(SAMPLES, 6, *image), replace(windows, groups=2)
            ),
        ),
    }
    for name, (shape, add) in cases.items():
        _compare(name, "hadamard", NativeHadamardSketch, HadamardSketch, shape, add)
    delta, x = random(SAMPLES, 20, 30), random(SAMPLES, 20, 30)
    mean = x.mean((0, 2))
    sums = torch.ops.pntk.norm_sums(delta.float(), x.float(), mean.float())
    for found, wanted in zip(sums, (delta * (x - mean[:, None]), delta), strict=True):
        _require("norm sums", float((found - wanted.sum(2)).norm() / wanted.sum(2).norm()))
    for family in ("rademacher", "normal"):
        _compare(family, family, NativeDenseSketch, DenseSketch, (7, 30), _gradient(small))


def _gradient(gradient: Tensor) -> Callable[[Sketch, Tensor], None]:
    """Add a materialised gradient."""
    return lambda sketch, out: sketch.add_gradient(gradient.to(sketch.dtype), out)


def _products(
    rows: Tensor, columns: Tensor, windows: Windows | None = None
) -> Callable[[Sketch, Tensor], None]:
    """Add products of factors, alone and beside a bias."""

    def add(sketch: Sketch, out: Tensor) -> None:
        left, right = rows.to(sketch.dtype), Columns(columns.to(sketch.dtype), windows)
        right = sketch.prepare_columns(right)
        groups = 1 if windows is None else windows.groups
        sketch.add_products(sketch.prepare_rows(left, groups), right, out)
        spec, of = ProjectionSpec("hadamard", K, SEED), rows.shape[1:2]
        kind: Callable[..., Sketch] = type(sketch)
        bias = kind(spec, "bias", of, dtype=sketch.dtype, device=sketch.device)
        sketch.add_affine(bias, left, right, out, output=1)

    return add


def _compare(
    what: str,
    family: str,
    native: Callable[..., Sketch],
    reference: Callable[..., Sketch],
    shape: tuple[int, ...],
    add: Callable[[Sketch, Tensor], None],
) -> None:
    rows = []
    for kind, dtype in ((native, torch.float32), (reference, torch.float64)):
        spec = ProjectionSpec(family, K, SEED)
        sketch = kind(spec, "weight", shape, dtype=dtype, device=CPU)
        rows.append(torch.zeros(SAMPLES, K, dtype=dtype, device=CPU))
        add(sketch, rows[-1])
    ours, expected = rows
    _require(what, float((ours - expected).norm() / expected.norm()))


def _require(what: str, error: float) -> None:
    if not error < BOUND:
        level = bits.native_module().level()
        raise KernelError(
            f"the compiled kernel for {what} is wrong on this machine: relative error {error:.2g} "
            f"at level {level!r}, below {BOUND:.0e} expected; use impl='torch', or set "
            "PNTK_CPU_LEVEL=portable, and report it"
        )
