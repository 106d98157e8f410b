"""The queries of a report, each with the training samples that belong to it.

Shapes: n rows of a store; q queries; k samples of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pntk.report.content import Neighbour, Query, Suspect
from pntk.report.influence import Influence
from pntk.report.neighbours import Labels, balanced, labels_of, nearest, usable_rows
from pntk.report.samples import Sample, samples_of
from pntk.report.suspects import Suspects
from pntk.store import FeatureStore


@dataclass(frozen=True)
class Source:
    """A store, and what is known about its samples.

    Args:
        store: the rows.
        data: what it was made of, for images and texts; None shows none.
        predictions: [n], the class that the model gives each sample; None if unknown.
    """

    store: FeatureStore
    data: Any = None
    predictions: Labels | None = None

    @property
    def wrong(self) -> Labels:
        """Rows with a label that the model gives another class, ascending."""
        if self.predictions is None:
            return np.empty(0, dtype=np.int64)
        labels = labels_of(self.store)
        return np.flatnonzero((labels >= 0) & (labels != np.asarray(self.predictions))).astype(
            np.int64
        )


def draw(source: Source, size: int, rng: np.random.Generator) -> list[int]:
    """Draw queries, those that the model gets wrong first.

    They are at most half of the gallery, unless the others are too few; either part is of every
    class in turn.
    """
    labels, usable = labels_of(source.store), usable_rows(source.store)
    wrong = np.intersect1d(usable, source.wrong)
    others = np.setdiff1d(usable, wrong)
    room = max(-(-size // 2), size - len(others))
    first = balanced(labels, wrong, room, rng)
    return [*first.tolist(), *balanced(labels, others, size - len(first), rng).tolist()]


def gallery(
    train: Source, asked: Source, shown: Sequence[int], k: int, influence: Influence | None = None
) -> list[Query]:
    """Return queries with their k nearest, and k most and least influential training samples.

    Args:
        train: training samples.
        asked: queries; the same object for training samples themselves.
        shown: rows of the queries; those that the model gets wrong come first.
        k: samples of each list.
        influence: how to score; None for no scores.
    """
    wrong = set(asked.wrong.tolist())
    shown = sorted(shown, key=lambda row: row not in wrong)
    if not shown:
        return []
    rows = np.array(shown, dtype=np.int64)
    lists = {"neighbours": nearest(train.store, asked.store, rows, k, same=asked is train)}
    if influence is not None:
        ends = influence.extremes(rows, k)
        lists |= {"influential": ends.highest, "opposing": ends.lowest}
    found = np.unique(np.concatenate([part.indices.numpy() for part in lists.values()]))
    theirs = samples_of(train.data, found[found >= 0].tolist(), len(train.store))
    ours = samples_of(asked.data, shown, len(asked.store))
    return [
        Query(
            index=row,
            label=_name(labels_of(asked.store)[row]),
            prediction=None if asked.predictions is None else _name(asked.predictions[row]),
            image=ours[row].image,
            text=ours[row].text,
            **{
                name: [
                    _neighbour(train.store, index, score, theirs[index])
                    for index, score in zip(
                        part.indices[at].tolist(), part.values[at].tolist(), strict=True
                    )
                    if index >= 0
                ]
                for name, part in lists.items()
            },
        )
        for at, row in enumerate(shown)
    ]


def mislabelled(train: Source, found: Suspects, most: int) -> list[Suspect]:
    """Return the first suspects, with what they look like."""
    rows = found.rows[:most].tolist()
    samples = samples_of(train.data, rows, len(train.store))
    suggested, margins = (part[:most].tolist() for part in found.votes)
    return [
        Suspect(
            index=row,
            label=str(labels_of(train.store)[row]),
            suggested=str(other),
            score=margin,
            image=samples[row].image,
            text=samples[row].text,
        )
        for row, other, margin in zip(rows, suggested, margins, strict=True)
    ]


def _neighbour(store: FeatureStore, index: int, score: float, sample: Sample) -> Neighbour:
    label = _name(labels_of(store)[index])
    return Neighbour(index, score, label, sample.image, sample.text)


def _name(label: int) -> str | None:
    return None if label < 0 else str(int(label))
