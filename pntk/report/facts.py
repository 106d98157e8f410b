"""What a report says in words and numbers about the stores it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pntk.report.content import Surrogate
from pntk.report.gallery import Source
from pntk.report.neighbours import labels_of
from pntk.report.summary import count, format_share
from pntk.report.suspects import BLIND
from pntk.store import FeatureStore


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


def accuracy(asked: Source) -> list[tuple[str, str]]:
    """Return the share of queries that the model gets right, as a headline number."""
    rows = labels_of(asked.store) >= 0
    if asked.predictions is None or not rows.any():
        return []
    return [("accuracy of the network", format_share(1 - len(asked.wrong) / rows.sum()))]


def likeness(surrogates: Sequence[Surrogate]) -> list[tuple[str, str]]:
    """Return how alike the first surrogate is to the model, as a headline number."""
    return [
        ("Kendall τ-b of surrogate and network", f"{surrogate.report.kendall_tau:.3f}")
        for surrogate in surrogates[:1]
    ]


def mistakes(asked: Source, shown: Sequence[int]) -> list[str]:
    """Return how many queries the model gets wrong, and which of them are shown."""
    if asked.predictions is None or not shown:
        return []
    wrong, labelled = len(asked.wrong), int((labels_of(asked.store) >= 0).sum())
    text = f"The network gets {wrong:,} of {labelled:,} queries wrong."
    first = len(set(shown) & set(asked.wrong.tolist()))
    if first:
        text += f" The gallery starts with {'these' if first == wrong else f'{first:,} of these'}."
    return [text]


def warning(train: FeatureStore) -> str:
    """Return what is to be known of numbers that rows which take a label give; else nothing."""
    output = train.header.output.get("name")
    if output in BLIND or not (labels_of(train) >= 0).any():
        return ""
    return (
        f"Rows of output {output} may depend on the label of their sample, a query's too: "
        "neighbours and surrogates may have the class of a query from there, so that their "
        "agreement with it says nothing about the network."
    )


def caveats(train: FeatureStore) -> list[str]:
    """Return what was left out for rows that depend on labels."""
    if not warning(train):
        return []
    return [
        f"Rows of output {train.header.output.get('name')} may depend on the labels that were "
        "given, right or wrong. So wrong labels were not looked for, and how often neighbours have "
        f"the class of a query was not counted. Rows of {' and '.join(BLIND)} do not depend on "
        "labels."
    ]


def notes(store: FeatureStore, block: int, scored: int, asked: int) -> list[str]:
    """Return what the numbers of a report are of.

    Args:
        store: whose kernel is drawn.
        block: rows of the kernel.
        scored: queries whose neighbours were compared with their classes.
        asked: queries.
    """
    found = []
    if store.header.projection.get("family") != "identity":
        found.append(
            "Every product of two rows is an unbiased estimate from k numbers a sample, whose "
            "error falls as 1/√k; cosines, as shown, are estimates with an error of the same order."
        )
    if block < len(store):
        found.append(
            f"The kernel and its spectrum are those of {block:,} of the {len(store):,} rows of "
            f"{store.path.name}, drawn from every class in turn."
        )
    if scored < asked:
        found.append(f"The agreement of neighbours was measured on {scored:,} of {asked:,} rows.")
    return found
