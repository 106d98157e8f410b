"""Render a report to one HTML file."""

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from pntk.extras import require
from pntk.files import check_replaceable, write_whole
from pntk.report import plots, summary
from pntk.report.checks import check_report
from pntk.report.content import Report
from pntk.report.surrogate_plot import scatter_caption, scatter_plot

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
    script = _script() if report.queries else ""
    html: str = environment.get_template("report.html.j2").render(
        report=report,
        script=environment.filters["safe"](script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        classes=summary.class_order(query.label for query in report.queries),
        surrogates=_surrogate_table(report),
        scatters=[
            {
                "name": surrogate.name,
                "src": plots.data_uri(scatter_plot(surrogate)),
                "caption": scatter_caption(surrogate),
            }
            for surrogate in report.surrogates
        ],
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


def _surrogate_table(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (measure, (value, interval) of each surrogate) of each line."""
    columns = [surrogate.report.rows() for surrogate in report.surrogates]
    return [
        (line[0][0], [(value, interval) for _, value, interval in line])
        for line in zip(*columns, strict=True)
    ]


def _script() -> str:
    """Return the script as it stands in the page, which its hash is of."""
    folder = resources.files("pntk.report") / "templates"
    return (folder / "report.js").read_text(encoding="utf-8")
