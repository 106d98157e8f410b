"""One comparison of the kernels with the reference, before their first use in a process.

Tests cannot see every processor, compiler and torch that the kernels meet. This takes some 50
milliseconds (and Triton's compilations), and is what stands between a miscompiled kernel and rows
that look right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pntk.errors import KernelError, PntkError, is_out_of_memory
from pntk.projection import bits, gpu_ops, ops
from pntk.projection.dense import DenseSketch
from pntk.projection.dense_gpu import GpuDenseSketch
from pntk.projection.dense_native import NativeDenseSketch
from pntk.projection.hadamard import HadamardSketch
from pntk.projection.hadamard_gpu import GpuHadamardSketch
from pntk.projection.hadamard_native import NativeHadamardSketch
from pntk.projection.norms import norm_sums
from pntk.projection.sketch import Columns, Sketch, Windows
from pntk.projection.spec import ProjectionSpec

CPU = torch.device("cpu")
BOUND = 1e-5  # of float32 rows against float64
K, SEED = 2048, 2**63 + 5
KERNELS = {"cpu": "compiled CPU", "cuda": "compiled CUDA", "triton": "Triton"}
SAMPLES = 4  # the kernels take three together, and one alone

Make = Callable[[str, tuple[int, ...]], Sketch]  # name, shape
Add = Callable[[Make, tuple[int, ...], Tensor], None]  # a sketch of this shape, to these rows
Case = tuple[tuple[int, ...], Add]


@functools.cache
def check_kernels(impl: str, device: torch.device) -> None:
    """Compare bits and rows on small cases of every kernel of rows, once a process and device.

    Args:
        impl: ``cpu``, ``cuda`` or ``triton``.

    Raises:
        KernelError: naming what differs, or what does not run, and the remedy.
    """
    with _running(impl, device):
        _compare_kernels(impl, device)


@functools.cache
def check_gram(device: torch.device) -> None:
    """Compare a small matrix of products of Triton's ``gram``, once a process and device.

    Raises:
        KernelError: it is wrong, or does not run.
    """
    generator = torch.Generator(CPU).manual_seed(0)
    x, y, scale = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((70, 90), (40, 90), (40,))
    )
    out = torch.empty(70, 40, device=device)
    with _running("triton", device):
        given = (each.float().to(device) for each in (x, y))
        gpu_ops.launch("gram", "triton", *given, None, scale.float().to(device), out)
        wanted = x @ y.T * scale
        error = float((out.cpu() - wanted).norm() / wanted.norm())
        _require("triton", device, "products of rows", error)


@contextmanager
def _running(impl: str, device: torch.device) -> Iterator[None]:
    """Say which kernels do not run where something but pntk fails: a compiler, a launch."""
    try:
        yield
    except PntkError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise KernelError(
            f"the {KERNELS[impl]} kernels do not run on {device} ({type(error).__name__}: "
            f"{error}); {_remedy(impl)}, and report it"
        ) from error


def _compare_kernels(impl: str, device: torch.device) -> None:
    kinds = KINDS[impl]
    require = functools.partial(_require, impl, device)
    words = bits.philox_words_numpy(SEED, 7, 0, 300)
    require("random bits", float((kinds.words(300, device) != words).mean()))
    generator = torch.Generator(CPU).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device=CPU)

    matrix, kernel = (70, 90), (9, 70, 3, 3)
    windows = Windows((3, 3), (2, 2), (1, 1), (3, 3), (1, 1))
    ids = torch.randint(0, matrix[0], (SAMPLES, 5), generator=generator, device=CPU)
    looked_up, small, image = random(SAMPLES, 5, 90), random(SAMPLES, 7, 30), (6, 6)
    cases: dict[str, Case] = {
        "gradient": (matrix, _gradient(random(SAMPLES, *matrix))),
        "look-up": (matrix, _lookup(ids, looked_up)),
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
    cases |= {family: ((7, 30), _gradient(small)) for family in kinds.dense_families}
    for name, case in cases.items():
        if name in kinds.dense_families:
            error = _error(name, kinds.dense, DenseSketch, *case, device)
        else:
            error = _error("hadamard", kinds.hadamard, HadamardSketch, *case, device)
        require(name, error)
    delta, x = random(SAMPLES, 20, 30), random(SAMPLES, 20, 30)
    mean = x.mean((0, 2))
    sums = norm_sums(impl, *(each.float().to(device) for each in (delta, x, mean)))
    for found, wanted in zip(sums, (delta * (x - mean[:, None]), delta), strict=True):
        require("norm sums", float((found.cpu() - wanted.sum(2)).norm() / wanted.sum(2).norm()))


@dataclass(frozen=True)
class Kinds:
    """What one implementation makes: words of ``SEED``'s stream 7, and sketches."""

    words: Callable[[int, torch.device], np.ndarray]
    hadamard: Callable[..., Sketch]
    dense: Callable[..., Sketch]
    dense_families: tuple[str, ...] = ("rademacher", "normal")


def _native_words(count: int, device: torch.device) -> np.ndarray:
    made = np.empty(count, np.uint32)
    bits.native_module().philox_words(made, SEED, 7, 0, 0)
    return made


def _gpu_words(impl: str, count: int, device: torch.device) -> np.ndarray:
    made = torch.empty(count, dtype=torch.int32, device=device)
    torch.ops.pntk.gpu_bits(impl, ops.signed(SEED), 7, made)
    return made.cpu().numpy().view(np.uint32)


def _gpu_kinds(impl: str, *families: str) -> Kinds:
    given: dict[str, Any] = {"impl": impl, "precision": "fp32"}
    return Kinds(
        functools.partial(_gpu_words, impl),
        functools.partial(GpuHadamardSketch, **given),
        functools.partial(GpuDenseSketch, **given),
        families,
    )


KINDS = {
    "cpu": Kinds(_native_words, NativeHadamardSketch, NativeDenseSketch),
    "cuda": _gpu_kinds("cuda", "rademacher"),
    "triton": _gpu_kinds("triton", "rademacher", "normal"),
}


def _gradient(gradient: Tensor) -> Add:
    """Add a materialised gradient."""

    def add(make: Make, shape: tuple[int, ...], out: Tensor) -> None:
        make("weight", shape).add_gradient(gradient.to(out), out)

    return add


def _lookup(ids: Tensor, delta: Tensor) -> Add:
    """Add look-ups."""

    def add(make: Make, shape: tuple[int, ...], out: Tensor) -> None:
        make("weight", shape).add_lookup(ids.to(out.device), delta.to(out), out)

    return add


def _products(rows: Tensor, columns: Tensor, windows: Windows | None = None) -> Add:
    """Add products of factors, alone and beside a bias."""

    def add(make: Make, shape: tuple[int, ...], out: Tensor) -> None:
        sketch, bias = make("weight", shape), make("bias", shape[:1])
        left = rows.to(out)
        right = sketch.prepare_columns(Columns(columns.to(out), windows))
        groups = 1 if windows is None else windows.groups
        sketch.add_products(sketch.prepare_rows(left, groups), right, out)
        sketch.add_affine(bias, left, right, out, output=1)

    return add


def _error(
    family: str,
    made: Callable[..., Sketch],
    reference: Callable[..., Sketch],
    shape: tuple[int, ...],
    add: Add,
    device: torch.device,
) -> float:
    """Return the relative difference of the rows of two kinds of sketch."""
    rows = []
    for kind, dtype, where in ((made, torch.float32, device), (reference, torch.float64, CPU)):
        spec = ProjectionSpec(family, K, SEED)
        make = functools.partial(kind, spec, dtype=dtype, device=where)
        rows.append(torch.zeros(SAMPLES, K, dtype=dtype, device=where))
        add(make, shape, rows[-1])
    ours, expected = rows
    return float((ours.cpu() - expected).norm() / expected.norm())


def _require(impl: str, device: torch.device, what: str, error: float) -> None:
    if error < BOUND:
        return
    where = f"at level {bits.native_module().level()!r}" if impl == "cpu" else f"on {device}"
    raise KernelError(
        f"the {KERNELS[impl]} kernel for {what} is wrong on this machine: relative error "
        f"{error:.2g} {where}, below {BOUND:.0e} expected; {_remedy(impl)}, and report it"
    )


def _remedy(impl: str) -> str:
    others = {"cpu": ", or set PNTK_CPU_LEVEL=portable", "cuda": " or impl='triton'"}
    return "use impl='torch'" + others.get(impl, "")
