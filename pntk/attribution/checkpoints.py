"""What attribution is given: for each checkpoint the rows of training samples and of targets.

Shapes: n training samples; m targets; k width of a row; C checkpoints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_64_hexdigest

from pntk.errors import ConfigError
from pntk.ntk.kernel_file import Side
from pntk.rows import Rows, as_rows, check_same_map, check_widths, identify
from pntk.store import FeatureStore

LOSS_METHODS = ("tracin", "influence")  # whose rows are gradients of the loss
COLUMN = "reweighting"


@dataclass(frozen=True)
class Checkpoint:
    """Rows of one checkpoint: of n training samples and m targets, by one map."""

    train: Rows
    test: Rows

    @property
    def width(self) -> int:
        """k."""
        return self.train.shape[1]


def pair_up(train: Any, test: Any, method: str) -> list[Checkpoint]:
    """Return the checkpoints of lists of rows, or the one of a pair of rows.

    Raises:
        ConfigError: lists of other lengths or sizes, pairs of other maps, an output that the method
            cannot use.
        StoreError: rows are missing.
    """
    trains, tests = _as_list(train), _as_list(test)
    if len(trains) != len(tests) or not trains:
        raise ConfigError(
            f"train has {len(trains)} checkpoints and test {len(tests)}; expected one of each for "
            "each checkpoint, in the same order"
        )
    found = []
    for number, (ours, theirs) in enumerate(zip(trains, tests, strict=True)):
        check_same_map(ours, theirs)
        _check_output(ours, method)
        _check_output(theirs, method)
        left, right = as_rows(ours, f"train[{number}]"), as_rows(theirs, f"test[{number}]")
        check_widths(left, right)
        found.append(Checkpoint(left, right))
    for what in ("train", "test"):
        sizes = [getattr(checkpoint, what).shape[0] for checkpoint in found]
        if len(set(sizes)) > 1:
            raise ConfigError(
                f"{what} has {sizes} rows; expected the same samples, in one order, for every "
                "checkpoint"
            )
    return found


def reweighting_of(checkpoints: Sequence[Checkpoint], given: Any) -> Tensor:
    """Return the mean over checkpoints of TRAK's Q, float64 [n].

    Args:
        given: one [n], or one a checkpoint; None for the stores' own.

    Raises:
        ConfigError: there is none, or it does not fit.
    """
    if given is None:
        given = [_column_of(checkpoint.train) for checkpoint in checkpoints]
    elif not isinstance(given, (list, tuple)):
        given = [given]
    if len(given) not in (1, len(checkpoints)):
        raise ConfigError(
            f"reweighting has {len(given)} entries for {len(checkpoints)} checkpoints; expected "
            "one [n], or a list of one [n] a checkpoint"
        )
    n = checkpoints[0].train.shape[0]
    total = torch.zeros(n, dtype=torch.float64)
    for one in given:
        values = torch.as_tensor(one).detach().cpu().double()
        if values.shape != (n,) or not bool(values.isfinite().all()):
            raise ConfigError(
                f"reweighting has shape {tuple(values.shape)}, or NaN or infinity; expected {n} "
                "finite numbers, one a training sample"
            )
        total += values
    return total / len(given)


def shares_of(method: str, weights: Any, count: int) -> list[float]:
    """Return what the scores of each checkpoint are multiplied by before they are added up."""
    return learning_rates(weights, count) if method == "tracin" else [1 / count] * count


def learning_rates(given: Any, count: int) -> list[float]:
    """Return TracIn's learning rate of each checkpoint.

    Raises:
        ConfigError: none, or not one positive number a checkpoint.
    """
    if given is None:
        raise ConfigError(
            "method='tracin' needs weights, the learning rate at each checkpoint, such as "
            f"weights={[0.1] * min(count, 3)}"
        )
    rates = [given] if isinstance(given, (int, float)) else list(given)
    rates = [float(rate) for rate in rates]
    if len(rates) != count or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise ConfigError(
            f"weights is {given!r} for {count} checkpoints; expected one positive learning rate a "
            "checkpoint"
        )
    return rates


def common_dtype(checkpoints: Sequence[Checkpoint]) -> torch.dtype:
    """Return the type that holds the rows of all checkpoints."""
    dtype = checkpoints[0].train.dtype
    for checkpoint in checkpoints:
        dtype = torch.promote_types(dtype, checkpoint.train.dtype)
        dtype = torch.promote_types(dtype, checkpoint.test.dtype)
    return dtype


def unusable(rows: Sequence[Rows]) -> Tensor:
    """Return the samples that a store of some checkpoint marks as skipped, ascending."""
    found = np.unique(np.concatenate([one.skipped for one in rows]))
    return torch.from_numpy(found.astype(np.int64))


def side(rows: Sequence[Rows], **about: str | int | float | None) -> Side:
    """Return what tells the rows of all checkpoints from others, and what else is said of them."""
    each = [identify(one) for one in rows]
    content = xxh3_64_hexdigest(json.dumps(each, sort_keys=True).encode())
    return {"rows": rows[0].shape[0], "checkpoints": len(rows), **about, "content": content}


def _as_list(rows: Any) -> list[Any]:
    return list(rows) if isinstance(rows, (list, tuple)) else [rows]


def _check_output(rows: Any, method: str) -> None:
    if method not in LOSS_METHODS or not isinstance(rows, FeatureStore):
        return
    name = rows.header.output.get("name")
    if name != "loss":
        raise ConfigError(
            f"method={method!r} needs gradients of the loss, and {rows.path} holds rows of output "
            f"{name!r}: featurize with output='loss'"
        )


def _column_of(rows: Rows) -> Tensor:
    source = rows.source
    if not isinstance(source, FeatureStore):
        raise ConfigError(
            "method='trak' needs the reweighting Q of the training samples, and tensors have "
            "none: pass reweighting=[n], such as 1 - p_y, or torch.ones(n) to leave it out"
        )
    if COLUMN not in source.header.columns:
        raise ConfigError(
            f"{source.path} has no column {COLUMN!r}: featurize with output='margin' or 'text', or "
            "leave it out with reweighting=torch.ones(n), --no-reweighting"
        )
    return torch.from_numpy(np.array(source.column(COLUMN)))
