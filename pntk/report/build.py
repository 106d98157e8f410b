"""Make a report from stores: the gallery, suspects, a block of the kernel, the coverage.

Shapes: n rows of a store.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pntk.errors import ConfigError, DataError
from pntk.ntk.projected import ntk
from pntk.report.content import Report, Surrogate
from pntk.report.facts import accuracy, caveats, likeness, mistakes, notes, run_facts, warning
from pntk.report.gallery import Source, draw, gallery, mislabelled
from pntk.report.influence import Influence
from pntk.report.neighbours import agreement, balanced, labels_of, usable_rows
from pntk.report.suspects import find_suspects
from pntk.rows import check_same_map
from pntk.store import FeatureStore

KERNEL_ROWS = 300
SCORED_QUERIES = 2000
SUSPECTS = 24  # shown
NUM_QUERIES = 24

__all__ = ["Source", "build_report", "check_build"]


def build_report(
    train: Source,
    queries: Source | None = None,
    *,
    title: str,
    k: int = 5,
    num_queries: int = NUM_QUERIES,
    shown: Sequence[int] | None = None,
    kernel_of: FeatureStore | None = None,
    influence: Influence | None = None,
    surrogates: Sequence[Surrogate] = (),
    seed: int = 0,
) -> Report:
    """Return a report about the rows of one model.

    Args:
        train: where neighbours are looked for.
        queries: whose neighbours; None for the training rows, each without itself.
        title: of the page.
        k: neighbours of a query, 1 to n.
        num_queries: size of the gallery.
        shown: queries of the gallery; None draws them, every class in turn. Those that the model
            gets wrong come first.
        kernel_of: store whose kernel is drawn; None for the training rows.
        influence: how to score training samples for the queries; None for neighbours alone.
        surrogates: kernel machines that were compared with the model.
        seed: of what is drawn.

    Raises:
        ConfigError: k is out of range, or the stores or the data do not belong together.
        StoreError: rows are missing.
    """
    asked = train if queries is None else queries
    check_build(train.store, asked.store, k, same=queries is None)
    if influence is not None:
        if queries is None:
            raise ConfigError(
                "influence is on queries, and there are none; of the training rows themselves "
                "leave it out"
            )
        influence.check(train.store, asked.store)
    rng = np.random.default_rng(seed)
    shown = draw(asked, num_queries, rng) if shown is None else shown
    scored = balanced(labels_of(asked.store), usable_rows(asked.store), SCORED_QUERIES, rng)
    leaking = warning(train.store)
    measured = []
    if not leaking:
        measured += agreement(train.store, asked.store, scored, same=queries is None)
        measured += likeness(surrogates)
    kernel_store = train.store if kernel_of is None else kernel_of
    block = balanced(labels_of(kernel_store), usable_rows(kernel_store), KERNEL_ROWS, rng)
    kernel = ntk(kernel_store[block])
    assert isinstance(kernel, torch.Tensor)  # a path only with out=
    suspects = find_suspects(train.store, rng)
    labelled = bool((labels_of(kernel_store)[block] >= 0).all())
    return Report(
        title=title,
        run=run_facts(train.store, None if queries is None else queries.store),
        headline=[*accuracy(asked), *measured],
        warning=leaking,
        queries=gallery(train, asked, shown, k, influence),
        asked=len(asked.store),
        influence="" if influence is None else influence.describe(),
        mislabelled=mislabelled(train, suspects, SUSPECTS),
        suspicion=suspects.how,
        surrogates=list(surrogates),
        kernel=kernel.numpy(),
        kernel_labels=labels_of(kernel_store)[block] if labelled else None,
        spectrum=np.linalg.eigvalsh(kernel.double().numpy())[::-1].clip(min=0),
        coverage=list(train.store.header.info.get("coverage", [])),
        notes=[
            *mistakes(asked, shown),
            *notes(
                kernel_store, len(block), len(asked.store if leaking else scored), len(asked.store)
            ),
            *caveats(train.store),
        ],
    )


def check_build(train: FeatureStore, queries: FeatureStore, k: int, *, same: bool) -> None:
    """Refuse stores that do not belong together, and neighbours that are not there."""
    check_same_map(queries, train)
    for store in (train, queries):
        store.require_complete()
        if not len(usable_rows(store)):
            raise DataError(
                f"all {len(store)} rows of {store.path} were skipped as NaN or infinite; "
                "featurize data with finite gradients"
            )
    most = len(usable_rows(train)) - same
    if not 1 <= k <= most:
        raise ConfigError(f"k is {k}; expected 1 to {most}, the usable rows to search in")
