"""A scatter of probabilities of a network and its surrogate, as the bytes of a PNG.

Shapes: m examples; p(x) the probability of an example's own class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pntk.extras import require
from pntk.figures import BLUE, new_figure, png
from pntk.report.content import Surrogate
from pntk.report.summary import count

WRONG = "#c8551b"
TICKS = (1e-12, 1e-8, 1e-6, 1e-4, 1e-2, 0.5)  # and what they are short of 1
MARGIN = 0.05  # of the range of log-odds, to either side


def scatter_plot(surrogate: Surrogate) -> bytes:
    """Draw the network's p(x) against the surrogate's, on axes of log p / (1 - p).

    Examples of which either is 0 or 1 have no log-odds, and are not drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawn = _drawn(surrogate)
    x, y = (log_odds(p[drawn]) for p in (surrogate.ours, surrogate.network))
    right = np.asarray(surrogate.right, dtype=bool)[drawn]
    both = np.concatenate([x, y, [-1.0, 1.0]])
    margin = MARGIN * float(np.ptp(both))
    low, high = float(both.min()) - margin, float(both.max()) + margin
    with require("matplotlib.style").context("default"):
        figure = new_figure()
        axes = figure.subplots()
        axes.plot(
            [low, high], [low, high], color="0.45", linewidth=1, linestyle="--", label="equal"
        )
        for chosen, colour, marker, label in (
            (right, BLUE, "o", "network right"),
            (~right, WRONG, "X", "network wrong"),
        ):
            axes.scatter(
                x[chosen], y[chosen], s=18 if marker == "o" else 34, c=colour, marker=marker,
                alpha=0.6 if marker == "o" else 0.95, linewidths=0, label=label,
            )  # fmt: skip
        places, names = probability_ticks(low, high)
        axes.set_xticks(places, names)
        axes.set_yticks(places, names)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(
            xlabel="surrogate: probability of the own class",
            ylabel="network: probability of the own class",
        )
        axes.grid(True, color="0.88", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
        return png(figure)


def scatter_caption(surrogate: Surrogate) -> str:
    """Say what the scatter shows."""
    drawn, wrong = _drawn(surrogate), ~np.asarray(surrogate.right, dtype=bool)
    caption = (
        f"{surrogate.name}: {count(int(drawn.sum()), 'example')}, of "
        f"which the network gets {int((drawn & wrong).sum()):,} wrong. Kendall τ-b "
        f"{surrogate.report.kendall_tau:.3f}."
    )
    left = len(drawn) - int(drawn.sum())
    return caption + (f" {left:,} more have a probability of 0 or 1." if left else "")


def log_odds(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log p / (1 - p)."""
    odds: NDArray[np.float64] = np.log(p) - np.log1p(-np.asarray(p))
    return odds


def probability_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Return the log-odds within a range that ticks stand at, and the probabilities there.

    >>> probability_ticks(-5.0, 10.0)[1]
    ['0.01', '0.5', '0.99', '0.9999']
    """
    names = {}
    for p in TICKS:
        odds = float(np.log(p) - np.log1p(-p))
        small = p < 1e-4
        names[odds] = f"$10^{{{np.log10(p):.0f}}}$" if small else f"{p:g}"
        names[-odds] = f"$1-10^{{{np.log10(p):.0f}}}$" if small else f"{1 - p:g}"
    places = sorted(place for place in names if low <= place <= high)
    return places, [names[place] for place in places]


def _drawn(surrogate: Surrogate) -> NDArray[np.bool_]:
    p, q = np.asarray(surrogate.ours), np.asarray(surrogate.network)
    drawn: NDArray[np.bool_] = (p > 0) & (p < 1) & (q > 0) & (q < 1)
    return drawn
