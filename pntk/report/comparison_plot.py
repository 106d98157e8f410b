"""A measure of surrogates against the width of the rows, as the bytes of a PNG."""

from __future__ import annotations

from pntk.errors import ConfigError
from pntk.extras import require
from pntk.figures import new_figure, png
from pntk.report.spectrum_plots import _finish, _style
from pntk.surrogate.comparison import Comparison, Line

MEASURES = {
    "kendall_tau": "Kendall tau-b",
    "r2": "R^2 of log-odds",
    "agreement": "same prediction",
    "tad": "TAD",
    "r_miss": "R_Miss",
}

COLUMNS = 4  # of the legend


def comparison_plot(comparison: Comparison, measure: str = "kendall_tau") -> bytes:
    """Draw a measure against k, a line a kernel; kernels without projection are level lines.

    Bars are intervals of 95 %.

    Raises:
        ConfigError: no such measure, or nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    if measure not in MEASURES:
        raise ConfigError(f"measure is {measure!r}; expected one of {', '.join(MEASURES)}")
    if not comparison.lines:
        raise ConfigError("the comparison has no lines to draw")
    kernels = list(dict.fromkeys(line.kernel for line in comparison.lines))
    with require("matplotlib.style").context("default"):
        figure = new_figure()
        axes = figure.subplots()
        widths = sorted({line.proj_dim for line in comparison.lines if line.proj_dim is not None})
        for number, kernel in enumerate(kernels):
            lines = [line for line in comparison.lines if line.kernel == kernel]
            style = {**_style(number), "label": kernel}
            if lines[0].proj_dim is None:
                axes.axhline(_value(lines[0], measure), **{**style, "linestyle": ":"})
                continue
            lines = sorted(lines, key=lambda line: line.proj_dim or 0)
            values = [_value(line, measure) for line in lines]
            axes.errorbar(
                [line.proj_dim or 0 for line in lines],
                values,
                yerr=_bars(lines, measure),
                capsize=3,
                marker="o",
                markersize=4,
                **style,
            )
        if widths:
            axes.set_xscale("log", base=2)
            axes.set_xticks(widths, [f"{k:,}" for k in widths])
            axes.set_xlabel("k")
        else:
            axes.set_xticks([])
        axes.set_ylabel(MEASURES[measure])
        figure.legend(
            loc="outside lower center", ncols=min(COLUMNS, len(kernels)), fontsize="small",
            frameon=False,
        )  # fmt: skip
        _finish(axes)
        return png(figure)


def _value(line: Line, measure: str) -> float:
    return float(getattr(line.report, measure))


def _bars(lines: list[Line], measure: str) -> list[list[float]] | None:
    if any(measure not in line.report.intervals for line in lines):
        return None
    below, above = [], []
    for line in lines:
        low, high = line.report.intervals[measure]
        value = _value(line, measure)
        below.append(max(0.0, value - low))
        above.append(max(0.0, high - value))
    return [below, above]
