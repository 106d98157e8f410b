"""Pictures of Fourier maps, each as the bytes of a PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pntk.errors import ConfigError
from pntk.extras import require
from pntk.figures import new_figure, png

if TYPE_CHECKING:
    from pntk.representation.fourier_file import FourierMap


def heat_map(found: FourierMap) -> bytes:
    """Draw the map, frequency zero in the centre; values that are not finite are grey.

    Args:
        found: a map [h, w]. Values of ``error`` have colours from 0 to 1.

    Raises:
        ConfigError: a map that is not [h, w], or without a finite value.
        MissingExtraError: matplotlib is not installed.
    """
    values = found.values
    finite = np.isfinite(values)
    if values.ndim != 2 or not finite.any():
        raise ConfigError(
            f"the map has shape {values.shape} and {int(finite.sum())} finite values; expected "
            "[h, w] with some"
        )
    error = found.about.get("criterion") == "error"
    low, high = (0.0, 1.0) if error else (values[finite].min(), values[finite].max())
    with require("matplotlib.style", "the plot").context("default"):
        figure = new_figure(5.4, 4.5)
        axes = figure.subplots()
        extent = None
        if found.frequencies is not None:
            (top, left), (bottom, right) = found.frequencies[0, 0], found.frequencies[-1, -1]
            extent = (left - 0.5, right + 0.5, bottom + 0.5, top - 0.5)
            axes.set(xlabel="horizontal frequency", ylabel="vertical frequency")
            axes.locator_params(integer=True)
        shown = np.ma.array(values, mask=~finite)
        axes.set_facecolor("0.8")
        image = axes.imshow(shown, cmap="magma", vmin=low, vmax=high, extent=extent)
        label = "error" if error else str(found.about.get("criterion", "value"))
        figure.colorbar(image, ax=axes, label=f"{label} (clean {found.clean:.3g})")
        return png(figure)
