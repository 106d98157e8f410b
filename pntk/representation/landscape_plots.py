"""Pictures of loss landscapes, each as the bytes of a PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pntk.errors import ConfigError
from pntk.extras import require
from pntk.figures import new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pntk.representation.landscape_file import Landscape

Floats = npt.NDArray[np.float64]

LEVELS = 30  # at most
STEPS = (1, 2, 2.5, 5, 10)  # between them, times a power of ten
VALUES = ("loss", "accuracy")


def contour_plot(landscape: Landscape, *, values: str = "loss", log: bool = False) -> bytes:
    """Draw contours of a plane and the path in it, or the curve of a line.

    Args:
        landscape: what to draw; values that are not finite are left out.
        values: ``loss`` or ``accuracy``.
        log: whether to draw the logarithm to base 10.

    Raises:
        ConfigError: nothing finite to draw, accuracies that were not counted, or the logarithm of
            values that are not positive.
        MissingExtraError: matplotlib is not installed.
    """
    drawn, label = _values(landscape, values, log)
    with require("matplotlib.style", "the plot").context("default"):
        figure = new_figure(5.4, 4.5 if landscape.y is not None else 3.6)
        axes = figure.subplots()
        if landscape.y is None:
            axes.plot(landscape.x, drawn, color="#1f5a93", linewidth=1.5)
            axes.set(xlabel="step along the direction", ylabel=label)
            axes.grid(True, color="0.88", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
            return png(figure)
        grid = (landscape.x, landscape.y, drawn.T)
        image: Any
        if not drawn.max() > drawn.min():
            image = axes.pcolormesh(*grid, cmap="viridis")
        else:
            locator = require("matplotlib.ticker").MaxNLocator(LEVELS, steps=STEPS)
            levels = locator.tick_values(drawn.min(), drawn.max())
            image = axes.contourf(*grid, levels=levels, cmap="viridis")
            axes.contour(
                *grid, levels=levels[::2], colors="white", linewidths=0.4, linestyles="solid"
            )
        figure.colorbar(image, ax=axes, label=label)
        if landscape.trajectory is not None:
            _draw_path(axes, landscape.trajectory)
        elif _holds(landscape.x, 0) and _holds(landscape.y, 0):
            axes.plot(0, 0, marker="+", color="white", markersize=10, markeredgewidth=2)
        axes.set(xlabel="step along x", ylabel="step along y")
        axes.locator_params(nbins=6)
        axes.set_facecolor("0.8")
        return png(figure)


def surface_plot(landscape: Landscape, *, values: str = "loss", log: bool = False) -> bytes:
    """Draw a plane as a surface in three dimensions.

    Args:
        landscape: of two directions; otherwise as for :func:`contour_plot`.

    Raises:
        ConfigError: as for :func:`contour_plot`, or a landscape of one direction.
        MissingExtraError: matplotlib is not installed.
    """
    if landscape.y is None:
        raise ConfigError("the landscape is a line; a surface needs two directions: plot_contour")
    drawn, label = _values(landscape, values, log)
    with require("matplotlib.style", "the plot").context("default"):
        require("mpl_toolkits.mplot3d", "the plot")
        figure = new_figure(6.0, 4.8, layout="none")
        axes = figure.add_subplot(projection="3d")
        x, y = np.meshgrid(landscape.x, landscape.y, indexing="ij")
        heights = drawn.filled(np.nan)
        axes.plot_surface(
            x, y, heights, cmap="viridis", vmin=drawn.min(), vmax=drawn.max(),
            rcount=len(landscape.x), ccount=len(landscape.y), linewidth=0.2, edgecolor="0.3",
        )  # fmt: skip
        axes.set(xlabel="step along x", ylabel="step along y", zlabel=label)
        axes.locator_params(nbins=5)
        axes.view_init(elev=32, azim=-60)
        figure.subplots_adjust(left=0, right=0.93, bottom=0.04, top=1)
        axes.set_box_aspect(None, zoom=0.95)
        return png(figure)


def _values(landscape: Landscape, values: str, log: bool) -> tuple[np.ma.MaskedArray, str]:
    """Return what is drawn, without what is not finite, and its label."""
    if values not in VALUES:
        raise ConfigError(f"values is {values!r}; expected 'loss' or 'accuracy'")
    found = landscape.losses if values == "loss" else landscape.accuracies
    if found is None:
        raise ConfigError("accuracies were not counted; use loss_landscape(..., accuracy=True)")
    finite = np.isfinite(found)
    if not finite.any():
        raise ConfigError("none of the values is finite; choose a smaller range")
    if log:
        if not found[finite].min() > 0:
            raise ConfigError(
                f"the smallest value is {found[finite].min():.4g}; a logarithm needs positive ones"
            )
        found = np.log10(np.where(finite, found, 1.0))
    return np.ma.array(found, mask=~finite), f"log10 {values}" if log else values


def _draw_path(axes: Axes, path: Floats) -> None:
    axes.plot(*path.T, color="white", linewidth=1.2, marker="o", markersize=2.5)
    axes.plot(*path[-1], color="#e4572e", marker="o", markersize=6)


def _holds(axis: Floats, value: float) -> bool:
    return bool(axis[0] <= value <= axis[-1])
