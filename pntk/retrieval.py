"""The nearest examples under a kernel of rows, without the kernel matrix.

Shapes: n rows of a store; m queries; d width of a row; k neighbours; b rows of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pntk.errors import ConfigError
from pntk.memory import parse_bytes
from pntk.products import product
from pntk.rows import Rows, as_rows, check_same_map, check_widths, row_norms

METRICS = ("cosine", "dot")

_GROUP = 32  # scores of which only the largest is compared at first
_FEW = 4  # one group in so many is looked into by itself
_QUERIES = 1024  # of a tile
_SCORES = 2**21  # of a tile: what stays in a cache while it is looked through
_FIRST_SCORES = 2**19  # of the first tile, which is looked through whole
_TILE_BYTES = 2**24  # of rows in a tile that are read twice: for the product and for norms
_BLOCK_BYTES = 5 * 2**23  # of rows read at a time: large enough for the next to be read meanwhile
_FIXED = 2**25  # what threads and the kernels that oneDNN writes take, whatever the sizes

Floats = NDArray[Any]
Ints = NDArray[np.int64]


class TopK(NamedTuple):
    """Scores and places of the nearest rows.

    Attributes:
        values: [m, k], descending.
        indices: int64 [m, k], rows of the store; the lower comes first among equal scores. Where
            there is no usable row left, or the query is not usable, -1 with the value -inf.
    """

    values: Tensor
    indices: Tensor


@torch.no_grad()
def topk(
    queries: Any,
    store: Any,
    k: int = 5,
    *,
    metric: str = "cosine",
    memory_budget: int | str = "1GB",
    device: torch.device | str = "cpu",
) -> TopK:
    """Return, for each query, the k rows of the store with the largest kernel entries.

    The search is exact. A store is read block by block, once for as many queries as the budget
    holds (6,000 of width 4096 with the default). Rows that a store marks as skipped, and rows
    whose kernel entry is not finite, are never found.

    Args:
        queries: rows [m, d]: tensor, array or FeatureStore.
        store: rows [n, d], likewise.
        k: how many, 1 to n.
        metric: ``cosine`` (normalised kernel) or ``dot`` (the kernel itself).
        memory_budget: what the search may take beyond the queries, rows that are in memory
            already, and the result: bytes, or a text such as "500MB".
        device: where scores are computed.

    Returns:
        TopK of values [m, k] and indices [m, k].

    Raises:
        ConfigError: k out of range, unknown metric, rows of different widths or maps, a budget
            that is too small.
        StoreError: rows are missing.

    >>> topk(torch.eye(2), torch.tensor([[1.0, 1.0], [0.0, 2.0], [0.0, 1.0]]), k=2).indices
    tensor([[0, 1],
            [1, 2]])
    """
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}; expected one of {', '.join(METRICS)}")
    check_same_map(queries, store)
    left, right = as_rows(queries, "queries"), as_rows(store, "store")
    check_widths(left, right)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= right.shape[0]:
        raise ConfigError(f"k is {k!r}; expected 1 to {right.shape[0]}, the rows of the store")
    sizes = _sizes(left, right, k, metric, memory_budget)
    m = left.shape[0]
    values = torch.empty(m, k, dtype=torch.promote_types(left.dtype, right.dtype))
    indices = torch.empty(m, k, dtype=torch.int64)
    for i in range(0, m, sizes.queries):
        x = left.block(i, i + sizes.queries).to(device=device, dtype=values.dtype)
        if metric == "cosine":
            x = x / _nonzero(row_norms(x))[:, None]
        _search(x, right, metric, sizes, values[i : i + len(x)], indices[i : i + len(x)])
    if len(left.skipped):
        values[torch.from_numpy(left.skipped)] = float("-inf")
    return TopK(values, indices.masked_fill_(values == float("-inf"), -1))


@dataclass(frozen=True)
class Sizes:
    """What is held at a time.

    Attributes:
        queries: that one pass over the store serves.
        block: rows that are read at once.
        tile: rows of a block whose scores are computed at once, at most.
        scores: of a tile.
        first: scores of the first tile.
    """

    queries: int
    block: int
    tile: int
    scores: int
    first: int


def _sizes(left: Rows, right: Rows, k: int, metric: str, budget: int | str) -> Sizes:
    """Share the budget: a quarter for queries, the rest for blocks and scores.

    Raises:
        ConfigError: it is too small.
    """
    given = parse_bytes(budget) or 0
    itemsize = torch.promote_types(left.dtype, right.dtype).itemsize
    row = right.shape[1] * itemsize
    query = 2 * row + 4 * _width(k) * (itemsize + 8)
    # three blocks, what oneDNN makes of a tile, its copy in another type: five of twelve parts
    smallest = _FIXED + max(4 * query, 12 * row * _GROUP, 16 * itemsize * _GROUP)
    if given < smallest:
        raise ConfigError(
            f"memory_budget is {given:,} bytes; rows of this width and this k need at least "
            f"{smallest:,}"
        )
    room = given - _FIXED
    block = max(_GROUP, min(_BLOCK_BYTES, room // 12) // row // _GROUP * _GROUP)
    twice = _TILE_BYTES if metric == "cosine" else _BLOCK_BYTES
    return Sizes(
        queries=room // 4 // query,
        block=block,
        tile=max(_GROUP, min(twice // row // _GROUP * _GROUP, block)),
        scores=min(_SCORES, room // 16 // itemsize),
        first=_FIRST_SCORES,
    )


def _search(
    x: Tensor, rows: Rows, metric: str, sizes: Sizes, values: Tensor, indices: Tensor
) -> None:
    """Find the nearest rows of queries x [m, d] in one pass over the rows."""
    skipped, k = rows.skipped, values.shape[1]
    parts = x.split(_QUERIES)
    found = [_Nearest(k) for _ in parts]
    for start, stop, block in _tiles(rows, len(parts[0]), k, sizes):
        y = block.to(x)
        norms = _nonzero(row_norms(y)) if metric == "cosine" else None
        here = skipped[(skipped >= start) & (skipped < stop)] - start if len(skipped) else skipped
        useless = torch.from_numpy(here).to(x.device)
        for part, nearest in zip(parts, found, strict=True):
            scores = product(part, y)
            if norms is not None:
                scores /= norms
            if len(useless):
                scores[:, useless] = float("-inf")
            nearest.add(scores, start)
    for i, nearest in enumerate(found):
        place = slice(i * _QUERIES, (i + 1) * _QUERIES)
        nearest.write(values[place], indices[place])


def _tiles(rows: Rows, queries: int, k: int, sizes: Sizes) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (start, stop, rows) in order: few rows at first, until there are scores to beat."""
    n, seen = rows.shape[0], 0
    most = max(_GROUP, min(sizes.tile, sizes.scores // queries // _GROUP * _GROUP))
    least = min(most, max(sizes.first // queries, k) // _GROUP * _GROUP + _GROUP)
    for start, block in rows.blocks(sizes.block if rows.copied else n):
        while seen < start + len(block):
            size = min(most, max(least, seen // _GROUP * _GROUP), start + len(block) - seen)
            yield seen, seen + size, block[seen - start : seen - start + size]
            seen += size
    assert seen == n


def _nonzero(norms: Tensor) -> Tensor:
    """Return norms that can be divided by: rows of zeros have the cosine 0."""
    return norms.masked_fill_(norms == 0, 1)


def _width(k: int) -> int:
    """Return the length of the list in which the k best of a query are looked for."""
    return 3 * k + 64


class _Nearest:
    """The best k scores of each query so far, and others that may be among them.

    They stand in the order of the store, so that among equals the first one is the one to keep.
    All of this is NumPy's, whose comparisons and partitions are several times as fast as
    PyTorch's on a CPU, and goes by places in flat arrays, which saves divisions.

    Args:
        k: how many are looked for.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.values = np.empty((0, 0), dtype=np.float32)  # [m, _width(k)], or of the first rows
        self.indices = np.empty((0, 0), dtype=np.int64)  # alone [m, <= k]
        self.used: Ints | None = None  # [m], numbers in each list; None while there are no lists
        self.floor = self.values  # [m, 1], what a score has to exceed

    def add(self, scores: Tensor, start: int) -> None:
        """Take in the scores [m, b] of rows from ``start``; they are overwritten."""
        if not len(self.values):
            self.values, columns = _largest_of(scores, self.k)
            self.indices = columns + start
        elif scores.device.type == "cpu":
            self._add_above_floor(scores, start)
        else:
            self._add_largest(scores, start)

    def write(self, values: Tensor, indices: Tensor) -> None:
        """Write the best k [m, k], in descending order."""
        if self.used is not None:
            self._squeeze()
        found = torch.from_numpy(self.values[:, : self.k])
        found, order = found.sort(dim=1, descending=True, stable=True)
        values.copy_(found)
        torch.gather(torch.from_numpy(self.indices[:, : self.k]), 1, order, out=indices)

    def _add_above_floor(self, scores: Tensor, start: int) -> None:
        used = self._lists()
        places = _above(scores, self.floor)
        values = scores.numpy().reshape(-1)[places]
        usable = values < np.inf
        if not usable.all():
            places, values = places[usable], values[usable]
        if not len(places):
            return
        (m, b), width = scores.shape, self.values.shape[1]
        starts = np.searchsorted(places, np.arange(m + 1) * b)
        counts = np.diff(starts)
        if counts.max() > width - self.k:
            return self._add_largest(scores, start)
        if (used + counts).max() > width:
            self._squeeze()
        rows = np.arange(m)
        to = np.arange(len(places)) + np.repeat(rows * width + used - starts[:-1], counts)
        self.values.reshape(-1)[to] = values
        self.indices.reshape(-1)[to] = places + np.repeat(start - rows * b, counts)
        used += counts

    def _add_largest(self, scores: Tensor, start: int) -> None:
        """Take in many scores at once."""
        self._lists()
        values, columns = _largest_of(scores, self.k)
        self._squeeze()
        place = slice(self.k, self.k + columns.shape[1])
        self.values[:, place] = values
        self.indices[:, place] = columns + start
        self._squeeze()

    def _lists(self) -> Ints:
        """Return how much of each list is used; they are made when the second tile comes."""
        if self.used is None:
            values, indices = self.values, self.indices
            shape = (len(values), _width(self.k))
            self.values = np.full(shape, -np.inf, dtype=values.dtype)
            self.indices = np.full(shape, -1)
            self.values[:, : values.shape[1]] = values
            self.indices[:, : values.shape[1]] = indices
            self.used = np.full(len(values), self.k)
            self._set_floor()
        return self.used

    def _squeeze(self) -> None:
        """Keep the best k."""
        places = largest(self.values, self.k)
        shape = (len(self.values), self.k)
        self.values[:, : self.k] = self.values.reshape(-1)[places].reshape(shape)
        self.values[:, self.k :] = -np.inf
        self.indices[:, : self.k] = self.indices.reshape(-1)[places].reshape(shape)
        self._lists()[:] = self.k
        self._set_floor()

    def _set_floor(self) -> None:
        self.floor = self.values[:, : self.k].min(axis=1, keepdims=True)


def _largest_of(scores: Tensor, k: int) -> tuple[Floats, Ints]:
    """Return the largest usable scores [m, min(k, b)] and their columns; scores are overwritten."""
    scores.nan_to_num_(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
    (m, b), k = scores.shape, min(k, scores.shape[1])
    if scores.device.type != "cpu":
        columns = largest_in_torch(scores, k)
        return scores.gather(1, columns).cpu().numpy(), columns.cpu().numpy()
    places = largest(scores.numpy(), k)
    values = scores.numpy().reshape(-1)[places]
    return values.reshape(m, k), places.reshape(m, k) - np.arange(m)[:, None] * b


def _above(scores: Tensor, floor: Floats) -> Ints:
    """Return where scores [m, b] are above a floor [m, 1], ascending, in the flat array."""
    m, b = scores.shape
    if b % _GROUP == 0:
        most = scores.view(m, -1, _GROUP).amax(2).numpy()
        # what is not below: of a group with NaN the largest is NaN
        groups = np.flatnonzero(~(most <= floor))
        if _FEW * len(groups) < most.size:
            near = scores.numpy().reshape(-1, _GROUP)[groups]
            hits = np.flatnonzero(near > floor[groups // most.shape[1]])
            return groups[hits // _GROUP] * _GROUP + hits % _GROUP
    return np.flatnonzero(scores.numpy() > floor)


def largest(scores: Floats, k: int) -> Ints:
    """Return where the k largest scores [m, b] of each row are, ascending [m k], in the flat array.

    Among equals those with the lower index are taken. There must be no NaN.
    """
    m, b = scores.shape
    kth = np.partition(scores, b - k, axis=1)[:, b - k, None]
    places = np.flatnonzero(scores >= kth)
    if len(places) > m * k:  # equals of which some have to go
        above, equal = scores > kth, scores == kth
        equal &= equal.cumsum(axis=1) <= k - above.sum(axis=1, keepdims=True)
        places = np.flatnonzero(above | equal)
    return places


def largest_in_torch(scores: Tensor, k: int) -> Tensor:
    """Return the columns [m, k] of :func:`largest`, ascending, on the device of the scores."""
    kth = scores.topk(k, dim=1).values[:, -1:]
    above, equal = scores > kth, scores == kth
    equal &= equal.cumsum(1) <= k - above.sum(1, keepdim=True)
    return (above | equal).nonzero()[:, 1].view(-1, k)
