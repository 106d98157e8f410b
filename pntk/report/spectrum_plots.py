"""Plots of spectra and of kernels during training, each as the bytes of a PNG.

Shapes: r eigenvalues, descending; s measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pntk.errors import ConfigError
from pntk.extras import require
from pntk.figures import COLOURS, new_figure, png
from pntk.ntk.spectral_numbers import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_LABEL = 40
PANELS = {  # what one panel shows of a measurement: name in the history -> label
    "alignment": {
        "target_alignment": "with the targets",
        "target_alignment_centered": "with the targets, centred",
    },
    "drift": {"drift": "since the first", "drift_step": "since the last"},
    "effective rank": {"effective_rank": "effective rank"},
}


def spectra_plot(spectra: Mapping[str, Spectrum]) -> bytes:
    """Draw eigenvalues against their index, and below it the share of the trace that they hold.

    Eigenvalues that are zero but for rounding are not drawn.

    Args:
        spectra: label of each line and what it shows, at least one.

    Raises:
        ConfigError: nothing to draw: no spectra, or one without a positive eigenvalue.
        MissingExtraError: matplotlib is not installed.
    """
    if not spectra:
        raise ConfigError("there are 0 spectra to draw; expected at least one")
    with require("matplotlib.style").context("default"):
        figure = new_figure()
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        for number, (label, spectrum) in enumerate(spectra.items()):
            values = spectrum.values.numpy()
            kept = values[values > max(spectrum.floor, 0.0)]
            if not len(kept):
                raise ConfigError(
                    f"the spectrum {label!r} has no eigenvalue above {spectrum.floor:.3g}; "
                    "expected a kernel that is not zero"
                )
            index = np.arange(1, len(kept) + 1)
            style = {**_style(number), "label": _short(label)}
            if len(kept) <= 50:
                style |= {"marker": "o", "markersize": 3}
            top.loglog(index, kept, **style)
            bottom.semilogx(index, 100 * np.cumsum(kept) / spectrum.trace, **style)
        top.set_ylabel("eigenvalue")
        bottom.set(ylim=(0, 104), ylabel="share of trace (%)", xlabel="index")
        if len(spectra) > 1:
            top.legend(fontsize="small", frameon=False)
        _finish(top, bottom)
        return png(figure)


def training_plot(history: Sequence[Mapping[str, float]]) -> bytes:
    """Draw alignment, drift and effective rank of a kernel against the steps of the training.

    Args:
        history: [s], of :class:`pntk.ntk.monitor.KernelMonitor`. A panel of which nothing was
            measured is left out.

    Raises:
        ConfigError: nothing was measured.
        MissingExtraError: matplotlib is not installed.
    """
    shown = {
        panel: {name: label for name, label in lines.items() if _measured(history, name)}
        for panel, lines in PANELS.items()
    }
    shown = {panel: lines for panel, lines in shown.items() if lines}
    if not shown:
        raise ConfigError(
            f"the history has {len(history)} measurements, none of them of {', '.join(PANELS)}; "
            "expected that of a KernelMonitor"
        )
    steps = [entry["step"] for entry in history]
    with require("matplotlib.style").context("default"):
        figure = new_figure()
        panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (panel, lines) in zip(panels, shown.items(), strict=True):
            for number, (name, label) in enumerate(lines.items()):
                values = [entry.get(name, math.nan) for entry in history]
                style = {**_style(number), "marker": "o", "markersize": 3, "label": label}
                axes.plot(steps, values, **style)
            axes.set_ylabel(panel)
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            if len(lines) > 1:
                axes.legend(fontsize="small", frameon=False)
        panels[-1].set_xlabel("step")
        _finish(*panels)
        return png(figure)


def _measured(history: Sequence[Mapping[str, float]], name: str) -> bool:
    return any(math.isfinite(entry.get(name, math.nan)) for entry in history)


def _style(number: int) -> dict[str, Any]:
    dashed = number // len(COLOURS) % 2
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linewidth": 1.3,
        "linestyle": "--" if dashed else "-",
    }


def _short(label: str) -> str:
    """Shorten a label from the left, where folders are; dollar signs are no mathematics."""
    short = label if len(label) <= LONGEST_LABEL else "…" + label[1 - LONGEST_LABEL :]
    short = short.replace("$", r"\$")
    return " " + short if short.startswith("_") else short  # matplotlib hides those labels


def _finish(*panels: Axes) -> None:
    for axes in panels:
        axes.grid(True, which="major", color="0.88", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
