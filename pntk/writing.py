"""Featurize what a store still lacks, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pntk.errors import ConfigError, DataError, NonFiniteError
from pntk.loading import Batches
from pntk.outputs import Values
from pntk.staging import Staging, Tensors, slots_for
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
    """Write the missing rows of a store, or of a shard of it.

    Args:
        make_rows: batch -> (rows [b, k], the output's values).
        device: where rows are made. A batch is written while the next one is being computed.
        on_nonfinite: ``raise``, ``skip`` or ``keep``.
        indices: int64 [n] to record beside the rows, or None.
        progress: whether to show a progress bar.

    Raises:
        DataError: a batch does not fit; rows made before are written, as with every error.
        NonFiniteError: a row holds NaN or infinity and ``on_nonfinite`` is ``raise``.
    """
    shard = writer.header.shard
    start = shard.start if shard else 0  # number of the writer's first row in the data set
    missing = writer.missing() + start
    if not len(missing):
        return
    lacks = np.zeros(batches.length, dtype=bool)
    lacks[missing] = True
    bar = tqdm(
        total=writer.header.rows,
        initial=writer.header.rows - len(missing),
        unit="row",
        desc="featurize",
        disable=not progress,
    )

    def write(index: np.ndarray, made: Tensors) -> None:
        # in a thread of its own, and the only one to use the writer; see Staging why in NumPy
        columns = {name: tensor.numpy() for name, tensor in made.items()}
        rows, wanted = columns.pop("rows"), lacks[index]
        skipped = None
        if on_nonfinite != "keep":
            finite = np.isfinite(rows).all(1)
            if on_nonfinite == "raise":
                _refuse_nonfinite(finite, index)
            else:
                skipped = ~finite[wanted]
        columns.setdefault("labels", np.full(len(index), -1, dtype=np.int64))
        if indices is not None:
            columns["indices"] = indices[index]
        columns = {name: columns[name][wanted] for name in writer.header.columns}
        writer.write(index[wanted] - start, rows[wanted], columns, skipped)
        bar.update(int(wanted.sum()))

    with bar, Staging(write, slots_for(device)) as staging:
        for index, batch in batches.covering(missing):
            try:
                rows, values = make_rows(batch)
            except DataError as error:
                raise DataError(f"in rows {index[0]} to {index[-1]}: {error}") from None
            staging.put(index, _to_write(rows, values))


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
    _refuse_nonfinite(rows.isfinite().all(1).cpu().numpy(), index)


def _refuse_nonfinite(finite: np.ndarray, index: np.ndarray) -> None:
    """Raise NonFiniteError unless all of ``finite``, bool [b], is true."""
    if not finite.all():
        raise NonFiniteError(
            f"the row of sample {int(index[finite.argmin()])} holds NaN or infinity "
            f"({int((~finite).sum())} of {len(finite)} rows of its batch do); check the sample and "
            "the weights, or pass on_nonfinite='skip' or 'keep'"
        )


def _to_write(rows: Tensor, values: Values) -> Tensors:
    """Return what of a batch goes to the store.

    All but the rows is copied: it may be in memory that the caller fills again for the next batch.
    """
    made = {"rows": rows.detach()}
    labels, reweighting = values.labels, values.reweighting
    if isinstance(labels, Tensor) and _are_classes(labels, len(rows)):
        made["labels"] = labels.detach().to(torch.int64, copy=True)
    if isinstance(reweighting, Tensor):
        made["reweighting"] = reweighting.detach().to(torch.float32, copy=True)
    return made


def _are_classes(labels: Tensor, count: int) -> bool:
    return labels.shape == (count,) and not labels.is_floating_point()


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
