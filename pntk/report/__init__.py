"""One self-contained HTML page about a run: neighbours, kernel, spectrum, coverage.

Needs jinja2 and matplotlib: ``pip install "pntk[analysis]"``.
"""

from pntk.report.content import Neighbour, Panel, Query, Report
from pntk.report.html import write_report

__all__ = ["Neighbour", "Panel", "Query", "Report", "write_report"]
