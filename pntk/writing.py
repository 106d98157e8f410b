"""Featurize what a store still lacks, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pntk.batch import to_device
from pntk.errors import ConfigError, DataError, NonFiniteError
from pntk.loading import Batches
from pntk.outputs import Values
from pntk.store import RowWriter


def write_rows(
    make_rows: Callable[[Any], tuple[Tensor, Values]],
    batches: Batches,
    writer: RowWriter,
    *,
    device: torch.device,
    on_nonfinite: str,
    indices: np.ndarray | None,
    progress: bool,
) -> None:
    """Write the missing rows of a store.

    Args:
        make_rows: batch -> (rows [b, k], the output's values).
        device: where ``make_rows`` wants its batches.
        on_nonfinite: ``raise``, ``skip`` or ``keep``.
        indices: int64 [n] to record beside the rows, or None.
        progress: whether to show a progress bar.

    Raises:
        DataError: a batch does not fit; rows made before are kept, as with every error.
        NonFiniteError: a row holds NaN or infinity and ``on_nonfinite`` is ``raise``.
    """
    missing = writer.missing()
    if not len(missing):
        return
    lacks = np.zeros(batches.length, dtype=bool)
    lacks[missing] = True
    bar = tqdm(
        total=batches.length,
        initial=batches.length - len(missing),
        unit="row",
        desc="featurize",
        disable=not progress,
    )
    with bar:
        for index, batch in batches.covering(missing):
            try:
                rows, values = make_rows(to_device(batch, device))
            except DataError as error:
                raise DataError(f"in rows {index[0]} to {index[-1]}: {error}") from None
            wanted = lacks[index]
            skipped = None
            if on_nonfinite == "raise":
                raise_if_nonfinite(rows, index)
            elif on_nonfinite == "skip":
                skipped = (~rows.isfinite().all(1)).cpu().numpy()[wanted]
            columns = _columns(values, len(index))
            if indices is not None:
                columns["indices"] = indices[index]
            columns = {name: columns[name][wanted] for name in writer.header.columns}
            writer.write(index[wanted], rows.cpu().numpy()[wanted], columns, skipped)
            bar.update(int(wanted.sum()))


def raise_if_nonfinite(rows: Tensor, index: np.ndarray) -> None:
    """Refuse rows that hold NaN or infinity.

    Args:
        rows: [b, k].
        index: [b], the number of each row's sample.

    Raises:
        NonFiniteError: naming the first such sample.
    """
    if bool(torch.isfinite(rows.sum())):  # one number answers for all in the usual case
        return
    bad = ~rows.isfinite().all(1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        raise NonFiniteError(
            f"the row of sample {int(index[first])} holds NaN or infinity ({int(bad.sum())} of "
            f"{len(rows)} rows of its batch do); check the sample and the weights, or pass "
            "on_nonfinite='skip' or 'keep'"
        )


def _columns(values: Values, count: int) -> dict[str, np.ndarray]:
    labels = values.labels
    columns = {"labels": np.full(count, -1, dtype=np.int64)}
    if isinstance(labels, Tensor) and labels.shape == (count,) and not labels.is_floating_point():
        columns["labels"] = labels.long().cpu().numpy()
    if values.reweighting is not None:
        columns["reweighting"] = values.reweighting.float().cpu().numpy()
    return columns


def checked_indices(
    indices: Sequence[int] | Tensor | np.ndarray | None, rows: int
) -> np.ndarray | None:
    """Return the indices to record as int64 [rows], or None.

    Raises:
        ConfigError: not one integer a row.
    """
    if indices is None:
        return None
    array = np.asarray(indices)
    if array.shape != (rows,) or not np.issubdtype(array.dtype, np.integer):
        raise ConfigError(
            f"indices are {array.dtype} of shape {array.shape}; expected {rows} integers, one a row"
        )
    return array.astype(np.int64)
