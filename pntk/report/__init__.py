"""One self-contained HTML page about a run: neighbours, surrogates, kernel, coverage.

Needs jinja2 and matplotlib: ``pip install "pntk[analysis]"``.
"""

from pntk.report.content import Neighbour, Panel, Query, Report, Surrogate, Suspect
from pntk.report.html import write_report

__all__ = ["Neighbour", "Panel", "Query", "Report", "Surrogate", "Suspect", "write_report"]
