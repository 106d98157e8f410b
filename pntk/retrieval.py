"""The nearest examples under a kernel of rows, without the kernel matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.rows import as_rows, check_same_map, check_widths, inverse_norms
from pntk.store import FeatureStore

METRICS = ("cosine", "dot")


class TopK(NamedTuple):
    """Scores and places of the nearest rows.

    Attributes:
        values: [m, k], descending.
        indices: int64 [m, k], rows of the store; the lower comes first among equal scores. Where
            there is no usable row left, or the query is not usable, -1 with the value -inf.
    """

    values: Tensor
    indices: Tensor


def topk(
    queries: Any,
    store: Any,
    k: int = 5,
    *,
    metric: str = "cosine",
    query_tile: int = 512,
    tile: int = 4096,
    device: torch.device | str = "cpu",
) -> TopK:
    """Return, for each query, the k rows of the store with the largest kernel entries.

    Rows that a store marks as skipped, and rows that are not finite, are never found.

    Args:
        queries: rows [m, d]: tensor, array or FeatureStore.
        store: rows [n, d], of which at most ``tile`` meet at most ``query_tile`` queries at a time.
        k: how many, 1 to n.
        metric: ``cosine`` (normalised kernel) or ``dot`` (the kernel itself).

    Returns:
        TopK of values [m, k] and indices [m, k].

    Raises:
        ConfigError: k out of range, unknown metric, rows of different widths or maps.
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
    if query_tile < 1 or tile < 1:
        raise ConfigError(f"tiles are {query_tile} and {tile}; expected positive numbers of rows")
    dtype = torch.promote_types(left.dtype, right.dtype)
    scale = inverse_norms(right, tile).to(dtype) if metric == "cosine" else None
    skipped: Any = store.skipped if isinstance(store, FeatureStore) else []
    useless = torch.as_tensor(skipped, dtype=torch.int64, device=device)
    found = []
    for i in range(0, left.shape[0], query_tile):
        x = left[i : i + query_tile].to(device=device, dtype=dtype)
        if metric == "cosine":
            x = x * inverse_norms(x, tile)[:, None]
        found.append(_search(x, right, scale, useless, k, tile))
    values, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    if isinstance(queries, FeatureStore):
        values[queries.skipped] = float("-inf")
    return TopK(values, torch.where(values == float("-inf"), -1, indices))


def _search(
    x: Tensor, rows: Tensor, scale: Tensor | None, useless: Tensor, k: int, tile: int
) -> TopK:
    best = TopK(x.new_empty(x.shape[0], 0), x.new_empty(x.shape[0], 0, dtype=torch.int64))
    for j in range(0, rows.shape[0], tile):
        scores = x @ rows[j : j + tile].to(x).T
        if scale is not None:
            scores *= scale[j : j + tile].to(scores)
        scores.nan_to_num_(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
        here = useless[(useless >= j) & (useless < j + tile)] - j
        scores[:, here] = float("-inf")
        values, indices = stable_topk(scores, min(k, scores.shape[1]))
        values = torch.cat([best.values, values], dim=1)
        indices = torch.cat([best.indices, indices + j], dim=1)
        # what was found earlier has lower indices and stands first, so a stable sort keeps order
        order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
        best = TopK(values.gather(1, order), indices.gather(1, order))
    return TopK(best.values.cpu(), best.indices.cpu())


def stable_topk(scores: Tensor, k: int) -> TopK:
    """Return the k largest of each row; among equals, those with the lower index."""
    values, indices = scores.topk(k, dim=1)
    smallest = values[:, -1:]
    cut = (scores == smallest).sum(1) > (values == smallest).sum(1)
    if bool(cut.any()):  # equal scores on both sides of the cut: sort those rows whole
        order = scores[cut].argsort(dim=1, descending=True, stable=True)[:, :k]
        indices[cut] = order
    indices = indices.sort(dim=1).values
    values = scores.gather(1, indices)
    order = values.argsort(dim=1, descending=True, stable=True)
    return TopK(values.gather(1, order), indices.gather(1, order))
