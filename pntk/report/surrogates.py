"""Fit a kernel machine to training rows and compare it with the network, for a report.

Shapes: m queries; c classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pntk.errors import ConfigError, DataError
from pntk.extras import require
from pntk.report.content import Surrogate
from pntk.report.neighbours import Labels, labels_of, usable_rows
from pntk.store import FeatureStore
from pntk.surrogate import KernelSurrogate, evaluate
from pntk.surrogate.metrics import check_probabilities

SCALES: dict[bool | str, str] = {
    True: "cosines",
    False: "the kernel as it is",
    "trntk0": "the kernel over its standard deviation",
}


def compare(
    train: FeatureStore,
    queries: FeatureStore,
    probs: Any,
    *,
    normalize: bool | str = True,
    alpha: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Surrogate:
    """Fit ``glm`` to the training rows, and compare it with the network on the queries.

    Rows that were skipped or have no label are left out.

    Args:
        train: rows with labels.
        queries: rows with labels, which the network was not trained on.
        probs: probabilities of the network [m, c], columns in ascending order of the labels; a
            tensor or an array.
        normalize, alpha, seed: as of :class:`pntk.surrogate.KernelSurrogate`.
        bootstrap: samples for intervals; 0 for none.

    Raises:
        ConfigError: not probabilities, or of other shapes.
        DataError: there are no labels.
        MissingExtraError: SciPy or scikit-learn is not installed.
    """
    probs = _array(probs)
    classes = check_probs(train, queries, probs)
    rows, asked = labelled(train), labelled(queries)
    network = probs[asked].astype(np.float64)
    numbers = np.searchsorted(classes, labels_of(queries)[asked])
    machine = KernelSurrogate("glm", normalize=normalize, alpha=alpha, seed=seed)
    machine.fit(_rows(train, rows), labels_of(train)[rows])
    ours = machine.predict_proba(_rows(queries, asked))
    at = np.arange(len(asked))
    return Surrogate(
        name=f"glm of {SCALES[normalize]}, alpha {machine.alpha_:.3g}" + chosen(machine.scores_),
        report=evaluate(ours, network, numbers, bootstrap=bootstrap, seed=seed),
        ours=ours[at, numbers].clip(max=1),
        network=network[at, numbers].clip(max=1),
        right=network.argmax(1) == numbers,
    )


def check_probs(train: FeatureStore, queries: FeatureStore, probs: Any) -> NDArray[np.int64]:
    """Return the classes that the columns of probabilities stand for, [c].

    Raises:
        ConfigError: not probabilities, or not of these queries and classes.
        DataError: there are no labels, or queries of a class that no training row has.
        MissingExtraError: SciPy is not installed.
    """
    require("scipy.stats", "the comparison with a network")
    for store in (train, queries):
        if not len(labelled(store)):
            raise DataError(f"{store.path} has no labels; featurize data that has some")
    classes = np.unique(labels_of(train)[labelled(train)])
    asked = labels_of(queries)[labelled(queries)]
    probs = _array(probs)
    shape = probs.shape
    if shape != (len(queries), len(classes)):
        raise ConfigError(
            f"probs have shape {shape}; expected ({len(queries)}, {len(classes)}), the rows of "
            f"{queries.path} and the classes of {train.path}"
        )
    unknown = np.setdiff1d(asked, classes)
    if len(unknown):
        raise DataError(
            f"{queries.path} has rows of class {unknown[0]}, and {train.path} has none; expected "
            "the same classes"
        )
    check_probabilities(probs[labelled(queries)], "probs")
    return classes


def labelled(store: FeatureStore) -> Labels:
    """Return the usable rows that have a label."""
    rows = usable_rows(store)
    return rows[labels_of(store)[rows] >= 0]


def _array(probs: Any) -> NDArray[Any]:
    if isinstance(probs, Tensor):
        probs = probs.detach().cpu().double().numpy()
    return np.asarray(probs)


def chosen(scores: NDArray[np.float64] | None) -> str:
    """Say that alpha was chosen, and where it is the first or the last of those that were tried."""
    if scores is None:
        return ""
    place = len(scores) - 1 - int(scores[::-1].argmax())  # the stiffest of equals
    ends = {0: ", the smallest tried", len(scores) - 1: ", the largest tried"}
    return f" (chosen{ends.get(place, '')})"


def _rows(store: FeatureStore, rows: Labels) -> Any:
    return store if len(rows) == len(store) else store[rows]
