"""A page, or a section of one, about how alike the layers of two models are."""

from __future__ import annotations

from collections.abc import Mapping

from pntk.report.content import Panel, Report
from pntk.representation.layers import LayerSimilarity

COLUMNS = ("layer", "most alike", "similarity", "with the same name")


def similarity_report(
    found: LayerSimilarity,
    name_a: str,
    name_b: str,
    *,
    run: Mapping[str, str] | None = None,
    reproduce: str = "",
) -> Report:
    """Return a page with the heat map and a row for each layer of the first model.

    Args:
        found: what to show.
        name_a: what to call the first model.
        name_b: the second.
        run: further facts.
        reproduce: command that makes the page again.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return Report(
        title=f"Similarity of {name_a} and {name_b}",
        run={"model a": name_a, "model b": name_b, **(run or {}), **facts(found)},
        panels=[similarity_panel(found, name_a, name_b)],
        reproduce=reproduce,
    )


def similarity_panel(found: LayerSimilarity, name_a: str, name_b: str) -> Panel:
    """Return the heat map and the table as a section."""
    low, high = float(found.matrix.min()), float(found.matrix.max())
    return Panel(
        "Layer by layer",
        figure=found.png(name_a=name_a, name_b=name_b),
        caption=(
            f"{found.measure} of each layer of {name_a} (rows) and of {name_b} (columns), from "
            f"{low:.2f} to {high:.2f}. The table names the layer of {name_b} that is most alike."
        ),
        columns=COLUMNS,
        rows=best_rows(found),
    )


def facts(found: LayerSimilarity) -> dict[str, str]:
    """Return what was computed, and of what."""
    how = "all samples at once"
    if found.minibatch is not None:
        how = f"without bias, mean over minibatches of {found.minibatch:,}"
    return {
        "measure": found.measure,
        "samples": f"{found.samples:,}",
        "computed": how,
        "layers": f"{len(found.layers_a)} and {len(found.layers_b)}",
    }


def best_rows(found: LayerSimilarity) -> list[list[str]]:
    """Return for each layer the one most like it, and how alike the one of its name is."""
    rows = []
    for number, (name, best, value) in enumerate(found.best()):
        same = ""
        if name in found.layers_b:
            same = f"{float(found.matrix[number, found.layers_b.index(name)]):.4f}"
        rows.append([name, best, f"{value:.4f}", same])
    return rows
