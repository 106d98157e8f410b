"""Figures on matplotlib's Agg canvas, which pyplot knows nothing of, and PNGs of them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from pntk.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
WIDTH, HEIGHT = 5.6, 4.9  # inches; narrow, so that the labels stay readable on a phone
BLUE = "#1f5a93"
COLOURS = (
    BLUE,
    "#d1661b",
    "#2e8540",
    "#9b3f7f",
    "#7a6a00",
    "#5b5b5b",
)  # also without colour vision


def new_figure(
    width: float = WIDTH, height: float = HEIGHT, *, layout: str = "constrained"
) -> Figure:
    """Return an empty white figure.

    Args:
        width: inches.
        height: inches.
        layout: engine of matplotlib's that places the axes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure: Figure = require("matplotlib.figure", "a plot").Figure(
        figsize=(width, height), dpi=DPI, layout=layout, facecolor="white"
    )
    require("matplotlib.backends.backend_agg", "a plot").FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG, without the version of what wrote it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
