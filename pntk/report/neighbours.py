"""How well neighbours agree with the classes of their queries, and which rows to look at.

Shapes: n rows of a store; q queries; k neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pntk.report.summary import format_share
from pntk.retrieval import TopK, topk
from pntk.store import FeatureStore
from pntk.store.layout import DONE

VOTERS = 5
BLOCK = 4096  # rows looked at together

Labels = NDArray[np.int64]


def labels_of(store: FeatureStore) -> Labels:
    """Return the labels [n]; -1 for a sample, or a store, without."""
    labels = store.labels
    return np.full(len(store), -1, dtype=np.int64) if labels is None else labels


def usable_rows(store: FeatureStore) -> Labels:
    """Return the rows that were not skipped and hold no NaN or infinity."""
    starts = range(0, len(store), BLOCK)
    finite = [store.read(i, min(i + BLOCK, len(store))).isfinite().all(1) for i in starts]
    return np.flatnonzero((store.done == DONE) & torch.cat(finite).numpy()).astype(np.int64)


def balanced(labels: Labels, rows: Labels, size: int, rng: np.random.Generator) -> Labels:
    """Draw up to ``size`` of the rows, every class in turn until it has no more.

    Returns:
        Ascending rows, int64 [min(size, len(rows))].
    """
    rows = rng.permutation(rows)
    turn = np.empty(len(rows), dtype=np.int64)
    for label in np.unique(labels[rows]):
        of_class = np.flatnonzero(labels[rows] == label)
        turn[of_class] = np.arange(len(of_class))
    return np.sort(rows[np.argsort(turn, kind="stable")[:size]])


def vote(neighbour_labels: Labels) -> Labels:
    """Return the commonest label of each row; among equals, that of the nearest neighbour.

    Args:
        neighbour_labels: int64 [q, k], nearest first.

    >>> vote(np.array([[3, 1, 1], [2, 7, 5]]))
    array([1, 2])
    """
    votes = (neighbour_labels[:, :, None] == neighbour_labels[:, None, :]).sum(2)
    return neighbour_labels[np.arange(len(votes)), votes.argmax(1)]


def nearest(
    train: FeatureStore, queries: FeatureStore, rows: Labels, k: int, *, same: bool
) -> TopK:
    """Return the k nearest training rows of some queries; of training rows, without themselves."""
    if not same:
        return topk(queries[rows], train, k)
    found = topk(queries[rows], train, k + 1)
    keep = found.indices != torch.from_numpy(rows)[:, None]
    keep[keep.all(1), -1] = False  # equals of lower index have crowded the row itself out
    values, indices = found.values[keep], found.indices[keep]
    return TopK(values.view(len(rows), k), indices.view(len(rows), k))


def agreement(
    train: FeatureStore, queries: FeatureStore, rows: Labels, *, same: bool
) -> list[tuple[str, str]]:
    """Return how often neighbours have the class of the query, as headline numbers."""
    truth = labels_of(queries)[rows]
    rows, truth = rows[truth >= 0], truth[truth >= 0]
    if not len(rows) or not (labels_of(train) >= 0).any():
        return []
    voters = min(VOTERS, len(train) - same)
    labels = labels_of(train)[nearest(train, queries, rows, voters, same=same).indices.numpy()]
    first, voted = (labels[:, 0] == truth).mean(), (vote(labels) == truth).mean()
    return [
        ("nearest neighbour has the same class", format_share(float(first))),
        (f"accuracy of {voters} nearest neighbours", format_share(float(voted))),
    ]
