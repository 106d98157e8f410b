"""Make a report from stores: the gallery, a block of the kernel, its spectrum, the coverage.

Shapes: n rows of a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pntk.errors import ConfigError, DataError
from pntk.ntk.projected import ntk
from pntk.report.content import Neighbour, Query, Report
from pntk.report.neighbours import (
    Labels,
    agreement,
    balanced,
    labels_of,
    nearest,
    usable_rows,
)
from pntk.report.samples import Sample, samples_of
from pntk.report.summary import count
from pntk.rows import check_same_map
from pntk.store import FeatureStore

KERNEL_ROWS = 300
SCORED_QUERIES = 2000


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


def build_report(
    train: Source,
    queries: Source | None = None,
    *,
    title: str,
    k: int = 5,
    num_queries: int = 12,
    shown: Sequence[int] | None = None,
    kernel_of: FeatureStore | None = None,
    seed: int = 0,
) -> Report:
    """Return a report about the rows of one model.

    Args:
        train: where neighbours are looked for.
        queries: whose neighbours; None for the training rows, each without itself.
        title: of the page.
        k: neighbours of a query, 1 to n.
        num_queries: size of the gallery.
        shown: queries of the gallery; None draws them, every class in turn.
        kernel_of: store whose kernel is drawn; None for the training rows.
        seed: of what is drawn.

    Raises:
        ConfigError: k is out of range, or the stores or the data do not belong together.
        StoreError: rows are missing.
    """
    asked = train if queries is None else queries
    check_build(train.store, asked.store, k, same=queries is None)
    rng = np.random.default_rng(seed)
    drawn = balanced(labels_of(asked.store), usable_rows(asked.store), num_queries, rng)
    scored = balanced(labels_of(asked.store), usable_rows(asked.store), SCORED_QUERIES, rng)
    kernel_store = train.store if kernel_of is None else kernel_of
    block = balanced(labels_of(kernel_store), usable_rows(kernel_store), KERNEL_ROWS, rng)
    kernel = ntk(kernel_store[block])
    assert isinstance(kernel, torch.Tensor)  # a path only with out=
    labelled = bool((labels_of(kernel_store)[block] >= 0).all())
    return Report(
        title=title,
        run=run_facts(train.store, None if queries is None else queries.store),
        headline=agreement(train.store, asked.store, scored, same=queries is None),
        queries=_gallery(train, asked, drawn.tolist() if shown is None else list(shown), k),
        kernel=kernel.numpy(),
        kernel_labels=labels_of(kernel_store)[block] if labelled else None,
        spectrum=np.linalg.eigvalsh(kernel.double().numpy())[::-1].clip(min=0),
        coverage=list(train.store.header.info.get("coverage", [])),
        notes=_notes(kernel_store, len(block), len(scored), len(asked.store)),
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


def run_facts(train: FeatureStore, queries: FeatureStore | None = None) -> dict[str, str]:
    """Return what the rows are, as the facts at the head of a report."""
    header = train.header
    entries = sum(int(np.prod(shape)) for _, shape in header.params)
    facts = {
        "Model": str(header.info.get("model", "unknown")),
        "Parameters": f"{entries:,} in {count(len(header.params), 'tensor')}",
        "Output": _describe(header.output),
        "Projection": f"{header.projection.get('family')}, {_describe_spec(train)}",
        "Training rows": f"{len(train):,} of {train.path.name}",
    }
    if queries is not None:
        facts["Queries"] = f"{len(queries):,} of {queries.path.name}"
    facts["Weights"] = header.weights
    made_by = [f"{name} {header.info[name]}" for name in ("pntk", "torch") if name in header.info]
    facts["Made by"] = ", ".join(made_by) or "unknown"
    return facts


def _describe(output: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} = {value}" for key, value in output.items() if key != "name")
    return f"{output.get('name')}" + (f" ({settings})" if settings else "")


def _describe_spec(store: FeatureStore) -> str:
    width, dtype = store.header.width, store.header.dtype
    return f"k = {width:,} ({dtype}), seed {store.header.projection.get('seed')}"


def _gallery(train: Source, asked: Source, shown: list[int], k: int) -> list[Query]:
    if not shown:
        return []
    same = asked is train
    found = nearest(train.store, asked.store, np.array(shown, dtype=np.int64), k, same=same)
    indices = found.indices.tolist()
    ours = samples_of(asked.data, shown, len(asked.store))
    theirs = samples_of(train.data, (row for line in indices for row in line), len(train.store))
    return [
        Query(
            index=row,
            label=_name(labels_of(asked.store)[row]),
            prediction=None if asked.predictions is None else _name(asked.predictions[row]),
            image=ours[row].image,
            text=ours[row].text,
            neighbours=[
                _neighbour(train.store, index, score, theirs[index])
                for index, score in zip(line, scores, strict=True)
            ],
        )
        for row, line, scores in zip(shown, indices, found.values.tolist(), strict=True)
    ]


def _neighbour(store: FeatureStore, index: int, score: float, sample: Sample) -> Neighbour:
    label = _name(labels_of(store)[index])
    return Neighbour(index, score, label, sample.image, sample.text)


def _notes(store: FeatureStore, block: int, scored: int, asked: int) -> list[str]:
    notes = []
    if store.header.projection.get("family") != "identity":
        notes.append(
            "Every entry of the kernel is an unbiased estimate from k numbers a sample; its error "
            "falls as 1/√k."
        )
    if block < len(store):
        notes.append(
            f"The kernel and its spectrum are those of {block:,} of the {len(store):,} rows of "
            f"{store.path.name}, drawn from every class in turn."
        )
    if scored < asked:
        notes.append(f"The agreement of neighbours was measured on {scored:,} of {asked:,} rows.")
    return notes


def _name(label: int) -> str | None:
    return None if label < 0 else str(label)
