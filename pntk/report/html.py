"""Render a report to one HTML file."""

from pathlib import Path
from typing import Any

import numpy as np

from pntk.extras import require
from pntk.files import check_replaceable, write_whole
from pntk.report import plots, summary
from pntk.report.content import Report, check_report

OPEN_COVERAGE_ROWS = 24  # a longer table starts folded


def write_report(report: Report, path: str | Path) -> Path:
    """Write a report as one HTML file that needs no other file and no network.

    The file appears whole or not at all, and replaces one of the same name.

    Args:
        report: What to show.
        path: Where to write; the folder must exist.

    Returns:
        The path.

    Raises:
        ConfigError: The path is a folder or lies in none, or the contents cannot be drawn.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    path = Path(path)
    check_replaceable(path)
    check_report(report)
    write_whole(path, render_report(report).encode("utf-8", errors="replace"))
    return path


def render_report(report: Report) -> str:
    """Render a report that ``check_report`` has accepted to HTML."""
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pntk.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thumbnail"] = lambda image: plots.data_uri(plots.thumbnail(image))
    environment.filters["data_uri"] = plots.data_uri
    environment.filters["shape"] = summary.format_shape
    environment.filters["share"] = summary.format_share
    environment.filters["score"] = summary.format_score
    environment.globals["agreement"] = summary.agreement
    html: str = environment.get_template("report.html.j2").render(
        report=report,
        kernel=_kernel_figure(report),
        spectrum=_spectrum_figure(report),
        coverage=summary.coverage_groups(report.coverage),
        coverage_open=len(report.coverage) <= OPEN_COVERAGE_ROWS,
    )
    return html


def _kernel_figure(report: Report) -> dict[str, Any] | None:
    if report.kernel is None or np.size(report.kernel) == 0:
        return None
    cosine = summary.cosine_kernel(report.kernel)
    labels = None if report.kernel_labels is None else np.asarray(report.kernel_labels)
    return {
        "src": plots.data_uri(plots.kernel_plot(cosine, labels, report.class_names)),
        "caption": summary.kernel_caption(cosine, labels),
    }


def _spectrum_figure(report: Report) -> dict[str, Any] | None:
    if report.spectrum is None or np.size(report.spectrum) == 0:
        return None
    return {
        "src": plots.data_uri(plots.spectrum_plot(report.spectrum)),
        "caption": summary.spectrum_caption(report.spectrum),
    }
