"""Attribute outputs of targets to training samples: TRAK, kernels, TracIn, influence functions.

Every method is score[i, j] = q_i sum_c w_c <a_ci, g_cj>, with a the rows of training samples, g
those of targets, possibly multiplied by an inverse, and c the checkpoints. Scores are made tile by
tile; of no method is a matrix [n, m] needed for the largest scores of each target.

Shapes: n training samples; m targets; k width of a row; b, d rows of a tile; C checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from xxhash import xxh3_64_hexdigest

from pntk.attribution.checkpoints import (
    common_dtype,
    pair_up,
    reweighting_of,
    shares_of,
    side,
)
from pntk.attribution.ridge import Ridge, check_determined, check_ridge
from pntk.attribution.tiles import SOLVED, Extremes, Plan
from pntk.errors import ConfigError, OutOfMemoryError
from pntk.host import available_memory
from pntk.memory import required_bytes
from pntk.ntk.kernel_file import KernelHeader, KernelWriter, check_new
from pntk.retrieval import TopK

METHODS = ("trak", "dot", "cosine", "tracin", "influence")
_FOR = {"ridge": SOLVED, "weights": ("tracin",), "reweighting": ("trak",)}


@torch.no_grad()
def attribute(
    train: Any,
    test: Any,
    method: str = "trak",
    *,
    ridge: Ridge = None,
    top: int | None = None,
    both: bool = False,
    out: str | os.PathLike[str] | None = None,
    memory_budget: int | str = "1GB",
    weights: float | Sequence[float] | None = None,
    reweighting: Any = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Tensor | Path | TopK | Extremes:
    """Return the score of each training sample for each target.

    A positive score says that the sample, by being in the training set, raises the target's output
    (for methods on gradients of the loss: lowers its loss). With phi a row, Phi those of the
    training samples, and means and sums over the C checkpoints:

    - ``trak``: mean_c [phi_j^T (Phi^T Phi + lambda I)^-1 phi_i] * mean_c [Q_i], Q = 1 - p_y
    - ``dot``, ``cosine``: mean_c of the kernel, of the normalised kernel
    - ``tracin``: sum_c weights_c <phi_i, phi_j>, of output ``loss``
    - ``influence``: mean_c [phi_j^T (Phi^T Phi / n + lambda I)^-1 phi_i], of output ``loss``: n
      times what the target's loss would gain, to first order, without sample i

    Args:
        train: rows [n, k] of training samples (tensor, array or FeatureStore), or a list of them,
            one a checkpoint. Each checkpoint may have a projection of its own.
        test: rows [m, k] of targets likewise, by the same maps.
        method: see above.
        ridge: lambda, of ``trak`` and ``influence``: a number; "auto" for
            :func:`pntk.attribution.choose_ridge`; None for 0.
        top: return this many samples a target alone, 1 to n, without a matrix.
        both: with ``top``, the lowest scores too.
        out: file to write the scores to instead of memory, a kernel file in HDF5 (data set ``ntk``
            [n, m]); the same call goes on after a stop. Read it with
            :func:`pntk.ntk.kernel_file.open_kernel`.
        memory_budget: bytes, or a text such as "500MB", that the work takes beyond rows that are in
            memory and the result.
        weights: the learning rate at each checkpoint, of ``tracin``.
        reweighting: Q of ``trak`` [n], or a list of one a checkpoint; None for the column of that
            name in the stores.
        device: where rows are multiplied, a tile at a time, and solved with; what is returned is
            on the CPU. The budget is of its memory too.
        progress: whether to show a progress bar.

    Returns:
        Scores [n, m] of the rows' type; the path of ``out``; or with ``top`` a TopK of values and
        indices [m, top], with ``both`` two of them. Samples that a store marks as skipped have
        scores of 0, and are in no TopK.

    Raises:
        ConfigError: arguments that cannot work, rows that do not match, a Gram matrix that is
            singular (k > n without a ridge, for one), a budget that is too small.
        NonFiniteError: a training row holds NaN or infinity.
        OutOfMemoryError: memory cannot hold the scores.
        StoreError: rows are missing; ``out`` exists or cannot be written.

    Source: Park et al. 2023, https://arxiv.org/abs/2303.14186 (TRAK); Pruthi et al. 2020,
    https://arxiv.org/abs/2002.08484 (TracIn); Koh, Liang 2017, https://arxiv.org/abs/1703.04730
    (influence functions).

    >>> train, test = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[4.0, 3.0]])
    >>> attribute(train, test, reweighting=torch.tensor([1.0, 0.5]))  # 4 * 2 / 2^2, 3 * 1 / 1 / 2
    tensor([[2.0000],
            [1.5000]])
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    check_ridge(ridge)
    check_options(method, ridge=ridge, weights=weights, reweighting=reweighting)
    _check_ends(top, both, out)
    place = checked_device(device)
    budget = required_bytes(memory_budget)
    checkpoints = pair_up(train, test, method)
    n, m = checkpoints[0].train.shape[0], checkpoints[0].test.shape[0]
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= n):
        raise ConfigError(f"top is {top!r}; expected 1 to {n}, the training samples")
    shares = shares_of(method, weights, len(checkpoints))
    q = reweighting_of(checkpoints, reweighting) if method == "trak" else None
    if method in SOLVED:
        for checkpoint in checkpoints:
            check_determined(n, checkpoint.width, ridge)
    dtype = common_dtype(checkpoints)
    if out is None and top is None:
        _check_room(n, m, dtype)
    plan = Plan(checkpoints, shares, q, method, ridge, dtype, budget, place)
    if top is not None:
        return plan.run_top(top, both, progress)
    if out is None:
        return plan.run_in_memory(progress)
    check_new(Path(out))
    header = KernelHeader(
        shape=(n, m),
        dtype=str(dtype).removeprefix("torch."),
        normalize=method == "cosine",
        symmetric=False,
        tile=plan.tile,
        rows=side(
            [checkpoint.train for checkpoint in checkpoints],
            method=method,
            ridge=ridge,
            shares=xxh3_64_hexdigest(repr(shares).encode()),
            reweighting=None if q is None else xxh3_64_hexdigest(q.numpy().tobytes()),
        ),
        columns=side([checkpoint.test for checkpoint in checkpoints]),
    )
    with KernelWriter.open(out, header) as writer:
        plan.run_to_disk(writer, progress)
        writer.finish()
    return Path(out)


def check_options(method: str, **given: Any) -> None:
    """Refuse options that are not None and of another method.

    Raises:
        ConfigError: naming the first.
    """
    for name, value in given.items():
        fitting = _FOR[name]
        if value is not None and method not in fitting:
            raise ConfigError(
                f"{name} is for method {' or '.join(fitting)}, and method is {method!r}; leave it "
                "out"
            )


def checked_device(device: torch.device | str) -> torch.device:
    """Return the device.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:  # a build without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device is {device!r}, which cannot be used ({reason}); use 'cpu'"
        ) from None
    return found


def _check_ends(top: Any, both: bool, out: Any) -> None:
    if both and top is None:
        raise ConfigError("both=True is for top=; all scores have both ends: leave it out")
    if top is not None and out is not None:
        raise ConfigError(
            f"top={top!r} and out={out!r}: out is for all scores; leave one of them out"
        )


def _check_room(n: int, m: int, dtype: torch.dtype) -> None:
    needed, free = n * m * dtype.itemsize, available_memory()
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"scores of {n:,} samples for {m:,} targets take {needed:,} bytes and {free:,} are "
            "available in memory; write them to a file with out=, or ask for the best with top="
        )
