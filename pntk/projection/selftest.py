"""One comparison of the compiled kernels with the reference, before their first use in a process.

Tests cannot see every processor, compiler and torch that the kernels meet. This takes some
milliseconds, and is what stands between a miscompiled kernel and rows that look right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pntk.errors import KernelError
from pntk.projection import bits
from pntk.projection.hadamard import HadamardSketch
from pntk.projection.hadamard_native import NativeHadamardSketch
from pntk.projection.sketch import Columns, Sketch, Windows
from pntk.projection.spec import ProjectionSpec

BOUND = 1e-5  # of float32 rows against float64
SPEC = ProjectionSpec("hadamard", 2048, seed=2**63 + 5)
SAMPLES = 2


@functools.cache
def check_kernels() -> None:
    """Compare bits and rows on small cases of every kernel, once a process.

    Raises:
        KernelError: naming what differs and the remedy.
    """
    native = bits.native_module()
    words = bits.philox_words_numpy(SPEC.seed, 7, 3, 300)
    found = np.empty(300, np.uint32)
    native.philox_words(found, SPEC.seed, 7, 0, 3)
    _require("random bits", float((found != words).mean()))
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    matrix, kernel = (70, 90), (9, 70, 3, 3)
    windows = Windows((3, 3), (2, 2), (1, 1), (3, 3), (1, 1))
    ids = torch.randint(0, matrix[0], (SAMPLES, 5), generator=generator)
    looked_up, gradient, image = random(SAMPLES, 5, 90), random(SAMPLES, *matrix), (6, 6)
    cases: dict[str, tuple[tuple[int, ...], Callable[[Sketch, Tensor], None]]] = {
        "gradient": (matrix, lambda s, out: s.add_gradient(gradient.to(s.dtype), out)),
        "look-up": (matrix, lambda s, out: s.add_lookup(ids, looked_up.to(s.dtype), out)),
        "outer product": (matrix, _products(random(SAMPLES, 70, 1), random(SAMPLES, 90, 1))),
        "product": (matrix, _products(random(SAMPLES, 70, 130), random(SAMPLES, 90, 130))),
        "convolution": (
            kernel,
            _products(random(SAMPLES, 9, 9), random(SAMPLES, 70, *image), windows),
        ),
    }
    for name, (shape, add) in cases.items():
        ours = _rows(NativeHadamardSketch, shape, torch.float32, add)
        expected = _rows(HadamardSketch, shape, torch.float64, add)
        _require(name, float((ours - expected).norm() / expected.norm()))


def _products(
    rows: Tensor, columns: Tensor, windows: Windows | None = None
) -> Callable[[Sketch, Tensor], None]:
    def add(sketch: Sketch, out: Tensor) -> None:
        right = sketch.prepare_columns(Columns(columns.to(sketch.dtype), windows))
        sketch.add_products(sketch.prepare_rows(rows.to(sketch.dtype)), right, out)

    return add


def _rows(
    kind: Callable[..., Sketch],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    add: Callable[[Sketch, Tensor], None],
) -> Tensor:
    sketch = kind(SPEC, "weight", shape, dtype=dtype, device=torch.device("cpu"))
    assert SPEC.proj_dim is not None
    out = torch.zeros(SAMPLES, SPEC.proj_dim, dtype=dtype)
    add(sketch, out)
    return out


def _require(what: str, error: float) -> None:
    if not error < BOUND:
        level = bits.native_module().level()
        raise KernelError(
            f"the compiled kernel for {what} is wrong on this machine: relative error {error:.2g} "
            f"at level {level!r}, below {BOUND:.0e} expected; use impl='torch', or set "
            "PNTK_CPU_LEVEL=portable, and report it"
        )
