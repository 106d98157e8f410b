"""Pictures of accuracy by direction, as figures of matplotlib that pyplot knows nothing of.

Shapes: r directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pntk.errors import ConfigError
from pntk.extras import require
from pntk.figures import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GUESS = 0.5
FEW = 8  # indices, each of which has a tick


def plot_bias_curve(
    indices: Sequence[int],
    accuracies: Mapping[str, Any],
    *,
    guess: float = GUESS,
    clean: float | None = None,
) -> Figure:
    """Draw accuracy against the index of a NAD, a line for each network.

    Args:
        indices: [r], of the NADs; drawn from the first on.
        accuracies: name of a line -> [r], of 1. NaN leaves a gap.
        guess: accuracy of guessing, drawn as a dotted line.
        clean: accuracy without poison, drawn as a dashed line; None for none.

    Raises:
        ConfigError: no lines, or one of another length.
        MissingExtraError: matplotlib is not installed.
    """
    lines = {name: np.asarray(values, dtype=float) for name, values in accuracies.items()}
    places = np.asarray(indices)
    if not lines or not len(places):
        raise ConfigError(f"there are {len(lines)} lines of {len(places)} points; expected some")
    for name, values in lines.items():
        if values.shape != places.shape:
            raise ConfigError(
                f"accuracies of {name!r} have shape {values.shape}; expected {places.shape}, one "
                "for each index"
            )
    order = np.argsort(places)
    with require("matplotlib.style").context("default"):
        figure = new_figure(5.6, 3.4)
        axes = figure.subplots()
        for number, (name, values) in enumerate(lines.items()):
            axes.plot(
                places[order],
                100 * values[order],
                color=COLOURS[number % len(COLOURS)],
                linestyle="--" if number // len(COLOURS) % 2 else "-",
                linewidth=1.3,
                marker="o",
                markersize=3.5,
                label=name,
            )
        levels = [(guess, "guessing", ":")]
        if clean is not None:
            levels.append((clean, "without poison", "--"))
        for level, name, linestyle in levels:
            axes.axhline(100 * level, color="0.45", linewidth=1, linestyle=linestyle)
            axes.annotate(
                name,
                (1.01, 100 * level),
                xycoords=("axes fraction", "data"),
                va="center",
                color="0.35",
                fontsize="small",
            )
        lowest = 100 * np.nanmin(
            [
                *(level for level, _, _ in levels),
                *(np.nanmin(v, initial=guess) for v in lines.values()),
            ]
        )
        axes.set(xlabel="NAD index", ylabel="test accuracy (%)", ylim=(lowest - 3, 102))
        if places.max() > 20:
            axes.set_xscale("symlog", linthresh=10)
            ticks = sorted({int(place) for place in places})
            if len(ticks) > FEW:
                ticks = [n for n in (0, 5, 10, 30, 100, 300, 1000, 3000) if n <= places.max()]
            axes.set_xticks(ticks, [str(n) for n in ticks], fontsize="small")
            axes.minorticks_off()
            axes.set_xlim(-1, 1.1 * float(places.max()))
        else:
            axes.locator_params("x", integer=True)
        axes.grid(True, color="0.88", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(fontsize="small", frameon=False)
    return figure


def plot_bias_map(
    frequencies: Sequence[tuple[int, int]], accuracy: Any, *, title: str = ""
) -> Figure:
    """Draw accuracy as a heat map over frequencies (u, v).

    Args:
        frequencies: [r], of :func:`pntk.nads.data.fourier_grid`; ones that are not there stay grey.
        accuracy: [r], of 1. NaN is grey too.
        title: of the map.

    Raises:
        ConfigError: not one accuracy for each frequency.
        MissingExtraError: matplotlib is not installed.
    """
    values = np.asarray(accuracy, dtype=float)
    if values.shape != (len(frequencies),) or not len(values):
        raise ConfigError(
            f"accuracy has shape {values.shape} and there are {len(frequencies)} frequencies; "
            "expected one for each, at least one"
        )
    rows = sorted({u for u, _ in frequencies})
    columns = sorted({v for _, v in frequencies})
    grid = np.full((len(rows), len(columns)), np.nan)
    for (u, v), value in zip(frequencies, values, strict=True):
        grid[rows.index(u), columns.index(v)] = 100 * value
    with require("matplotlib.style").context("default"):
        figure = new_figure(4.8, 4.0)
        axes = figure.subplots()
        colours = require("matplotlib").colormaps["viridis"].with_extremes(bad="0.8")
        image = axes.imshow(grid, cmap=colours, vmin=50, vmax=100)
        figure.colorbar(image, ax=axes, shrink=0.9, pad=0.03).set_label("test accuracy (%)")
        for set_ticks, numbers in ((axes.set_yticks, rows), (axes.set_xticks, columns)):
            step = -(-len(numbers) // 16)
            set_ticks(range(0, len(numbers), step), [str(n) for n in numbers[::step]])
        axes.tick_params(length=0)
        axes.set(xlabel="horizontal frequency v", ylabel="vertical frequency u")
        if title:
            axes.set_title(title, fontsize="medium")
    return figure
