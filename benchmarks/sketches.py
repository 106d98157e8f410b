"""Single sketches of one parameter, and float64 references for them at sizes that are timed."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from benchmarks.registry import Options, Unavailable
from pntk import ProjectionSpec
from pntk.projection import bits
from pntk.projection.dense import DenseSketch
from pntk.projection.dispatch import GPU, Projector, why_not
from pntk.projection.quantiles import NORMAL_MEAN_SQUARE, NORMAL_TABLE
from pntk.projection.sketch import Sketch

CPU = torch.device("cpu")
NAME = "weight"
DENSE = ("rademacher", "normal")


def require_cpu(options: Options) -> None:
    """Raise where the device is not the CPU.

    Raises:
        Unavailable: it is not.
    """
    if options.device.type != "cpu":
        raise Unavailable("this measures the CPU's kernels; use --device cpu")


def make(
    family: str,
    k: int,
    shape: tuple[int, ...],
    impl: str,
    dtype: torch.dtype = torch.float32,
    *,
    device: torch.device = CPU,
    precision: str = "fp32",
) -> Sketch:
    """Return the sketch of one parameter.

    Raises:
        Unavailable: this implementation does not have it here.
    """
    reason = why_not(impl, family, dtype=dtype, device=device, proj_dim=k)
    if reason:
        raise Unavailable(f"{family}, impl={impl}: {reason}")
    if precision != "fp32" and impl not in GPU:
        raise Unavailable(f"{family}, impl={impl} has no products in {precision}")
    made = Projector(
        ProjectionSpec(family, k),
        {NAME: shape},
        dtype=dtype,
        device=device,
        impl=impl,
        precision=precision,
    )
    sketch = made.sketch(NAME)
    if impl == "cpu" and type(sketch) is DenseSketch:
        raise Unavailable(f"{family} has no compiled kernel in this version")
    return sketch


def project(sketch: Sketch, gradient: Tensor, k: int) -> Tensor:
    """Return rows [b, k] of gradients [b, *shape]."""
    out = torch.zeros(len(gradient), k, dtype=sketch.dtype, device=gradient.device)
    sketch.add_gradient(gradient, out)
    return out


def reference_rows(family: str, k: int, gradient: Tensor) -> tuple[Tensor, list[int]]:
    """Return float64 rows of gradients [b, *shape], and the columns of them that are there.

    ``hadamard``: all columns, by the float64 torch sketch. Dense: some, by explicit entries.
    """
    exact = gradient.double().cpu()
    if family == "hadamard":
        sketch = make(family, k, tuple(gradient.shape[1:]), "torch", torch.float64)
        return project(sketch, exact, k), list(range(k))
    firsts = sorted({0, k // 8 * 4, -(-k // 4) * 4 - 4})
    columns = [j for first in firsts for j in range(first, min(k, first + 4))]
    flat = exact.flatten(1)
    rows = torch.cat([flat @ dense_entries(family, k, flat.shape[1], j) for j in firsts], dim=1)
    return rows[:, : len(columns)], columns


def dense_entries(family: str, k: int, size: int, first: int) -> Tensor:
    """Return columns first, ..., first + 3 of P^T, float64 [size, 4]; first a multiple of four.

    Four columns of one row of words are one block of the generator.
    """
    per_word, width = (32, 1) if family == "rademacher" else (4, 8)
    k4 = -(-k // 4) * 4
    stream = bits.stream_id(family, k, "entries", 0, NAME)
    blocks = (np.arange(-(-size // per_word), dtype=np.uint64) * np.uint64(k4 // 4)) + np.uint64(
        first // 4
    )
    words = np.stack(bits._rounds(0, stream, blocks), axis=1)[:, None, :]  # [rows, 1, 4]
    shifts = np.arange(0, 32, width, dtype=np.uint64)[:, None]
    codes = ((words >> shifts) & np.uint64(2**width - 1)).reshape(-1, 4)[:size].astype(np.int64)
    if family == "rademacher":
        return torch.from_numpy(1.0 - 2.0 * codes) / math.sqrt(k)
    table = NORMAL_TABLE.astype(np.float64) / math.sqrt(NORMAL_MEAN_SQUARE * k)
    return torch.from_numpy(table[codes])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over that of what is expected, of the worst row."""
    exact = expected.double()
    difference = (found.to(exact) - exact).norm(dim=1)
    return float((difference / exact.norm(dim=1)).max())
