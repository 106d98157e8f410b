"""The score of each training sample for itself: the diagonal of the scores, without the rest.

Shapes: n training samples; k width of a row; b rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pntk.attribution.checkpoints import common_dtype, pair_up, reweighting_of, shares_of
from pntk.attribution.ridge import Ridge, check_determined, check_ridge
from pntk.attribution.scores import METHODS, check_options, checked_device
from pntk.attribution.targets import block_rows, check_solvable, solver_of
from pntk.attribution.tiles import SOLVED
from pntk.errors import ConfigError, NonFiniteError
from pntk.memory import required_bytes


@torch.no_grad()
def self_scores(
    train: Any,
    method: str = "trak",
    *,
    ridge: Ridge = None,
    weights: float | Sequence[float] | None = None,
    reweighting: Any = None,
    memory_budget: int | str = "1GB",
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Tensor:
    """Return the score of each training sample for itself, the diagonal of ``attribute``.

    Mislabelled samples and outliers stand out by high ones. Rows are read in blocks, once, or with
    ``trak`` and ``influence`` twice; these cost about n k^2 multiplications, the others n k.

    Args:
        train: rows [n, k] of training samples, or a list of them, one a checkpoint.
        method: of :func:`pntk.attribution.attribute`; not ``cosine``, of which all are 1.
        ridge, weights, reweighting, memory_budget, device, progress: see there.

    Returns:
        Scores [n] of the rows' type on the CPU; 0 of samples that a store marks as skipped.

    Raises:
        ConfigError, NonFiniteError, StoreError: see there.

    >>> rows = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    >>> self_scores(rows, "dot")
    tensor([25.,  4.])
    >>> self_scores(rows, reweighting=torch.ones(2))  # two rows, two directions: each fits itself
    tensor([1., 1.])
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    if method == "cosine":
        raise ConfigError("method='cosine' gives every sample a score of 1 for itself; use 'dot'")
    check_ridge(ridge)
    check_options(method, ridge=ridge, weights=weights, reweighting=reweighting)
    place, budget = checked_device(device), required_bytes(memory_budget)
    checkpoints = pair_up(train, train, method)
    shares = shares_of(method, weights, len(checkpoints))
    q = reweighting_of(checkpoints, reweighting) if method == "trak" else None
    n = checkpoints[0].train.shape[0]
    widest = max(checkpoint.width for checkpoint in checkpoints)
    room = budget
    if method in SOLVED:
        for checkpoint in checkpoints:
            check_determined(n, checkpoint.width, ridge)
        room = budget // 2 - check_solvable(widest, ridge, budget // 2)
    total = torch.zeros(n, dtype=torch.float64)
    bar = tqdm(total=n * len(shares), unit="row", desc=method, disable=not progress)
    for checkpoint, share in zip(checkpoints, shares, strict=True):
        block = block_rows(checkpoint.width, room)
        score: Callable[[Tensor], Tensor] = _squared_norms
        if method in SOLVED:
            score = solver_of(checkpoint.train, block, ridge, method == "influence", place).squared
        for start in range(0, n, block):
            rows = checkpoint.train.block(start, start + block)
            found = share * score(rows.to(place)).cpu()
            if not bool(found.isfinite().all()):
                row = start + int((~found.isfinite()).nonzero()[0])
                raise NonFiniteError(
                    f"row {row} of the training rows holds NaN or infinity; featurize with "
                    "on_nonfinite='skip', or leave it out"
                )
            total[start : start + block] += found
            bar.update(len(rows))
    bar.close()
    return (total if q is None else total.mul_(q)).to(common_dtype(checkpoints))


def _squared_norms(rows: Tensor) -> Tensor:
    """Return <phi, phi> [b], float64."""
    return rows.double().square().sum(1)
