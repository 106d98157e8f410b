"""A plot of residuals of cosines against the width of rows, as the bytes of a PNG.

Shapes: n pairs of all seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pntk.errors import ConfigError
from pntk.extras import require
from pntk.figures import COLOURS, new_figure, png
from pntk.ntk.residuals import LAWS, ResidualStudy, cdf
from pntk.report.spectrum_plots import _finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 500  # of a curve
LONGEST = 5.0  # |d| over its mean, to which distributions are drawn
DASHES = dict(zip(LAWS, ("--", ":", "-."), strict=True))


def residual_plot(study: ResidualStudy) -> bytes:
    """Draw |d cos| against k, and below it how it is distributed beside the laws fitted to it.

    The laws have a scale alone, so over its mean |d| of all widths has one curve for each of them,
    up to how the mixture was fitted: that of the widest rows is drawn.

    Args:
        study: of at least one width.

    Raises:
        ConfigError: it has none.
        MissingExtraError: matplotlib is not installed.
    """
    if not study.levels:
        raise ConfigError("the study has 0 widths to draw; expected at least one")
    with require("matplotlib.style").context("default"):
        figure = new_figure()
        top, bottom = figure.subplots(2, 1, height_ratios=[1, 1])
        _against_width(top, study)
        _distributions(bottom, study)
        for axes in (top, bottom):
            axes.legend(fontsize="x-small", frameon=False)
        _finish(top, bottom)
        return png(figure)


def _against_width(axes: Axes, study: ResidualStudy) -> None:
    k = np.array([level.proj_dim for level in study.levels], dtype=float)
    shown = {"mean": [level.mean for level in study.levels]}
    shown["95 %"] = [level.quantiles[0.95] for level in study.levels]
    for colour, (label, estimates) in zip(COLOURS, shown.items(), strict=False):
        axes.errorbar(
            k,
            [estimate.value for estimate in estimates],
            yerr=[estimate.std for estimate in estimates],
            color=colour,
            marker="o",
            markersize=3,
            linewidth=1.3,
            capsize=2,
            label=label,
        )
    first = shown["mean"][0].value
    axes.plot(k, first * (k / k[0]) ** -0.5, color="0.3", linestyle="--", label="$k^{-1/2}$")
    axes.plot(k, first * k[0] / k, color="0.6", linestyle=":", label="$k^{-1}$")
    axes.set(xscale="log", yscale="log", xlabel="k", ylabel="|cos − exact|")
    axes.set_xticks(k, [f"{width:,.0f}" for width in k])
    axes.minorticks_off()


def _distributions(axes: Axes, study: ResidualStudy) -> None:
    for number, level in enumerate(study.levels):
        values = np.sort(level.values.numpy(), axis=None) / level.mean.value
        shares = (np.arange(len(values)) + 1) / len(values)
        some = np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).astype(int)
        axes.plot(
            values[some],
            shares[some],
            color=COLOURS[number % len(COLOURS)],
            linewidth=1.3,
            label=f"k = {level.proj_dim:,}",
        )
    last = study.levels[-1]
    x = torch.linspace(0, LONGEST, MOST_POINTS, dtype=torch.float64)
    for law, dashes in DASHES.items():
        expected = cdf(law, x * last.mean.value, last.values, study.cosines)
        axes.plot(x, expected, color="0.25", linewidth=1.0, linestyle=dashes, label=law)
    axes.set(xlim=(0, LONGEST), ylim=(0, 1.02))
    axes.set(xlabel="|cos − exact| / mean", ylabel="share of pairs")
