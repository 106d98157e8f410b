"""What a script found, as JSON for programs and as Markdown tables for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, str | int | float]

DIR_HELP = "where to make files; the system's own place, unless told"


class Unavailable(RuntimeError):
    """Something cannot be tried here; the message says why."""


@dataclass
class Finding:
    """What one script found.

    Attributes:
        summary: what was done, and what had to hold.
        rows: one table.
        notes: remarks.
        failures: what did not hold; none of it is excused.
    """

    name: str
    summary: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def require(self, holds: bool, failure: str) -> None:
        """Keep a failure unless what was claimed holds."""
        if not holds:
            self.failures.append(failure)


def finish(finding: Finding) -> int:
    """Print a finding, and return the exit status."""
    print(f"# {finding.name}\n\n" + "\n".join(body(finding)))
    return int(bool(finding.failures))


def write(
    findings: list[tuple[Finding, str, float]], machine: dict[str, Any], out: Path
) -> list[Path]:
    """Write ``<date>-reliability.json`` and ``.md``; other scripts' findings of that day stay.

    Args:
        findings: each with its command and seconds.
    """
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{machine['date'][:10]}-reliability"
    paths = [Path(f"{stem}.json"), Path(f"{stem}.md")]
    content = json.loads(paths[0].read_text()) if paths[0].exists() else {}
    for finding, command, seconds in findings:
        about = {"machine": machine, "command": command, "seconds": round(seconds, 1)}
        content[finding.name] = {**about, **asdict(finding)}
    paths[0].write_text(json.dumps(content, indent=2) + "\n")
    paths[1].write_text(markdown(content))
    return paths


def markdown(content: dict[str, Any]) -> str:
    """Return the report of what ``write`` keeps."""
    lines = ["# reliability", ""]
    for name, kept in content.items():
        finding = Finding(
            **{key: kept[key] for key in ("name", "summary", "rows", "notes", "failures")}
        )
        where = f"{caption(kept['machine'])} `{kept['command']}`, {kept['seconds']} s."
        lines += [f"## {name}", "", where, "", *body(finding), ""]
    return "\n".join(lines)


def caption(machine: dict[str, Any]) -> str:
    """Return one line on hardware, software, date and commit."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}, {machine['disk']}; Python {machine['python']}, torch "
        f"{machine['torch']}, h5py {machine['h5py']} with HDF5 {machine['hdf5']}, pntk "
        f"{machine['pntk']} ({machine['commit']}); {machine['date'][:10]}."
    )


def body(finding: Finding) -> list[str]:
    """Return summary, failures, table and notes."""
    lines = [finding.summary, ""]
    if finding.failures:
        shown = finding.failures[:50]
        lines += ["**Failed:**", "", *(f"- {failure}" for failure in shown)]
        more = len(finding.failures) - len(shown)
        lines += [f"- and {more} more", ""] if more else [""]
    columns = list(dict.fromkeys(name for row in finding.rows for name in row))
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in finding.rows:
        lines.append("| " + " | ".join(show(row.get(name, "")) for name in columns) + " |")
    return [*lines, "", *(f"- {note}" for note in finding.notes)]


def show(value: str | int | float) -> str:
    """Return a value for a table.

    >>> show(12345), show(0.123456), show("x")
    ('12,345', '0.1235', 'x')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
