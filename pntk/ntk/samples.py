"""Samples of the rows and columns of a kernel, which go through a model as one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from xxhash import xxh3_64

from pntk.batch import tensors, tree_map
from pntk.errors import DataError
from pntk.loading import Batches

_STEP = 64  # samples that are read at a time


def samples_of(x: Any) -> Batches:
    """Return samples of which any range can be had.

    Raises:
        DataError: they are a stream, or none.
    """
    data = x.dataset if isinstance(x, DataLoader) else x
    if isinstance(data, IterableDataset):
        raise DataError(
            f"the samples are a {type(data).__name__}, a stream; a kernel reads them several times "
            "and in parts: pass tensors or a map-style data set"
        )
    return Batches(x)


def joined(x: Any, y: Any) -> Any:
    """Return two batches as one.

    Raises:
        DataError: their samples have different shapes.
    """
    check_alike(x, y)
    rest = tensors(y)
    return tree_map(lambda tensor: torch.cat([tensor, next(rest)]), x)


def check_alike(x: Any, y: Any) -> None:
    """Refuse samples that are not of one kind."""

    def shown(batch: Any) -> str:
        return ", ".join(f"{t.dtype} {tuple(t.shape[1:])}" for t in tensors(batch))

    if shown(x) != shown(y):
        raise DataError(
            f"samples of the rows are {shown(x)}, those of the columns {shown(y)}; expected one "
            "kind (sequences padded to one length)"
        )


def content_of(data: Batches) -> str:
    """Return a hash of all samples."""
    digest = xxh3_64()
    for start in range(0, data.length, _STEP):  # however a loader would cut its batches
        for tensor in tensors(data.range(start, min(start + _STEP, data.length))):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape[1:])}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
