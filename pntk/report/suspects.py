"""Training samples whose labels may be wrong: those that their neighbours would label otherwise.

Shapes: n rows of a store; q of them are looked at; k neighbours; c classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pntk.report.neighbours import Labels, labels_of, nearest, usable_rows
from pntk.report.summary import count
from pntk.store import FeatureStore

VOTERS = 10
CHECKED_ROWS = 5000
BLIND = ("pntk", "trace")  # outputs whose rows do not depend on the labels of the samples


class Vote(NamedTuple):
    """What neighbours say about samples.

    Attributes:
        suggested: class with the largest share among the others than the sample's own [q].
        margin: its share less that of the own class, -1 to 1 [q].
    """

    suggested: Labels
    margin: NDArray[np.float64]


def weighted_vote(own: Labels, labels: Labels, similarities: NDArray[np.float64]) -> Vote:
    """Compare, for each sample, its class with the best of the others among its neighbours.

    The share of a class is sum max(s_j, 0) of the neighbours j in it over that of all neighbours.

    Args:
        own: classes of the samples [q], of at least two, or neighbours of another.
        labels: classes of the neighbours [q, k]; -1 for none, which has no vote.
        similarities: s [q, k].

    >>> weighted_vote(np.array([7]), np.array([[7, 3, 3]]), np.array([[0.5, 1.0, 0.5]]))
    Vote(suggested=array([3]), margin=array([0.5]))
    """
    weights = np.where(labels >= 0, similarities.clip(min=0), 0.0)
    classes = np.union1d(own, labels[labels >= 0])
    sums = np.stack([np.where(labels == c, weights, 0.0).sum(1) for c in classes], axis=1)
    shares = sums / np.maximum(sums.sum(1, keepdims=True), np.finfo(np.float64).tiny)  # [q, c]
    at = np.arange(len(own)), np.searchsorted(classes, own)
    mine = shares[at]
    shares[at] = -1
    best = shares.argmax(1)
    return Vote(classes[best], shares.max(1) - mine)


class Suspects(NamedTuple):
    """Rows whose neighbours outvote their label, by falling margin.

    Attributes:
        rows: of the store.
        votes: on each.
        how: they were found; empty if nobody looked.
    """

    rows: Labels
    votes: Vote
    how: str


def find_suspects(
    store: FeatureStore, rng: np.random.Generator, checked: int = CHECKED_ROWS
) -> Suspects:
    """Return the training rows whose neighbours outvote their label.

    Nobody looks where labels are missing, or are part of what was differentiated: rows of the
    margin or the loss look like others of the label that was given, be it right or wrong.

    Args:
        store: training rows.
        rng: draws the rows that are looked at where there are more of them.
        checked: how many are looked at.
    """
    labels = labels_of(store)
    usable = usable_rows(store)
    rows = usable[labels[usable] >= 0]
    if store.header.output.get("name") not in BLIND or len(np.unique(labels[rows])) < 2:
        nobody = np.empty(0, dtype=np.int64)
        return Suspects(nobody, Vote(nobody, np.empty(0)), "")
    if len(rows) > checked:
        rows = np.sort(rng.permutation(rows)[:checked])
    k = min(VOTERS, len(usable) - 1)
    found = nearest(store, store, rows, k, same=True)
    similarities = found.values.double().numpy()
    vote = weighted_vote(labels[rows], labels[found.indices.numpy()], similarities)
    order = np.argsort(-vote.margin, kind="stable")
    order = order[vote.margin[order] > 0]
    how = (
        f"Of {count(len(rows), 'training row')} that were looked at, {len(order):,} "
        f"{'has' if len(order) == 1 else 'have'} a label that the {k} nearest other training rows "
        "outvote. A vote counts as much as the cosine of the two rows (nothing if it is negative); "
        "the score is the share of the class suggested less that of the label given. Hard and "
        "ambiguous samples are among them: look before you relabel."
    )
    return Suspects(rows[order], Vote(vote.suggested[order], vote.margin[order]), how)
