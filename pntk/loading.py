"""Where batches come from: tensors, data sets or loaders, in a fixed order that can be resumed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

from pntk.batch import batch_size as size_of
from pntk.batch import take, tensors
from pntk.errors import ConfigError, DataError

DEFAULT_BATCH_SIZE = 64


class Batches:
    """The examples of a data set, in order, any of them again.

    Args:
        data: a tensor; a tuple or mapping of tensors with one leading dimension; a map-style data
            set; or a DataLoader that does not shuffle.
        batch_size: samples a batch; None for the loader's own, or 64.
        num_rows: length of an iterable data set, which has none of its own.

    Raises:
        DataError: no examples, or an order that cannot be repeated.
    """

    def __init__(
        self, data: Any, batch_size: int | None = None, num_rows: int | None = None
    ) -> None:
        whole = isinstance(batch_size, int) and not isinstance(batch_size, bool)
        if batch_size is not None and (not whole or not 1 <= batch_size < 2**31):
            raise ConfigError(f"batch_size is {batch_size!r}; expected a positive integer")
        self._loader = data if isinstance(data, DataLoader) else None
        if self._loader is not None:
            data = self._loader.dataset
        self._stream = isinstance(data, IterableDataset)
        self._tensors = _is_tensors(data)
        self._data = data
        own = getattr(self._loader, "batch_size", None)
        self.batch_size: int = batch_size or own or DEFAULT_BATCH_SIZE
        if self._stream:
            self.length = _stream_length(num_rows)
        elif self._tensors:
            self.length = _tensor_length(data)
        else:
            self.length = _dataset_length(data)
            _check_order(self._loader)
        if num_rows is not None and num_rows != self.length:
            raise DataError(
                f"num_rows is {num_rows} and the data set has {self.length} examples; leave "
                "num_rows out for data that has a length"
            )
        if self.length == 0:
            raise DataError("the data set is empty; expected at least one example")

    @property
    def in_memory(self) -> bool:
        """Whether the data are tensors, so that batches are slices of them."""
        return self._tensors

    def first(self) -> Any:
        """Return a batch of the first examples, to learn shapes from."""
        return next(self._batches([np.arange(min(2, self.length))]))[1]

    def covering(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield (row indices [b], batch) for all batches that hold one of these rows.

        Batches are always cut at the same places, so that a row that is made again has the same
        company, and the same rounding, as the first time.
        """
        starts = np.unique(rows // self.batch_size) * self.batch_size
        stops = np.minimum(starts + self.batch_size, self.length)
        yield from self._batches([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])

    def only(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield (row indices, example as a batch of one) for just these rows, ascending.

        A stream yields the whole batches that hold them.
        """
        yield from self._batches([np.array([row]) for row in rows])

    def range(self, start: int, stop: int) -> Any:
        """Return examples ``start`` to ``stop`` as one batch; not of a stream."""
        return next(self._batches([np.arange(start, stop)]))[1]

    def _batches(self, groups: list[np.ndarray]) -> Iterator[tuple[np.ndarray, Any]]:
        if self._stream:
            yield from self._from_stream(groups)
        elif self._tensors:
            for group in groups:
                yield group, take(self._data, slice(int(group[0]), int(group[-1]) + 1))
        else:
            loader = self._make_loader([group.tolist() for group in groups])
            for group, batch in zip(groups, loader, strict=True):
                if size_of(batch) != len(group):
                    raise DataError(
                        f"examples {group[0]} to {group[-1]} came back as a batch of "
                        f"{size_of(batch)}; expected {len(group)}, one sample an example: check "
                        "the collate function"
                    )
                yield group, batch

    def _make_loader(self, groups: list[list[int]]) -> DataLoader[Any]:
        given = self._loader
        if given is None:
            return DataLoader(self._data, batch_sampler=groups, generator=torch.Generator())
        return DataLoader(
            self._data,
            batch_sampler=groups,
            collate_fn=given.collate_fn,
            num_workers=given.num_workers,
            pin_memory=given.pin_memory,
            timeout=given.timeout,
            worker_init_fn=given.worker_init_fn,
            multiprocessing_context=given.multiprocessing_context,
            generator=torch.Generator(),  # the global one is not ours to draw from
        )

    def _from_stream(self, groups: list[np.ndarray]) -> Iterator[tuple[np.ndarray, Any]]:
        """Walk a stream from its start; its own batches, those that hold a wanted row."""
        loader = self._loader
        if loader is None:
            loader = DataLoader(self._data, batch_size=self.batch_size, generator=torch.Generator())
        wanted = np.zeros(self.length, dtype=bool)
        for group in groups:
            wanted[group] = True
        last = int(groups[-1][-1])
        start = 0
        for batch in loader:
            stop = start + size_of(batch)
            if stop > self.length:
                raise DataError(
                    f"the stream has more than num_rows={self.length} examples; pass its true "
                    "length"
                )
            if wanted[start:stop].any():
                yield np.arange(start, stop), batch
            start = stop
            if last < start < self.length:
                return  # the rest is not wanted, and its end cannot be seen from here
        if start == self.length:
            return
        raise DataError(
            f"the stream ended after {start} examples; expected num_rows={self.length}: the rows "
            "made so far are kept"
        )


def _is_tensors(data: Any) -> bool:
    if isinstance(data, Dataset):
        return False
    if isinstance(data, Tensor):
        return True
    if isinstance(data, Mapping):
        return bool(data) and all(isinstance(value, Tensor) for value in data.values())
    return isinstance(data, tuple) and bool(data) and all(isinstance(v, Tensor) for v in data)


def _tensor_length(data: Any) -> int:
    lengths = {len(t) if t.dim() else 0 for t in tensors(data)}
    if len(lengths) != 1:
        raise DataError(f"the data's tensors have lengths {sorted(lengths)}; expected one length")
    return lengths.pop()


def _dataset_length(data: Any) -> int:
    if isinstance(data, Mapping):
        raise DataError(
            f"the data is a {type(data).__name__} with values that are no tensors; expected "
            "tensors alone, or a map-style data set of examples"
        )
    if isinstance(data, list) and data and all(isinstance(x, Tensor) for x in data):
        raise DataError(
            f"the data is a list of {len(data)} tensors; pass a tuple (inputs, labels), or "
            "torch.stack(list) if each is an example"
        )
    if isinstance(data, tuple) and any(isinstance(x, (Tensor, np.ndarray)) for x in data):
        kinds = ", ".join(type(x).__name__ for x in data)
        raise DataError(
            f"the data is a tuple of {kinds}; expected tensors alone, such as (inputs, labels): "
            "torch.as_tensor makes them of arrays and lists"
        )
    text = isinstance(data, (str, bytes, os.PathLike))
    if text or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise DataError(
            f"cannot read examples from a {type(data).__name__}; expected a tensor, a tuple or "
            "dict of tensors, a map-style data set, or a DataLoader"
        )
    return len(data)


def _stream_length(num_rows: int | None) -> int:
    if not isinstance(num_rows, int) or isinstance(num_rows, bool) or num_rows < 0:
        raise DataError(
            f"num_rows is {num_rows} for an iterable data set; expected its number of examples, "
            "for which the store reserves its space"
        )
    return num_rows


def _check_order(loader: DataLoader[Any] | None) -> None:
    """Refuse a loader whose order is not that of its data set."""
    if loader is None:
        return
    if loader.batch_sampler is None:
        raise DataError(
            "the loader has batch_size=None and hands over single examples; give it a batch size, "
            "or pass the data set itself"
        )
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if not isinstance(sampler, SequentialSampler):
        raise DataError(
            f"the loader draws examples with {type(sampler).__name__}; expected the order of the "
            "data set, so that row i is example i: use shuffle=False, or pass the data set itself"
        )
