"""Eigenvalues of tangent kernels.

Shapes: n samples; k numbers a row; r eigenvalues, descending.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.extras import require
from pntk.host import available_memory
from pntk.ntk.opening import as_source
from pntk.ntk.sources import EPS, Source
from pntk.ntk.spectral_numbers import Spectrum

METHODS = ("auto", "dense", "lanczos")
# order up to which `auto` keeps a whole matrix: Lanczos goes through the kernel so often that it
# takes as long for 20 eigenvalues of 4000 to 6000 samples, and longer for more
LARGEST_DENSE = 8192


def spectrum_of(
    kernel: Any,
    num: int | None = None,
    method: str = "auto",
    *,
    seed: int = 0,
    max_iterations: int | None = None,
) -> Spectrum:
    """Return the eigenvalues of a kernel, with what belongs to them.

    ``dense`` keeps a matrix in float64: K [n, n], or Phi^T Phi [k, k] of rows with k < n, which has
    the same eigenvalues but for zeros. It is summed up in blocks. ``lanczos`` keeps vectors, and
    goes through kernel or rows once for each product, so that both may be larger than memory; of a
    group of equal eigenvalues it may miss some. ``auto`` is dense where n, or k < n of rows, is up
    to 8192, and Lanczos above.

    Args:
        kernel: tensor or array [n, n]; a kernel on disk or its path; a FeatureStore or its path;
            or :func:`from_rows` of rows [n, k].
        num: how many of the largest eigenvalues; None for all.
        method: ``auto``, ``dense``, or ``lanczos`` (needs SciPy).
        seed: of the vector that Lanczos starts from, so that results repeat.
        max_iterations: restarts of Lanczos; None for 10 times the order.

    Raises:
        ConfigError: not a finite symmetric kernel; unknown method; ``num`` out of range; too large
            for the method; Lanczos did not converge.
        StoreError: a file cannot be read.
        MissingExtraError: Lanczos without SciPy.

    >>> found = spectrum_of(torch.diag(torch.tensor([4.0, 1.0, 3.0])))
    >>> found.values
    tensor([4., 3., 1.], dtype=torch.float64)
    >>> found.condition_number, found.trace, round(found.participation_ratio, 4)
    (4.0, 8.0, 2.4615)
    """
    source = as_source(kernel)
    chosen = _choose(source, num, method)
    trace, squares = source.traces()
    if chosen == "dense":
        _check_room(source.order)
        values = torch.linalg.eigvalsh(source.gram()).flip(0)
        squares = float(values.square().sum()) if squares is None else squares
    else:
        assert num is not None
        values = _lanczos(source, num, seed, max_iterations)
    kept = values if num is None else values[:num].clone()
    rounding = source.eps * math.sqrt(squares) if squares is not None and source.eps > EPS else 0.0
    return Spectrum(
        values=kept,
        size=source.size,
        trace=trace,
        squares=squares,
        floor=max(source.order * EPS * float(values[0]), rounding),
        complete=len(kept) == source.order,
    )


def eigenvalues(
    kernel: Any,
    num: int | None = None,
    method: str = "auto",
    *,
    seed: int = 0,
    max_iterations: int | None = None,
) -> Tensor:
    """Return the eigenvalues of a kernel, float64 [r], descending; see :func:`spectrum_of`.

    >>> from pntk.ntk.sources import from_rows
    >>> eigenvalues(from_rows(torch.tensor([[2.0], [1.0], [2.0]])))  # of rank one: |phi|^2
    tensor([9.], dtype=torch.float64)
    """
    return spectrum_of(kernel, num, method, seed=seed, max_iterations=max_iterations).values


# ---- private -----------------------------------------------------------------------------------


def _choose(source: Source, num: int | None, method: str) -> str:
    """Return the method that serves, or say why none does."""
    order = source.order
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if num is not None and (type(num) is not int or not 1 <= num <= order):
        raise ConfigError(
            f"num is {num!r}; expected 1 to {order}, as many eigenvalues as can differ from 0, or "
            "None for all"
        )
    if method == "lanczos" and (num is None or num >= order):
        raise ConfigError(
            f"lanczos finds fewer than all {order:,} eigenvalues, and num is {num}; use "
            f"num={min(100, max(1, order // 10))}, or method='dense'"
        )
    if method != "auto":
        return method
    if order <= LARGEST_DENSE:
        return "dense"
    if num is None or num == order:
        raise ConfigError(
            f"all {order:,} eigenvalues of a kernel take a matrix of {8 * order**2:,} bytes, and "
            f"'auto' keeps up to {LARGEST_DENSE:,} x {LARGEST_DENSE:,}; use num=100 for the "
            "largest, or method='dense'"
        )
    return "lanczos"


def _check_room(order: int) -> None:
    """Refuse a matrix that memory cannot hold, beside the copy that LAPACK works on."""
    needed, free = 2 * 8 * order**2, available_memory()
    if free is not None and needed > free:
        raise ConfigError(
            f"method='dense' takes {needed:,} bytes for {order:,} eigenvalues and {free:,} are "
            "available in memory; use method='lanczos' with num=100, or fewer samples"
        )


def _lanczos(source: Source, num: int, seed: int, max_iterations: int | None) -> Tensor:
    """The largest eigenvalues [num] by products with vectors."""
    linalg = require("scipy.sparse.linalg", "method='lanczos'")
    generator = np.random.default_rng(seed)
    start = generator.standard_normal(source.length)
    seeded = "rng" in inspect.signature(linalg.eigsh).parameters  # new in SciPy 1.17
    operator = linalg.LinearOperator(
        (source.length, source.length),
        matvec=lambda v: source.apply(torch.from_numpy(np.ravel(v).astype(np.float64))).numpy(),
        dtype=np.float64,
    )
    try:
        found = linalg.eigsh(
            operator,
            k=num,
            which="LA",
            v0=start,
            maxiter=max_iterations,
            return_eigenvectors=False,
            **({"rng": generator} if seeded else {}),
        )
    except linalg.ArpackNoConvergence as error:
        raise ConfigError(
            f"lanczos found {len(error.eigenvalues)} of {num} eigenvalues in max_iterations="
            f"{max_iterations or 10 * source.length}; allow more, or use method='dense'"
        ) from error
    return torch.from_numpy(np.sort(found)[::-1].copy())
