"""Images and texts of the samples in a gallery, from whatever data a store was made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pntk.errors import ConfigError
from pntk.loading import Batches

CHANNELS = (1, 3)


@dataclass(frozen=True)
class Sample:
    """What can be shown of a sample: an image [h, w] or [h, w, c], a text, or neither."""

    image: NDArray[Any] | None = None
    text: str | None = None


def samples_of(data: Any, rows: Iterable[int], length: int) -> dict[int, Sample]:
    """Return the samples of some rows.

    Args:
        data: anything that ``Featurizer.featurize`` takes; None shows nothing.
        rows: which, of a data set of ``length`` examples.
        length: number of rows of the store that was made of the data.

    Raises:
        ConfigError: the data has another length, so that its rows are not the store's.
        DataError: the data cannot be read.
    """
    wanted = np.unique(np.fromiter(rows, dtype=np.int64))
    if data is None or not len(wanted):
        return {int(row): Sample() for row in wanted}
    batches = Batches(data)
    if batches.length != length:
        raise ConfigError(
            f"the data has {batches.length} examples and the store {length} rows; pass the data "
            "that the store was made of"
        )
    found: dict[int, Sample] = {}
    for index, batch in batches.only(wanted):
        found.update({int(row): _sample(batch, at) for at, row in enumerate(index)})
    return found


def _sample(batch: Any, at: int) -> Sample:
    for entry in _entries(batch):
        if isinstance(entry, Tensor) and entry.dim() in (3, 4):
            image = _picture(entry[at].detach().cpu().numpy())
            if image is not None:
                return Sample(image=image)
        if isinstance(entry, (list, tuple)) and len(entry) > at and isinstance(entry[at], str):
            return Sample(text=entry[at])
    return Sample()


def _entries(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, (list, tuple)) else [batch]


def _picture(image: NDArray[Any]) -> NDArray[Any] | None:
    """Return the image with its channels last, or None if it has no 1 or 3 of them."""
    if image.ndim == 2 or image.shape[-1] in CHANNELS:
        return image
    return image.transpose(1, 2, 0) if image.shape[0] in CHANNELS else None
