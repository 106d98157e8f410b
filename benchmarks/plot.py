"""Draw results: ``python -m benchmarks.plot [RESULT.json ...]`` writes a PNG beside each."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pntk.errors import MissingExtraError
from pntk.extras import require

RESULTS = Path(__file__).with_name("results")
# Okabe and Ito (2008), "Color universal design": told apart by all common kinds of colour vision
BLUE, ORANGE, GREEN, RED, PINK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
STYLES = ((BLUE, "o"), (RED, "s"), (GREEN, "^"), (ORANGE, "D"), (PINK, "v"))
GREY = "#666666"
DPI = 150
TARGET_SHARE = 0.6  # of the GEMM rate, for dense projections

Record = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw results; 1 if one cannot be drawn."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="all of benchmarks/results if none")
    given = parser.parse_args(arguments).results
    paths = given or sorted(RESULTS.glob("*.json"))
    failed = False
    for path in paths:
        try:
            require("matplotlib", "a plot")
            record = json.loads(path.read_text())
            if record["name"] in PLOTS:
                print(f"wrote {draw(record, path.with_suffix('.png'))}")
            elif given:
                raise ValueError(f"{path} is of {record['name']}; plots are of {', '.join(PLOTS)}")
        except (MissingExtraError, OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def draw(record: Record, path: Path) -> Path:
    """Write one result's plot, and return where."""
    figure = PLOTS[record["name"]](record)
    figure.suptitle(title(record), fontsize=9, x=0.01, ha="left")
    figure.savefig(path, dpi=DPI)
    return path


def title(record: Record) -> str:
    """Return what was measured, on what, when and at which commit."""
    machine = record["machine"]
    device = "" if machine["device"] == "cpu" else f"{machine['device']}; "
    level = f", kernels {machine['cpu_level']}" if "cpu_level" in machine else ""
    used = 1 if record["name"] == "kernels" else machine["threads"]
    warning = "   QUICK RUN: THE NUMBERS MEAN NOTHING" if record["quick"] else ""
    return (
        f"{record['name']}{warning}\n{device}{machine['cpu']}, {used} of {machine['cores']} "
        f"cores{level}; torch {machine['torch']}; {machine['date'][:10]}, {machine['commit']}"
    )


def overhead(record: Record) -> Any:
    """R of each case as a bar, with its quartiles and its floor."""
    rows = _with(record["rows"], "R")
    figure, axis = _figure(len(rows), 1)
    places = range(len(rows))
    r = [_spread(row["ratios"]["R"]) for row in rows]
    _bars(axis, r, BLUE, "R: rows of the batch (quartiles)")
    if all("R_floor" in row["ratios"] for row in rows):
        floors = [_spread(row["ratios"]["R_floor"])[0] for row in rows]
        label = "of it, forward and backward to the first layers"
        axis.barh(places, floors, height=0.35, color=ORANGE, label=label)
    axis.axvline(1, color="black", linestyle="--", linewidth=1, label="one forward and backward")
    axis.set_xlim(0, 1.15 * max([1.0, *(high for _, _, high in r)]))
    axis.set_xlabel("time of f(batch) / time of one forward and backward")
    _name_bars(axis, [row["case"] for row in rows])
    _legend_below(figure, axis)
    return figure


def kernels(record: Record) -> Any:
    """Each way to project as a bar, against TRAK and against a product with P in memory."""
    panels = {  # ratio -> what it says, its power, colour
        "TRAK / this": ("times as fast as TRAK's BasicProjector", 1, BLUE),
        "this / GEMM, P in memory, fp32": ("times as fast as fp32 GEMM, P in memory", -1, ORANGE),
    }
    rows = record["rows"]
    there = [name for name in panels if all(name in row["ratios"] for row in rows)]
    figure, *axes = _figure(len(rows), len(there))
    for axis, name in zip(axes, there, strict=True):
        label, power, colour = panels[name]
        spreads = [_power(_spread(row["ratios"][name]), power) for row in rows]
        axis.set_xscale("log")
        _bars(axis, spreads, colour, label, start=1)
        low = min(1.0, *(low for _, low, _ in spreads))
        high = max(1.0, *(high for _, _, high in spreads))
        room = (high / low) ** 0.3  # for the numbers at the bars' ends
        axis.set_xlim(low / room, high * room)
        axis.axvline(1, color="black", linestyle="--", linewidth=1)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(label)
        _name_bars(axis, [row["case"] for row in rows] if axis is axes[0] else [""] * len(rows))
    return figure


def scaling(record: Record) -> Any:
    """Lines over each factor: kernels against their base point, and R of models."""
    lines = _lines(record["rows"])
    factors = list(dict.fromkeys(factor for _, factor in lines))
    models = {name for (name, _), row in lines.items() if "R" in row[0][1]["ratios"]}
    subjects = list(dict.fromkeys(name for name, _ in lines))
    shown = {"time / base": [s for s in subjects if s not in models]}
    shown |= {"R": [s for s in subjects if s in models]}
    figure, axes = _grid(2, len(factors))
    for (ratio, names), row in zip(shown.items(), axes, strict=True):
        for factor, axis in zip(factors, row, strict=True):
            drawn = [n for n in names if (n, factor) in lines]
            for name in drawn:
                colour, marker = STYLES[subjects.index(name) % len(STYLES)]
                _line(axis, lines[name, factor], ratio, name, colour, marker)
            if not drawn:
                axis.set_axis_off()
                continue
            _finish_line_panel(axis, factor, ratio, [p for n in drawn for p in lines[n, factor]])
        row[0].set_ylabel("time / time at base point" if ratio != "R" else "R")
        if ratio == "R":
            row[0].set_ylim(bottom=0)  # of all, which share it
    _legend_below(figure, *(axis for row in axes for axis in row))
    return figure


def gpu_kernels(record: Record) -> Any:
    """Lines over the batch: dense projections as a share of the GEMM rate, others of bandwidth."""
    panels = {"of bf16 GEMM": "2 b p k / time, of bf16 GEMM", "read / copy": "bytes read, of copy"}
    points = _points(record["rows"])
    sizes = [p for _, p, _, _ in points]
    middle = max(set(sizes), key=sizes.count)  # the one at which the batch varies
    figure, (axes,) = _grid(1, len(panels), width=5.5, height=4.0)
    for axis, (ratio, label) in zip(axes, panels.items(), strict=True):
        ways: dict[str, list[tuple[int, Record]]] = {}
        for way, p, batch, row in points:
            if p == middle and ratio in row["ratios"]:
                ways.setdefault(way, []).append((batch, row))
        for number, (way, found) in enumerate(ways.items()):
            colour, marker = STYLES[number % len(STYLES)]
            found.sort(key=lambda point: point[0])
            dashed = "--" if number >= len(STYLES) else "-"
            _line(axis, found, ratio, way, colour, marker, dashed)
        axis.set_xscale("log", base=2)
        axis.set_xlabel(f"batch (samples), p = {middle}")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if ratio == "of bf16 GEMM":
            axis.axhline(TARGET_SHARE, color="black", linestyle=":", linewidth=1, label="target")
    _legend_below(figure, *axes)
    return figure


def gpu_layers(record: Record) -> Any:
    """The projection of each layer's factors as a bar, in its ordinary weight gradients."""
    ratio = "projection / weight gradient"
    return _single(record, ratio, "time of projection / time of the ordinary weight gradient")


def gpu_job(record: Record) -> Any:
    """The time of each job as a bar, against its target."""
    return _single(record, "time / target", "time / target")


def _single(record: Record, ratio: str, label: str) -> Any:
    rows = _with(record["rows"], ratio)
    figure, axis = _figure(len(rows), 1)
    spreads = [_spread(row["ratios"][ratio]) for row in rows]
    _bars(axis, spreads, BLUE, label)
    axis.axvline(1, color="black", linestyle="--", linewidth=1)
    axis.set_xlim(0, 1.15 * max(1.0, *(high for _, _, high in spreads)))
    axis.set_xlabel(label)
    _name_bars(axis, [row["case"] for row in rows])
    return figure


PLOTS: dict[str, Callable[[Record], Any]] = {
    "overhead": overhead,
    "kernels": kernels,
    "scaling": scaling,
    "gpu-overhead": overhead,
    "gpu-kernels": gpu_kernels,
    "gpu-layers": gpu_layers,
    "gpu-job": gpu_job,
}


# ---- parts of figures ----------------------------------------------------------------------------


def _figure(bars: int, panels: int) -> tuple[Any, ...]:
    """Return a figure with room for so many bars, and its panels."""
    figure = require("matplotlib.figure").Figure(
        figsize=(8 if panels == 1 else 11, 1.8 + 0.42 * bars), layout="constrained"
    )
    return figure, *figure.subplots(1, panels, squeeze=False)[0]


def _grid(rows: int, columns: int, width: float = 2.9, height: float = 2.8) -> tuple[Any, Any]:
    figure = require("matplotlib.figure").Figure(
        figsize=(width * columns, height * rows + 0.8), layout="constrained"
    )
    share = "row" if rows > 1 else False
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=share)


def _bars(
    axis: Any,
    spreads: list[tuple[float, float, float]],
    colour: str,
    label: str,
    start: float = 0.0,
) -> None:
    """Draw bars from ``start`` to medians, with quartiles and the median as a number."""
    places = range(len(spreads))
    medians = [median for median, _, _ in spreads]
    errors = [[m - low for m, low, _ in spreads], [high - m for m, _, high in spreads]]
    style = {"ecolor": GREY, "capsize": 3}
    widths = [m - start for m in medians]
    axis.barh(
        places, widths, left=start, height=0.7, color=colour, xerr=errors, error_kw=style,
        label=label,
    )  # fmt: skip
    for place, (median, low, high) in zip(places, spreads, strict=True):
        left = median < start
        axis.annotate(
            f"{median:.3g}" if median < 1000 else f"{median:.0f}",
            (low if left else high, place),
            xytext=(-5 if left else 5, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def _name_bars(axis: Any, names: list[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)


def _line(
    axis: Any,
    points: list[tuple[int, Record]],
    ratio: str,
    name: str,
    colour: str,
    marker: str,
    style: str = "-",
) -> None:
    x = [value for value, _ in points]
    spreads = [_spread(row["ratios"][ratio]) for _, row in points]
    medians = [median for median, _, _ in spreads]
    axis.plot(x, medians, style, color=colour, marker=marker, label=name)
    axis.fill_between(
        x, [low for _, low, _ in spreads], [high for _, _, high in spreads], color=colour, alpha=0.2
    )


def _finish_line_panel(
    axis: Any, factor: str, ratio: str, points: list[tuple[int, Record]]
) -> None:
    values = sorted({value for value, _ in points})
    axis.set_xscale("log", base=2)
    axis.set_xlabel({"p": "p (parameters)", "batch": "batch (samples)"}.get(factor, factor))
    axis.set_xticks(values, [_short(value) for value in values], fontsize=8)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if ratio == "R":
        axis.axhline(1, color="black", linestyle="--", linewidth=1, label="R = 1")
        return
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    base = next(value for value, row in points if _spread(row["ratios"][ratio]) == (1, 1, 1))
    power = -1 if factor == "threads" else 1
    ideal = [(value / base) ** power for value in values]
    axis.plot(values, ideal, color=GREY, linestyle=":", label="proportional")


def _legend_below(figure: Any, *axes: Any) -> None:
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )


# ---- what results hold ---------------------------------------------------------------------------


def _lines(rows: list[Record]) -> dict[tuple[str, str], list[tuple[int, Record]]]:
    """Return (subject, factor) -> its points, in the order of their values."""
    found: dict[tuple[str, str], list[tuple[int, Record]]] = {}
    for row in rows:
        match = re.fullmatch(r"(.+), (\w+) = (\d+)", row["case"])
        if match is None:
            raise ValueError(f"case {row['case']!r} is not a point of scaling: run it again")
        found.setdefault((match[1], match[2]), []).append((int(match[3]), row))
    return found


def _with(rows: list[Record], ratio: str) -> list[Record]:
    """Return the rows that were timed.

    Raises:
        ValueError: none was.
    """
    found = [row for row in rows if ratio in row["ratios"]]
    if not found:
        raise ValueError(f"no row of this result has a ratio {ratio!r}: nothing was timed")
    return found


def _points(rows: list[Record]) -> list[tuple[str, int, int, Record]]:
    """Return way, p, batch and row of what was timed at a point.

    Raises:
        ValueError: nothing was.
    """
    matches = [(re.fullmatch(r"(.+), p = (\d+), batch = (\d+)", r["case"]), r) for r in rows]
    found = [(m[1], int(m[2]), int(m[3]), row) for m, row in matches if m]
    if not found:
        raise ValueError("no row of this result is a point of gpu-kernels: nothing was timed")
    return found


def _spread(value: float | dict[str, float]) -> tuple[float, float, float]:
    """Return median and quartiles."""
    if isinstance(value, dict):
        return value["median"], value["low"], value["high"]
    return value, value, value


def _power(spread: tuple[float, float, float], power: int) -> tuple[float, float, float]:
    """Return a ratio or, for power -1, its inverse."""
    median, low, high = spread
    return spread if power == 1 else (1 / median, 1 / high, 1 / low)


def _short(value: int) -> str:
    """Return a number as a tick has room for it.

    >>> _short(10**6), _short(316), _short(4096)
    ('1e6', '316', '4096')
    """
    exponent = math.log10(value)
    return f"1e{exponent:.0f}" if value >= 10**5 and exponent.is_integer() else str(value)


if __name__ == "__main__":
    sys.exit(main())
