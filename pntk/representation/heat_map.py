"""A heat map of the layers of two models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pntk.extras import require
from pntk.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pntk.representation.layers import LayerSimilarity

_NUMBERED = 12  # layers a side up to which values are written into the cells
_LONGEST = 28  # characters of a name
_LABELS = 40  # names an axis has room for


def heat_map(found: LayerSimilarity, name_a: str, name_b: str) -> Figure:
    """Draw how alike layers are, colours from 0 to 1, the first layers at the lower left.

    Where values are negative, colours start at the smallest.

    Args:
        found: what to draw.
        name_a: name of the model whose layers are the rows.
        name_b: of the one whose layers are the columns.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    values = found.matrix.numpy()
    rows, columns = values.shape
    low = min(0.0, float(values.min()))
    with require("matplotlib.style", "the heat map").context("default"):
        size = (2.6 + 0.42 * min(columns, 24), 2.0 + 0.38 * min(rows, 24))
        figure = new_figure(*size)
        axes = figure.subplots()
        image = axes.imshow(values, origin="lower", cmap="magma", vmin=low, vmax=1, aspect="auto")
        axes.set_xticks(*_ticks(found.layers_b), rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(*_ticks(found.layers_a))
        axes.tick_params(labelsize="small", length=2)
        axes.set(xlabel=name_b, ylabel=name_a)
        if max(rows, columns) <= _NUMBERED:
            for i in range(rows):
                for j in range(columns):
                    value = float(values[i, j])
                    dark = (value - low) / (1 - low) < 0.6 if low < 1 else False
                    colour = "white" if dark else "black"
                    text = f"{value:.2f}"
                    axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
        figure.colorbar(image, ax=axes, label=found.measure, shrink=0.9)
    return figure


def _ticks(names: list[str]) -> tuple[list[int], list[str]]:
    """Return where names are written, and the names, their ends where they are long."""
    step = -(-len(names) // _LABELS)
    places = list(range(0, len(names), step))
    cut = [n if len(n) <= _LONGEST else "…" + n[1 - _LONGEST :] for n in names]
    return places, [cut[place] for place in places]
